from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

import sparsetune as st
from sparsetune.data.named import DIGITS_MEAN as MEAN
from sparsetune.data.named import DIGITS_STD as STD
from sparsetune.errors import ConfigError
from sparsetune.runs.run import run
from sparsetune.runs.settings import Run
from sparsetune.train.inputs import pictures_for

QUICK = st.FitConfig(epochs=1, batch_size=16, lr=0.01)


@pytest.fixture(scope="module")
def few() -> st.Data:
    return st.open_data("digits", train_limit=20, test_limit=10)


@pytest.fixture
def whole(tmp_path):
    """Make a whole checkpoint of a model, as timm or torchvision has it."""

    def make(net):
        save_file(
            {k: v.clone().contiguous() for k, v in net.state_dict().items()}, tmp_path / "w.safetensors"
        )
        return tmp_path / "w.safetensors"

    return make


def form(data: st.Data) -> tuple:
    p = data.preprocessing
    return p.size, p.mean, p.std, p.interpolation


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_vit", "test_resnet"])
def test_over_a_timm_checkpoint_all_is_its_own(few, whole, name):
    told = resolve_model_data_config(timm.create_model(name))
    net = st.create(name, num_classes=10, checkpoint=whole(timm.create_model(name, num_classes=10)))
    size, *rest = form(pictures_for(net, few))
    assert rest == [tuple(told["mean"]), tuple(told["std"]), told["interpolation"]]
    assert size == told["input_size"]
    assert not pictures_for(net, few).preprocessing.crops, "thumbnails are taken whole"
    assert pictures_for(net, few).decided == "the model's"


def test_over_a_torchvision_checkpoint_they_are_those_of_its_weights(few, whole):
    told = torchvision.models.EfficientNet_B1_Weights.DEFAULT.transforms()
    path = whole(torchvision.models.efficientnet_b1(num_classes=10))
    net = st.create("torchvision/efficientnet_b1", num_classes=10, checkpoint=path)
    expected = (3, 240, 240), tuple(told.mean), tuple(told.std), told.interpolation.value
    assert form(pictures_for(net, few)) == expected


def test_over_random_values_and_over_the_papers_networks_the_datas_own_stay(few, whole):
    own = (3, 8, 8), MEAN, STD, "bilinear"
    for net in (
        st.create("tf_efficientnet_lite0", num_classes=10),
        st.create("torchvision/squeezenet1_1", num_classes=10),
        st.create("wrn28_4", num_classes=10, depth=10, width=1),
        st.adapt_(st.create("test_resnet", num_classes=10), st.Learn(fraction=0.1, frozen="zero")),
    ):
        assert form(pictures_for(net, few)) == own
        assert pictures_for(net, few).decided == "the data's own"
    path = whole(st.create("wrn28_4", num_classes=10, depth=10, width=1))
    net = st.create("wrn28_4", num_classes=10, depth=10, width=1, checkpoint=path)
    assert form(pictures_for(net, few)) == own


def test_a_given_size_and_given_preprocessing_stay(few, whole):
    net = st.create(
        "test_vit", num_classes=10, checkpoint=whole(timm.create_model("test_vit", num_classes=10))
    )
    sized = st.open_data("digits", size=32)
    assert pictures_for(net, sized).preprocessing.size == (3, 32, 32)
    assert pictures_for(net, sized).preprocessing.mean == (0.5, 0.5, 0.5)
    given = replace(few, preprocessing=st.Preprocessing((3, 12, 12), (0.1,) * 3, (0.2,) * 3, "nearest"))
    assert pictures_for(net, given) == replace(given, decided="as you gave it")
    assert pictures_for(net, pictures_for(net, few)) == pictures_for(net, few)


