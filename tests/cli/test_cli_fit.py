from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sparsetune as st
from sparsetune.publish.card import card
from sparsetune.spec import words

SHORT = "fit --model test_resnet --fraction 0.25 --train-limit 200 --test-limit 50 --epochs 2 --lr 0.05"


def next_command(out: str) -> list[str]:
    last = out.splitlines()[-1]
    assert last.startswith("next: sparsetune ")
    return shlex.split(last)[2:]


def test_tells_accuracy_size_and_what_to_do_next(sparsetune):
    result = sparsetune(SHORT)
    record = json.loads(Path("runs/test_resnet-digits-f0.25-s0/metrics.jsonl").read_text().splitlines()[-1])
    size = Path("runs/test_resnet-digits-f0.25-s0/delta.safetensors").stat().st_size
    lines = result.out.splitlines()
    assert re.fullmatch(r"test accuracy +[\d.]+%  \(top-5 [\d.]+%, loss [\d.]+\)", lines[0])
    assert f"{record['test_top1']:.2%}" in lines[0]
    told = json.loads(Path("runs/test_resnet-digits-f0.25-s0/report.json").read_text())
    assert told["accuracy"] == record["test_top1"]
    named = re.fullmatch(
        r"lowest recall +(\d) \([\d.]+%\), (\d) \([\d.]+%\), (\d) \([\d.]+%\)", lines[1]
    ).groups()
    recalls = {each["name"]: each["recall"] for each in told["classes"]}
    assert max(recalls[name] for name in named) <= min(recalls[name] for name in {*recalls} - {*named})
    assert lines[2].split(maxsplit=1) == ["learned", "95,702 of 373,658 values (25.6%)"]
    assert lines[3].split() == ["delta", "runs/test_resnet-digits-f0.25-s0/delta.safetensors"]
    assert lines[4].split(maxsplit=1)[1].startswith(f"{size / 1024:.1f} KiB, 26.")
    assert lines[5].split() == ["curves", "runs/test_resnet-digits-f0.25-s0/curves.png"]
    files = "runs/test_resnet-digits-f0.25-s0/report.json, confusion.png, mistakes.png"
    assert lines[6].split(maxsplit=1) == ["report", files]
    assert lines[7].endswith("for 2 epochs")
    assert {line[13:15] for line in lines[:8]} == {"  "}
    assert all(line[15] != " " for line in lines[:8])
    first, *errors = result.err.splitlines()
    assert first.startswith("learning over a random backbone (seed 0); --pretrained or --init-from FILE ")
    assert errors[0] == "learning 95,702 of 373,658 values (25.6%) on 200 pictures of digits"
    epoch = r"epoch +(\d+)  loss [\d.]+  train +[\d.]+%  test +[\d.]+%  [\d.]+ s"
    said = "learning from 8x8 pictures, mean 0.3057, 0.3057, 0.3057, std 0.376, 0.376, 0.376, bilinear"
    assert errors[1] == f"{said} (the data's own)"
    assert errors[2] == "learning with momentum, lr 0.05, cosine, 2 epochs of batches of 64"
    assert [re.fullmatch(epoch, line)[1] for line in errors[3:]] == ["1", "2"]
    again = sparsetune(*next_command(result.out), "--test-limit", 50)
    assert f"{record['test_top1']:.2%}" in again.out


def test_a_tenth_is_learned_where_nothing_says_how_much(sparsetune):
    few = "--train-limit 100 --test-limit 20 --epochs 1"
    told = {
        flag: json.loads(sparsetune(f"fit --model test_resnet {few} --json --out run{flag} {flag}").out)
        for flag in ("", "--fraction=0.1")
    }
    assert told[""]["learned_parameters"] == told["--fraction=0.1"]["learned_parameters"]
    assert (
        Path("run/delta.safetensors").read_bytes() == Path("run--fraction=0.1/delta.safetensors").read_bytes()
    )


def test_json_is_all_that_stands_on_stdout(sparsetune):
    value = sparsetune(SHORT, "--out", "r", "--json").json
    assert value["finished"] is True
    assert value["learned_parameters"] == 95_702
    assert value["total_parameters"] == 373_658
    assert value["delta"] == "r/delta.safetensors"
    assert value["delta_bytes"] == Path("r/delta.safetensors").stat().st_size
    assert [record["epoch"] for record in value["epochs"]] == [1, 2]


def test_stops_when_its_time_is_up_and_goes_on(sparsetune):
    sparsetune(SHORT, "--out", "straight")
    result = sparsetune(SHORT, "--time-budget", "0s")
    assert result.out == ""
    assert result.err.splitlines()[-1] == (
        "time is up after 0 epochs of 2, saved in runs/test_resnet-digits-f0.25-s0; "
        "the same command with --resume goes on."
    )
    value = sparsetune(SHORT, "--time-budget", "0s", "--resume", "--json").json
    assert (value["finished"], value["delta"], value["epochs"]) == (False, None, [])
    assert Path(value["checkpoint"]).is_file()
    sparsetune(SHORT, "--resume")
    straight, resumed = Path("straight"), Path("runs/test_resnet-digits-f0.25-s0")
    assert (straight / "delta.safetensors").read_bytes() == (resumed / "delta.safetensors").read_bytes()
    again = sparsetune(SHORT, "--resume")
    assert again.err == ""
    assert "test accuracy" in again.out


