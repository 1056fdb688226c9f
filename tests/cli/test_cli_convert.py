from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image

import sparsetune as st


@pytest.fixture
def adapter(tmp_path):
    """What PEFT saves of a model whose factors are not zero."""
    net = st.create("resnet10t", num_classes=2, seed=0)
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["conv2"], modules_to_save=["fc"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            path = tmp_path / "photos" / split / name / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (40, 40), (name == "cat" and "red") or "blue").save(path)
    return tmp_path / "photos"


def test_an_adapter_becomes_a_delta_that_predicts_and_an_adapter_again(sparsetune, adapter, photos, tmp_path):
    out = tmp_path / "mine.safetensors"
    words = ["convert", adapter, "--model", "resnet10t", "--data", photos, "-o", out, "--json"]
    told = sparsetune(*words).json
    assert told == {
        "out": str(out),
        "bytes": out.stat().st_size,
        "learned_parameters": told["learned_parameters"],
    }
    header = st.inspect(out)
    assert (header.classes, header.num_classes) == (("cat", "dog"), 2)
    assert header.preprocessing is not None
    assert "1.png" in sparsetune("predict", out, photos / "test" / "cat").out
    x = torch.randn(2, 3, 64, 64)
    theirs = PeftModel.from_pretrained(st.create("resnet10t", num_classes=2, seed=0), adapter).eval()
    torch.testing.assert_close(st.load(out)(x), theirs(x), rtol=1e-4, atol=1e-5)

    done = sparsetune("convert", out, "-o", tmp_path / "again")
    assert "PeftModel.from_pretrained" in done.out
    again = PeftModel.from_pretrained(
        st.create("resnet10t", num_classes=2, seed=0), tmp_path / "again"
    ).eval()
    torch.testing.assert_close(again(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_classes_are_counted_in_the_adapter(sparsetune, adapter, tmp_path):
    out = tmp_path / "mine.safetensors"
    sparsetune("convert", adapter, "--model", "resnet10t", "-o", out)
    assert st.inspect(out).num_classes == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{adapter}", "-o", "{tmp}/a.safetensors"], "give --model"),
        (["{tmp}", "--model", "resnet10t", "-o", "{tmp}/a.safetensors"], "no folder of a PEFT adapter"),
        (["{adapter}", "--model", "resnet10t", "-o", "{tmp}/a.bin"], "does not end in .safetensors"),
        (["{adapter}", "--model", "vit_tiny_patch16_224", "-o", "{tmp}/a.safetensors"], "--num-classes"),
        (
            [
                "{adapter}",
                "--model",
                "vit_tiny_patch16_224",
                "--num-classes",
                "2",
                "-o",
                "{tmp}/a.safetensors",
            ],
            "create the model",
        ),
        (["{tmp}/nothing", "-o", "{tmp}/out"], "nothing"),
    ],
)
def test_mistakes_end_in_a_sentence_and_nothing_is_written(refused, words, said, adapter, tmp_path):
    assert said in refused("convert", *(word.format(adapter=adapter, tmp=tmp_path) for word in words))
    assert not (tmp_path / "a.safetensors").exists()
    assert not (tmp_path / "out").exists()
