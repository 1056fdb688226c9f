"""The command that a delta says it was trained by, run again."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import sparsetune as st
from sparsetune.cli import app
from sparsetune.delta.header import Header
from sparsetune.publish.card import command

FIT = "fit --model test_resnet --epochs 1"
SMALL = f"{FIT} --train-limit 100 --test-limit 20"


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def header(tmp_path_factory) -> Header:
    """What a short run's delta says of itself."""
    out = tmp_path_factory.mktemp("run") / "r"
    sparsetune([*f"{SMALL} --fraction 0.25".split(), "--out", str(out)])
    return st.inspect(out / "delta.safetensors")


def sparsetune(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output


def pictures(folder: Path) -> None:
    """Two classes of grey pictures, four of each."""
    for label in range(2):
        (folder / f"class {label}").mkdir(parents=True)
        for number in range(4):
            picture = np.full((8, 8, 3), 100 * label + 10 * number, dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"class {label}" / f"{number}.png")


@pytest.mark.parametrize(
    "options",
    [
        "--filters 2 --dim in --layers layer1 --layers layer* --no-norm --seed 3 --backbone-seed 7",
        "--fraction 0.1 --no-head --frozen zero --opt adamw --lr 0.001 --sched none --weight-decay 0.01",
        "--fraction 0.3 --size 16 -b 32 --sched poly --frozen random",
        "--rank 2 --size 16 --dtype int8",
    ],
)
def test_it_gives_the_same_file_again(options):
    sparsetune(f"{SMALL} {options} --out one".split())
    words = shlex.split(command(st.inspect("one/delta.safetensors")))
    assert words[:2] == ["sparsetune", "fit"]
    sparsetune([*words[1:], "--out", "two"])
    assert Path("one/delta.safetensors").read_bytes() == Path("two/delta.safetensors").read_bytes()


def test_data_checkpoint_and_delta_are_named_without_their_place():
    pictures(Path("far/away/my $pictures"))
    save_file(st.create("test_resnet", num_classes=2, seed=5).state_dict(), "far/whole.safetensors")
    words = [*FIT.split(), "--fraction", "0.2", "--data", "far/away/my $pictures"]
    sparsetune([*words, "--init-from", "far/whole.safetensors", "--out", "one"])
    told = command(st.inspect("one/delta.safetensors"))
    assert "far" not in told
    assert "--data 'my $pictures/' --init-from whole.safetensors " in told
    Path("far/away/my $pictures").rename("my $pictures")
    Path("far/whole.safetensors").rename("whole.safetensors")
    sparsetune([*shlex.split(told)[1:], "--out", "two"])
    assert Path("one/delta.safetensors").read_bytes() == Path("two/delta.safetensors").read_bytes()


def test_a_start_from_a_delta(header):
    options = {**header.training["options"], "init_from": "hf://some/digits"}
    told = command(replace(header, training={**header.training, "options": options}))
    assert "--init-from hf://some/digits " in told + " "


def test_only_what_is_not_the_default(header):
    assert command(header) == (
        "sparsetune fit --model test_resnet --fraction 0.25 --train-limit 100 --test-limit 20 --epochs 1"
    )
    published = replace(header.backbone, kind="pretrained", source="timm/test_resnet.r160_in1k")
    assert "--pretrained" in command(replace(header, backbone=published)).split()
    assert "--model torchvision/resnet18 " in command(
        replace(header, library="torchvision", model="resnet18")
    )


def test_arguments_of_the_model(header):
    words = shlex.split(command(replace(header, kwargs={"in_chans": 1, "depth": 10, "act": "a b"})))
    at = words.index("--in-chans")
    assert words[at : at + 6] == [
        "--in-chans",
        "1",
        "--model-kwargs",
        "depth=10",
        "--model-kwargs",
        "act='a b'",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"training": {}},
        {"training": {"config": {}, "data": "digits"}},
        {"backbone": st.Backbone(kind="module", source="Net")},
    ],
    ids=["nothing", "no options", "own module"],
)
def test_what_fit_cannot_do_again_has_no_command(header, change):
    assert command(replace(header, **change)) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", {"epochs": 0}),
        ("config", {"rate": 1}),
        ("config", {"momentum": 0.5}),
        ("config", 3),
        ("data", None),
        ("data", ["digits"]),
        ("options", []),
        ("options", {"size": 8}),
    ],
)
def test_a_strangers_summary_has_no_command(header, name, value):
    assert command(replace(header, training={**header.training, name: value})) is None


@pytest.mark.parametrize("text", ["$(rm -rf x)", "a; b", "`id`", "' \" \\", "--help", "ä ✓", "a|b"])
def test_a_strangers_words_stay_one_word(header, text):
    training = {**header.training, "data": text}
    words = shlex.split(command(replace(header, training=training, model=text)))
    assert words[words.index("--data") + 1] == text
    assert words[words.index("--model") + 1] == text
    assert json.dumps(words).count(json.dumps(text)) == 2
