from __future__ import annotations

import json


def test_on_the_command_line(sparsetune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "fit --model test_resnet --fraction .25 --epochs 1 --train-limit 64 --test-limit 20 --size 32"
    words += " --members 2"
    lines = sparsetune(words).out.splitlines()
    assert lines[0].startswith("ensemble's test accuracy")
    again = sparsetune(words + " --json --out there").json
    assert again["finished"]
    assert len(again["members"]) == 2
    measured = sparsetune("eval", *[m["delta"] for m in again["members"]], "--test-limit", 20, "--json").json
    assert measured["ensemble"]["top1"] == again["ensemble"]["top1"]
    assert json.loads((tmp_path / "there" / "member-1" / "config.json").read_text())["config"]["seed"] == 1
    words = words.replace("--members 2", "--members 2 --out bundled --bundle")
    assert sparsetune(words).out.splitlines()[-1] == "next: sparsetune eval bundled/ensemble.safetensors"
    found = sparsetune("eval bundled/ensemble.safetensors --test-limit 20 --json").json
    assert found["ensemble"]["top1"] == again["ensemble"]["top1"]
