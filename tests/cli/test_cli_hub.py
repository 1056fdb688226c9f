from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

import sparsetune as st


def delta_on(hub) -> bytes:
    repo = hub.repos["some/digits"]
    return repo.commits[repo.branches["main"]]["delta.safetensors"]


def test_push_and_pull(sparsetune, deltas, hub):
    result = sparsetune("push", deltas[0], "some/digits")
    assert result.out == f"{hub.url}/some/digits/commit/{hub.repos['some/digits'].branches['main']}\n"
    assert result.err == ""
    assert delta_on(hub) == deltas[0].read_bytes()
    out = sparsetune("pull", "some/digits", "-o", "new/d.safetensors").out
    assert out == "new/d.safetensors\n"
    assert Path("new/d.safetensors").read_bytes() == deltas[0].read_bytes()
    cached = Path(sparsetune("pull", "hf://some/digits").out.strip())
    assert cached.is_relative_to(constants.HF_HUB_CACHE)
    assert cached.read_bytes() == deltas[0].read_bytes()


def test_push_and_pull_for_machines(sparsetune, deltas, hub):
    words = ["--private", "--revision", "v2", "-m", "words"]
    value = sparsetune("push", deltas[0], "some/digits", *words, "--json").json
    repo = hub.repos["some/digits"]
    assert value == {
        "delta": str(deltas[0]),
        "repo": "some/digits",
        "commit": f"{hub.url}/some/digits/commit/{repo.branches['v2']}",
    }
    assert repo.private
    assert repo.messages[-1] == "words"
    value = sparsetune("pull", "some/digits", "--revision", "v2", "--json").json
    assert value["file_bytes"] == deltas[0].stat().st_size
    assert Path(value["delta"]).read_bytes() == deltas[0].read_bytes()


def test_other_commands_take_an_address(sparsetune, deltas, hub, pictures):
    sparsetune("push", deltas[0], "some/digits")
    address, path = "hf://some/digits", deltas[0]
    assert sparsetune("info", address, "--json").json == sparsetune("info", path, "--json").json
    assert sparsetune("verify", address).out.startswith(f"{address}: intact (")
    image = pictures / "class 3" / "no 0.jpg"
    assert sparsetune("predict", address, image).out == sparsetune("predict", path, image).out
    value = sparsetune("eval", address, path, "--test-limit", 50, "--json").json
    assert [member.pop("delta") for member in value["members"]] == [address, str(path)]
    assert value["members"][0] == value["members"][1]
    sparsetune("merge", address, "-o", "a.safetensors")
    sparsetune("merge", path, "-o", "b.safetensors")
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()
    limits = "--model test_resnet --fraction 0.25 --train-limit 20 --test-limit 10 --epochs 1"
    sparsetune(f"fit {limits}", "--init-from", address, "--out", "r")
    assert st.inspect("r/delta.safetensors").training["options"]["init_from"] == address


@pytest.mark.parametrize("command", ["info", "eval", "predict", "merge", "pull", "verify"])
def test_what_is_not_there_is_one_sentence(refused, hub, command):
    fit = "fit --model test_resnet --fraction 0.25 --init-from"
    assert " cannot be fetched (no such repository" in refused(fit, "hf://some/nothing")
    more = {"predict": ["x.jpg"], "merge": ["-o", "m.safetensors"]}.get(command, [])
    told = refused(command, "hf://some/nothing", *more, code=1 if command == "verify" else 2)
    assert told.startswith("hf://some/nothing cannot be fetched (no such repository, or a private one); ")
    assert not Path("m.safetensors").exists()


def test_push_that_fails_is_one_sentence(refused, deltas, hub, monkeypatch):
    assert "is not valid; expected hf://OWNER/NAME" in refused("push", deltas[0], "digits")
    assert "nosuch is not a file" in refused("push", "nosuch", "some/digits")
    hub.answer["commit/main"] = 503
    assert "(the Hub answered 503: " in refused("push", deltas[0], "some/digits")
    monkeypatch.delenv("HF_TOKEN")
    assert "(the Hub asks who you are); log in with `hf auth login`" in refused(
        "push", deltas[0], "some/digits"
    )
