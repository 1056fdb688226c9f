from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

FIT = "fit --model test_resnet --train-limit 20 --test-limit 10 --epochs 1"
TENTH = f"{FIT} --fraction 0.1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--fraction 1.5", "fraction 1.5 is not between 0 and 1; 0.1 learns 10 %"),
        ("--fraction nan", "fraction nan is not between 0 and 1"),
        ("--rank 0", "rank 0 is not a whole number of 1 or more"),
        ("--filters 3 --fraction .1", "fraction 0.1 and filters 3 each say"),
        ("--filters -1", "filters -1 is not a whole number of 0 or more."),
        ("--filters 0 --no-norm --no-head", "nothing is left to learn"),
        ("--fraction .1 --model rsnet18", "model 'rsnet18' is unknown; did you mean resnet18"),
        ("--fraction .1 --model torchvision/resnet17", "did you mean torchvision/resnet18"),
        ("--fraction .1 --layers nosuch", "layers pattern 'nosuch' is unknown;"),
        ("--fraction .1 --layers layer9", "layers pattern 'layer9' is unknown; did you mean layer"),
        ("--fraction .1 --layers fc", "layers pattern 'fc' covers only the classifier"),
        ("--fraction .1 --data cifr10", "data set 'cifr10' is unknown; did you mean cifar10"),
        ("--fraction .1 --data ./nosuch", "'nosuch' is not a folder"),
        ("--fraction .1 --data hf://x", "data source 'hf://x' is not valid"),
        ("--fraction .1 --opt adamww", "optimiser 'adamww' is unknown; did you mean adamw"),
        ("--fraction .1 --opt adahessian", "try another size, batch size or optimiser."),
        ("--fraction .1 --sched cosin", "sched 'cosin' is not one of cosine, tanh, poly, multistep, none."),
        ("--fraction .1 --amp int8", "amp 'int8' is not one of bf16, fp16."),
        ("--fraction .1 --dim depth", "dim 'depth' is not one of out, in, height, width."),
        ("--fraction .1 --frozen ice", "frozen 'ice' is not one of random, zero, pretrained."),
        (
            "--fraction .1 --frozen pretrained",
            "frozen='pretrained' was asked for, but the backbone is seed 0",
        ),
        ("--log tensorbord", "log 'tensorbord' is not one of tensorboard, wandb, mlflow, trackio."),
        ("--fraction .1 --epochs 0", "epochs 0 is not a whole number of 1 or more."),
        ("--fraction .1 --batch-size 0", "batch_size 0 is not a whole number of 1 or more."),
        ("--fraction .1 --workers -1", "workers -1 is not a whole number of 0 or more."),
        ("--fraction .1 --seed -1", "seed -1 is not a whole number of 0 or more."),
        ("--fraction .1 --backbone-seed -1", "-1"),
        ("--fraction .1 --lr nan", "lr nan is not a number of 0 or more, or auto."),
        ("--fraction .1 --lr 1e30", "the loss became nan in epoch 1; lower lr 1e+30"),
        ("--fraction .1 --size 0", "size (3, 0, 0) is not valid"),
        ("--fraction .1 --size 99999", "sides from 1 to 4096"),
        ("--fraction .1 --model test_vit --size 24", "cannot learn from a batch of 20x3x24x24 ("),
        ("--fraction .1 --train-limit 0", "train_limit 0 cannot be met; expected 1 to 1438"),
        ("--fraction .1 --train-limit 99999", "train_limit 99999 cannot be met; expected 1 to 1438"),
        ("--fraction .1 --test-limit 99999", "test_limit 99999 cannot be met; expected 1 to 359"),
        ("--fraction .1 --time-budget soon", "duration 'soon' is not a number with s, m or h"),
        ("--fraction .1 --time-budget -3s", "duration '-3s' is not a number"),
        ("--fraction .1 --device banana", "device 'banana' is unknown; say cpu, cuda"),
        ("--fraction .1 --init-from nosuch.safetensors", "nosuch.safetensors cannot be read"),
        ("--fraction .1 --model wrn28_4 --pretrained", "wrn28_4 has no pretrained weights"),
        ("--fraction .1 --out /proc/x", "cannot write /proc/x/config.json"),
    ],
)
def test_fit_refuses_in_one_sentence_and_leaves_nothing(refused, options, words):
    assert words in refused(f"{FIT} {options}")
    assert not list(Path().glob("runs/*"))