def test_the_same_command_twice_makes_a_numbered_folder(sparsetune, refused):
    for _ in range(2):
        sparsetune(SHORT, "--time-budget", "0s")
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "test_resnet-digits-f0.25-s0",
        "test_resnet-digits-f0.25-s0-2",
    ]
    sparsetune(SHORT, "--time-budget", "0s", "--out", "r")
    assert "r holds a run already; add --resume" in refused(SHORT, "--out", "r")
    assert "config.lr = 0.05, not 0.1; resume with" in refused(SHORT, "--out", "r", "--resume", "--lr", 0.1)


def test_learns_a_folder_of_pictures_and_names_them(sparsetune, pictures):
    options = "--model test_resnet --fraction 0.5 --epochs 5 --lr 0.02 --batch-size 8"
    result = sparsetune(f"fit {options}", "--out", "my run", "--data", pictures)
    assert "my [red] pictures" in result.err
    found = sparsetune(*next_command(result.out))
    held_out = len(st.open_data(str(pictures)).validation)
    assert "; no test split was given; a fifth of the pictures, held out by content, are valid" in result.err
    assert f"{held_out} validation pictures of my [red] pictures" in found.out
    assert result.out.startswith("validation accuracy  ")
    assert "test" not in result.out.replace("test_resnet", "").partition("delta")[0]
    epochs = [line for line in result.err.splitlines() if line.startswith("epoch ")]
    assert all("  validation " in line for line in epochs)
    header = st.inspect("my run/delta.safetensors")
    assert {name.split("_")[0] for name in header.training["result"]} == {
        "epoch",
        "lr",
        "train",
        "validation",
    }
    said = sparsetune("info", "my run/delta.safetensors").out
    assert f"validation accuracy  {header.accuracy[1]:.2%} on my [red] pictures/" in said
    assert "| validation accuracy | " in card(header, 1, None, "OWNER/NAME")
    assert "test_top1" not in Path("my run/metrics.jsonl").read_text()
    assert "my run/delta.safetensors" in found.out
    images = [pictures / "class 3" / "no 0.jpg", pictures / "class 4" / "no 1.png"]
    named = sparsetune("predict", "my run/delta.safetensors", *images, "--json").json
    assert [entry["classes"][0]["name"] for entry in named] == ["class 3", "class 4"]


def test_the_next_command_finds_the_backbone_file(sparsetune):
    save_file(st.create("test_resnet", num_classes=10, seed=7).state_dict(), "my whole.safetensors")
    result = sparsetune(SHORT, "--epochs", 1, "--init-from", "my whole.safetensors", "--out", "r")
    sparsetune(*next_command(result.out))
    assert "file my whole.safetensors" in sparsetune("info", "r/delta.safetensors").out


def test_options_reach_the_training(sparsetune):
    options = "--opt adamw --lr 0.01 --weight-decay 0.02 --sched tanh --seed 3 --backbone-seed 4 --amp bf16"
    options += " --filters 1 --no-norm --dim in --layers layer1 --layers layer2 --frozen zero --no-head -b 50"
    options += " --grad-checkpointing"
    limits = "--model test_resnet --train-limit 200 --test-limit 50 --epochs 1 --size 16 --out r -j 1"
    sparsetune(f"fit {options} {limits}")
    header = st.inspect("r/delta.safetensors")
    assert header.learn == st.Learn(
        filters=1, dim="in", layers=("layer1", "layer2"), norm=False, head=False, frozen="zero"
    )
    config = {"opt": "adamw", "lr": 0.01, "weight_decay": 0.02, "sched": "tanh", "seed": 3, "amp": "bf16"}
    config["grad_checkpointing"] = True
    assert header.training["config"].items() >= {**config, "batch_size": 50, "epochs": 1}.items()
    assert header.backbone.root.seed == 4
    assert header.preprocessing.size == (3, 16, 16)
    settings = json.loads(Path("r/config.json").read_text())
    assert settings["config"]["workers"] == 1


def test_settings_by_timm_s_names_reach_the_training_and_the_card_s_command(sparsetune):
    options = "--mixup 0.2 --cutmix 1.0 --aa rand-m5-mstd0.5 --reprob 0.25 --grad-accum-steps 2"
    options += " --layer-decay 0.75 --model-ema --model-ema-decay 0.9"
    result = sparsetune(SHORT, *options.split(), "--epochs", 1, "--out", "r")
    said = "rand-m5-mstd0.5, reprob 0.25, mixup 0.2, cutmix 1, layer_decay 0.75, 2 batches a step, averaged"
    assert said in result.err
    config = json.loads(Path("r/config.json").read_text())["config"]
    assert (config["aa"], config["cutmix"], config["model_ema"]) == ("rand-m5-mstd0.5", 1.0, True)
    made = words(st.FitConfig(**config))
    assert all(word in made for word in options.split())


