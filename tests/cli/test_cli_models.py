from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sparsetune as st
from sparsetune.bench.bench import MEASURES
from sparsetune.cli import models
from sparsetune.cli.models import SEEDED

GOLDEN = Path(__file__).parents[1] / "golden"

EVERYTHING, BN = ["--fraction", 1], ["--filters", 0, "--no-head"]


@pytest.mark.parametrize(
    ("model", "classes", "learn", "count"),
    [
        ("densenet100_12", 10, EVERYTHING, 769_162),
        ("densenet100_12", 10, BN, 23_988),
        ("densenet100_12", 10, ["--fraction", 0.1], 90_196),
        ("densenet100_12", 10, ["--fraction", 1, "--layers", "block3", "--no-head"], None),
        ("wrn28_4", 100, EVERYTHING, 5_872_180),
        ("wrn28_4", 100, ["--filters", 0], 32_900),
        ("wrn28_4", 10, ["--fraction", 1, "--layers", "block3", "--no-head"], 4_463_648),
        ("wrn28_10", 10, ["--fraction", 0.4], 14_606_284),
    ],
)
def test_plan_counts_as_the_paper_does(sparsetune, model, classes, learn, count):
    value = sparsetune("plan", "--model", model, "--num-classes", classes, *learn, "--json").json
    assert {"learned_parameters", "total_parameters", "delta_bytes", "layers"} <= set(value)
    assert value["learned_parameters"] == (count or value["learned_parameters"])
    assert sum(layer["learned_parameters"] for layer in value["layers"]) == value["learned_parameters"]
    assert value["delta_bytes"] > 4 * value["learned_parameters"]
    assert 1 / 3 < value["arithmetic_share"] <= 1


def test_plan_is_a_table(sparsetune):
    result = sparsetune("plan", "--model", "densenet100_12", "--fraction", 0.1)
    lines = result.out.splitlines()
    assert lines[0].split() == ["parameter", "shape", "learned", "values"]
    assert lines[1].split() == ["conv1.weight", "24x3x3x3", "2/24", "54"]
    end = lines.index("")
    assert len({len(line) for line in lines[:end]}) == 1
    assert lines[end + 1].split(maxsplit=1) == ["learned", "90,196 of 769,162 values (11.7%)"]
    assert lines[end + 2].split(maxsplit=1)[0] == "delta"
    assert lines[end + 3].split(maxsplit=1)[0] == "arithmetic"
    assert result.err == ""


def test_plan_takes_any_model_at_once(sparsetune):
    value = sparsetune("plan", "--model", "vit_giant_patch14_224", "--fraction", 0.1, "--json").json
    assert value["total_parameters"] > 10**9
    value = sparsetune("plan", "--model", "torchvision/resnet18", "--filters", 1, "--json").json
    assert value["total_parameters"] == 11_181_642  # with ten classes


def test_plan_says_what_no_seed_gives(sparsetune):
    asked = ["plan", "--model", "vit_small_patch16_rope_mixed_224", "--fraction", 0.1]
    lines = sparsetune(*asked).out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("stored")] == [
        "18.0 KiB of that: values that no seed gives"
    ]
    assert (
        sparsetune(*asked, "--json").json["stored_bytes"] == 18_432
    )  # 12 blocks, 2 axes, 6 heads, 32 angles
    assert not any(
        line.startswith("stored")
        for line in sparsetune("plan", "--model", "resnet18", "--fraction", 0.1).out.splitlines()
    )


def test_models(sparsetune, refused):
    assert sparsetune("models", "wrn*").out.split() == ["wrn28_10", "wrn28_4"]
    assert "torchvision/resnet18" in sparsetune("models", "resnet18").out.split()
    assert sparsetune("models", "wrn", "--json").json == ["wrn28_10", "wrn28_4"]
    assert len(sparsetune("models").out.split()) > 1000
    assert "did you mean densenet100_12" in refused("models", "densenet10_12")


def test_bench(sparsetune):
    options = "bench --model test_resnet --fraction 0.1 --rounds 1 --batch-size 2 --threads 1"
    lines = sparsetune(options).out.splitlines()
    assert lines[0] == "test_resnet, batches of 2x3x32x32, cpu, threads 1; medians of 1 rounds"
    assert lines[1].split() == ["median", "least", "most", "of", "full"]
    blocks = [line.strip() for line in lines[2:] if not line.startswith(" ")]
    assert blocks == ["learned values", *(words for words, _ in MEASURES.values())]
    assert [line.split()[0] for line in lines[3:7]] == ["full", "ours", "masked", "lora"]
    values = sum(each.numel() for each in st.create("test_resnet", num_classes=10).parameters())
    assert lines[3].split()[1:] == [f"{values:,}", "1.000"]
    told = sparsetune(options, "--json", "--plot", "b.png")
    value = told.json
    assert told.err == ""
    assert [row["name"] for row in value["rows"]] == ["full", "ours", "masked", "lora"]
    assert Path("b.png").read_bytes().startswith(b"\x89PNG")
    few = sparsetune("bench --model test_resnet --filters 0 --rounds 1 --batch-size 2 --threads 1")
    assert few.err == "lora is left out: no layer learns enough for one rank; give a larger fraction.\n"
    assert json.dumps(value["learn"])
    assert value["processor"]


def test_plan_says_what_rank_a_layer_has(sparsetune):
    words = "plan --model test_resnet --rank 4"
    layers = {layer["name"]: layer for layer in sparsetune(words, "--json").json["layers"]}
    layer = layers["conv1.0.weight"]
    assert (layer["rank"], layer["learned_parameters"]) == (4, 4 * (16 + 3 * 9))
    line = next(line for line in sparsetune(words).out.splitlines() if "conv1.0.weight" in line)
    assert line.split() == ["conv1.0.weight", "16x3x3x3", "rank", "4", "172"]


def test_doctor_tells_what_is_here(sparsetune):
    """The fingerprint that it compares is the one in the golden file of that network."""
    told = sparsetune("doctor", "--json").json
    assert told["seeds_are_right"]
    assert st.inspect(GOLDEN / "format1-plain.safetensors").fingerprint == SEEDED
    assert told["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert told["usable_bytes"] > 0
    lines = dict(line.split(maxsplit=1) for line in sparsetune("doctor").out.splitlines())
    assert lines["seeds"] == "give the right values"
    assert {"onnx", "peft", "ray", "memory", "processor"} <= lines.keys()


def test_doctor_sees_seeds_that_give_other_values(sparsetune, monkeypatch):
    monkeypatch.setattr(models, "SEEDED", "0" * 64)
    result = sparsetune("doctor", code=1)
    assert "GIVE OTHER VALUES" in result.out