def test_all_problems_are_listed_at_once(sparsetune):
    options = "--dim depth --fraction 2 --epochs 0 --lr -1 --sched x --amp y --opt z --time-budget soon"
    lines = sparsetune(f"{FIT} {options}", code=2).err.splitlines()
    assert lines[0].startswith("error: duration 'soon'")
    assert [line.split()[0] for line in lines[1:]] == [
        "fraction",
        "dim",
        "epochs",
        "lr",
        "sched",
        "amp",
        "optimiser",
    ]
    assert all(line.startswith("       ") for line in lines[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
@pytest.mark.parametrize("command", ["fit", "eval", "predict", "bench"])
def test_cuda_where_there_is_none(refused, deltas, command):
    words = {
        "fit": [TENTH],
        "eval": ["eval", deltas[0]],
        "predict": ["predict", deltas[0], "x.png"],
        "bench": ["bench", "--model", "test_resnet", "--fraction", 0.1],
    }
    assert "device 'cuda' cannot be used here (" in refused(*words[command], "--device", "cuda")


def test_usage_errors_exit_with_2(sparsetune):
    for words in (["nosuch"], ["fit", "--nosuch"], ["fit", "--fraction", "x"], ["eval"], ["plan"]):
        assert "Usage: " in sparsetune(*words, code=2).err


@pytest.mark.parametrize(
    "words",
    [
        ["info", "nosuch"],
        ["eval", "nosuch"],
        ["predict", "nosuch", "x.png"],
        ["merge", "nosuch", "-o", "m.safetensors"],
        ["info", "."],
    ],
)
def test_a_missing_delta(refused, words):
    assert "is not a file; pass a delta" in refused(*words)
    refused("verify", "nosuch", code=1)


def test_a_stranger_is_no_delta(refused):
    Path("text.safetensors").write_text("hello")
    assert "text.safetensors" in refused("info", "text.safetensors")


def test_a_folder_without_pictures(refused):
    Path("empty/cats").mkdir(parents=True)
    assert "holds no images" in refused(TENTH, "--data", "empty/cats")
    assert "class folder 'empty/cats' holds no images" in refused(TENTH, "--data", "empty")


def test_a_corrupt_picture_is_named(refused, pictures, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "copy")
    damaged = folder / "class 3" / "no 7.jpg"
    damaged.write_bytes(damaged.read_bytes()[:200])
    options = "fit --model test_resnet --fraction .1 --epochs 1 --data"
    assert "class 3/no 7.jpg' cannot be decoded" in refused(options, folder)
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_predict_names_the_picture_that_it_cannot_read(refused, deltas):
    assert "image 'no.jpg' cannot be decoded (No such file" in refused("predict", deltas[0], "no.jpg")
    Path("text.jpg").write_text("hello")
    assert "image 'text.jpg' cannot be decoded (it is none of" in refused("predict", deltas[0], "text.jpg")
    Image.new("I;16", (8, 8)).save("deep.png")
    assert "image 'deep.png'" in refused("predict", deltas[0], "deep.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--test-limit 0", "test_limit 0"),
        ("-b 0", "batch_size 0"),
        ("-j -1", "workers -1"),
        ("--data nosuch", "data set 'nosuch' is unknown"),
        ("--device banana", "device 'banana' is unknown"),
    ],
)
def test_eval_refuses_in_one_sentence(refused, deltas, options, words):
    assert words in refused("eval", deltas[0], *options.split())


def test_merge_to_an_impossible_place(refused, deltas):
    assert "cannot write /proc/x/m.safetensors" in refused("merge", deltas[0], "-o", "/proc/x/m.safetensors")


@pytest.mark.parametrize("words", ["plan --model nosuch --fraction .1", "bench --model nosuch --fraction .1"])
def test_an_unknown_model_elsewhere(refused, words):
    assert "model 'nosuch' is unknown" in refused(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("plan --model test_resnet", "nothing says how much to learn"),
        ("plan --model test_resnet --fraction 2", "fraction 2.0 is not between"),
        ("bench --model test_resnet", "nothing says how much to learn"),
        ("bench --model test_vit --fraction .1 --size 24", "the model cannot take pictures of 3x24x24 ("),
    ],
)
def test_other_settings_that_cannot_be(refused, words, told):
    assert told in refused(words)