def test_settings_that_do_not_go_together_are_told_at_once(sparsetune):
    said = sparsetune(SHORT, "--mixup", -1, "--aa", "banana", "--cutmix", 1, "--views", 2, code=2).err
    assert all(words in said for words in ("mixup -1.0 is not", "aa 'banana' is not", "cutmix makes new"))
    assert not list(Path().iterdir())


def test_learns_low_rank_sums(sparsetune):
    sparsetune("fit --model test_resnet --rank 2 --train-limit 100 --test-limit 20 --epochs 1 --out r")
    sparsetune("verify r/delta.safetensors")
    assert "rank 2, norm, head" in sparsetune("info r/delta.safetensors").out
    sparsetune("merge r/delta.safetensors -o whole.safetensors")
    assert {*load_file("whole.safetensors")} == {*st.create("test_resnet", num_classes=10).state_dict()}


def test_tells_the_accuracy_of_the_file_as_it_is_kept(sparsetune):
    """A file in fewer bits scores otherwise than the model in memory did; ``eval`` sees the file alone."""
    result = sparsetune(SHORT, "--dtype", "int8")
    delta = Path("runs/test_resnet-digits-f0.25-int8-s0/delta.safetensors")
    record = json.loads((delta.parent / "metrics.jsonl").read_text().splitlines()[-1])
    found = sparsetune("eval", delta, "--test-limit", 50, "--json").json["members"][0]
    told = st.inspect(delta).training["result"]
    assert told["test_loss"] == pytest.approx(found["nll"], rel=1e-6)
    assert told["test_loss"] != record["test_loss"]
    assert told["train_loss"] == record["train_loss"]
    assert f"loss {found['nll']:.3f})" in result.out
    assert " KiB as int8, " in result.out
    value = sparsetune(SHORT, "--dtype", "int8", "--resume", "--json").json
    assert value["result"] == told
    assert value["delta_bytes"] < 0.3 * 4 * value["learned_parameters"]


@pytest.mark.slow
def test_compiles(sparsetune):
    assert sparsetune(SHORT, "--compile", "--json").json["finished"]


@pytest.mark.slow
def test_the_command_of_the_contract(sparsetune):
    torch.set_num_threads(1)
    value = sparsetune("fit --model wrn28_4 --fraction 0.1 --epochs 1 --json").json
    assert value["epochs"][0]["test_top1"] > 0.3
    assert value["delta"] == "runs/wrn28_4-digits-f0.1-s0/delta.safetensors"


def test_arguments_of_the_model_reach_it_and_the_file(sparsetune):
    words = "fit --model test_vit --img-size 32 --in-chans 1 --fraction .1 --train-limit 20 --test-limit 10"
    kwargs = ["--model-kwargs", "qkv_bias=False init_values=1e-5", "--model-kwargs", "global_pool=avg"]
    result = sparsetune(words, "--epochs", 1, "--lr", 0.01, "--out", "r", *kwargs)
    header = st.inspect("r/delta.safetensors")
    assert header.kwargs == {
        "img_size": 32,
        "in_chans": 1,
        "qkv_bias": False,
        "init_values": 1e-5,
        "global_pool": "avg",
    }
    assert header.preprocessing.size == (1, 32, 32)
    _, first, second, third, fourth = result.err.splitlines()[:5]
    assert first.startswith("learning 27,850 of ")
    assert second == "learning from 32x32 grey pictures, mean 0.3057, std 0.376, bilinear (the data's own)"
    assert third.startswith("learning with momentum, lr 0.01")
    assert fourth.startswith("learning only the queries of 6 attention layers, ")
    sparsetune("verify r/delta.safetensors")


def test_words_that_are_no_arguments_of_a_model_are_refused(refused):
    words = "fit --model wrn28_4 --fraction .1 --model-kwargs"
    assert refused(words, "depth").startswith("--model-kwargs 'depth' is not KEY=VALUE, such as depth=16.")
    assert refused(words, "in_chans=1", "--in-chans", 1) == (
        "the model argument 'in_chans' is given twice; keep one."
    )
    assert "wrn28_4 cannot be built with {'banana': 1" in refused(words, "banana=1")
    assert "'pretrained' cannot be passed to wrn28_4; leave it out" in refused(words, "pretrained=True")
    assert "of wrn28_4 cannot stand in a delta file" in refused(words, "depth={1, 2}")


def test_libraries_warn_nobody_and_sparsetune_does_once(sparsetune, recwarn):
    result = sparsetune(
        "fit --model torchvision/googlenet --filters 0 --no-norm --size 32 --train-limit 10 --test-limit 10",
        *["--epochs", "2", "-b", "10", "--lr", "0", "--out", "r"],
    )
    assert [line.split()[0] for line in result.err.splitlines()] == ["learning"] * 4 + ["epoch"] * 2
    assert not recwarn.list
