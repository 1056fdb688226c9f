from __future__ import annotations

import torch
import torchvision

import sparsetune as st
from sparsetune.backbone.pretrained import known_pictures
from sparsetune.runs.run import run
from sparsetune.runs.settings import Run


def cached(tmp_path, monkeypatch):
    """Torch's cache of published weights, with those of one model as they would lie there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    net = torchvision.models.squeezenet1_1()
    name = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(net.state_dict(), tmp_path / "torch/hub/checkpoints" / name)
    return net


def test_published_weights_of_torchvision_know_their_pictures(tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch)
    form = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
    found = known_pictures(st.create("torchvision/squeezenet1_1", pretrained=True))
    assert found["input_size"] == (3, *form.crop_size * 2)
    assert found["mean"] == tuple(form.mean) == (0.485, 0.456, 0.406)
    assert found["std"] == tuple(form.std) == (0.229, 0.224, 0.225)
    assert found["interpolation"] == "bilinear"
    assert known_pictures(st.create("torchvision/squeezenet1_1")) == {}
    assert known_pictures(st.create("test_resnet"))["input_size"] == (3, 160, 160)


def test_fit_takes_the_pictures_of_published_weights(tmp_path, monkeypatch):
    published = cached(tmp_path, monkeypatch)
    settings = Run(
        model="torchvision/squeezenet1_1",
        learn=st.Learn(fraction=0.1),
        config=st.FitConfig(epochs=1, batch_size=8),
        pretrained=True,
        size=64,
        train_limit=16,
        test_limit=8,
    )
    run(settings, tmp_path / "run")
    header = st.inspect(tmp_path / "run/delta.safetensors")
    assert header.preprocessing.mean == (0.485, 0.456, 0.406)
    assert header.preprocessing.size == (3, 64, 64)
    net = st.load(tmp_path / "run/delta.safetensors", allow_network=True)
    frozen = net.features[0].weight[6:].detach()
    assert torch.equal(frozen, published.features[0].weight[6:].detach())