def test_grey_models_get_grey_pictures_and_the_mean_of_the_statistics(few):
    net = st.create("test_resnet", num_classes=10, in_chans=1)
    data = replace(
        few, default=(p := st.Preprocessing((3, 8, 8), (0.1, 0.2, 0.6), (0.2, 0.3, 0.4))), preprocessing=p
    )
    found = pictures_for(net, data).preprocessing
    assert found.size == (1, 8, 8)
    assert (*found.mean, *found.std) == pytest.approx((0.3, 0.3))
    st.fit(st.adapt_(net, st.Learn(fraction=0.1)), few, QUICK)
    with pytest.raises(ConfigError, match="the model takes 4 channels, and pictures have 1 or 3"):
        pictures_for(st.create("test_resnet", in_chans=4), few)


def test_a_model_built_for_a_size_gets_it(few):
    net = st.create("test_vit", num_classes=10, img_size=48, in_chans=1)
    data = pictures_for(net, few)
    assert data.preprocessing.size == (1, 48, 48)
    assert data.augment.pad == 6  # an eighth of the side


def test_python_trains_by_the_models_and_the_file_says_so(few, whole, tmp_path):
    """A step of ``fit`` equals one on pictures made by hand with the model's own values."""
    path = whole(timm.create_model("test_efficientnet", num_classes=10))
    told = resolve_model_data_config(timm.create_model("test_efficientnet"))
    hand = st.Preprocessing(
        told["input_size"], tuple(told["mean"]), tuple(told["std"]), told["interpolation"]
    )
    nets = [st.create("test_efficientnet", num_classes=10, checkpoint=path) for _ in range(2)]
    for net, data in zip(nets, (few, replace(few, preprocessing=hand)), strict=True):
        st.fit(st.adapt_(net, st.Learn(fraction=0.1)), data, QUICK)
    one, two = (net.state_dict() for net in nets)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    for given in ({}, {"preprocessing": few.preprocessing, "classes": few.classes}):
        st.save(nets[0], tmp_path / "a.safetensors", **given)
        header = st.inspect(tmp_path / "a.safetensors")
        assert header.preprocessing == hand
        assert header.classes == few.classes
    other = st.Preprocessing((3, 9, 9), (0.5,) * 3, (0.5,) * 3)
    st.save(nets[0], tmp_path / "a.safetensors", preprocessing=other, classes=list("abcdefghij"))
    assert st.inspect(tmp_path / "a.safetensors").preprocessing == other
    assert st.inspect(tmp_path / "a.safetensors").classes == tuple("abcdefghij")


def test_a_loaded_model_goes_on_with_the_pictures_that_it_knows(few, tmp_path):
    own = st.Preprocessing((3, 12, 12), (0.1,) * 3, (0.2,) * 3, "bicubic")
    net = st.adapt_(st.create("test_resnet", num_classes=10), st.Learn(fraction=0.1))
    st.save(net, tmp_path / "a.safetensors", preprocessing=own)
    again = st.load(tmp_path / "a.safetensors")
    assert pictures_for(again, few).preprocessing == own
    assert pictures_for(again, st.open_data("digits", size=10)).preprocessing == replace(
        own, size=(3, 10, 10)
    )
    st.save(again, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    start = Run(
        model="test_resnet",
        learn=st.Learn(fraction=0.1),
        config=QUICK,
        train_limit=20,
        test_limit=10,
        init_from=str(tmp_path / "a.safetensors"),
    )
    seen = []
    run(start, tmp_path / "r", started=lambda start: seen.append(start.data))
    assert seen[0].preprocessing == own
    assert st.inspect(tmp_path / "r/delta.safetensors").preprocessing == own


def test_photos_keep_their_aspect_ratio_over_trained_weights(whole, tmp_path):
    for number in range(12):
        place = tmp_path / "photos" / ("train" if number < 8 else "test") / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300 + number, 200), (number * 20, 90, 30)).save(place / f"{number}.png")
    data = st.open_data(str(tmp_path / "photos"))
    net = st.create("test_resnet", num_classes=2, checkpoint=whole(timm.create_model("test_resnet")))
    told = resolve_model_data_config(net)
    found = pictures_for(net, data).preprocessing
    assert (found.size, found.crop_pct, found.crop_mode) == (
        told["input_size"],
        told["crop_pct"],
        told["crop_mode"],
    )
    assert pictures_for(st.create("test_resnet", num_classes=2), data).preprocessing.crop_mode == "squash"
