"""Predictions that are averaged over views, against torchvision's crops and a loop by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.transforms import functional as F

from sparsetune.errors import ConfigError
from sparsetune.train.metrics import Views, predict, probabilities_of

X = torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = range(4)
"""The places of torchvision's ``five_crop``."""


def crop(which: int) -> torch.Tensor:
    return F.resize(F.five_crop(X, (14, 21))[which], (16, 24), antialias=False)


def test_the_picture_comes_first_then_its_mirror_image_then_crops():
    wanted = [X, F.hflip(X)]
    for corners in ((False, True, False, True), (True, False, True, False)):
        for which, flipped in zip((TOP_LEFT, BOTTOM_RIGHT, TOP_RIGHT, BOTTOM_LEFT), corners, strict=True):
            wanted.append(F.hflip(crop(which)) if flipped else crop(which))
    for count in range(11):
        views = [*Views(count).of(X)]
        assert len(views) == max(1, count)
        for view, other in zip(views, wanted, strict=False):
            torch.testing.assert_close(view, other)


def test_without_mirror_images_there_are_five():
    views = [*Views(5, mirrored=False).of(X)]
    for view, which in zip(views[1:], (TOP_LEFT, BOTTOM_RIGHT, TOP_RIGHT, BOTTOM_LEFT), strict=True):
        torch.testing.assert_close(view, crop(which))
    assert torch.equal(views[0], X)


@pytest.mark.parametrize(("count", "mirrored"), [(-1, True), (11, True), (6, False)])
def test_there_are_no_more(count, mirrored):
    with pytest.raises(ConfigError, match=rf"tta {count} cannot be met; a picture has 0 to "):
        Views(count, mirrored)


def test_probabilities_are_the_mean_over_views():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 24, 4), nn.Dropout(0.5))
    labels = torch.tensor([3, 0, 1])
    for count in (0, 1, 2, 7):
        found, told = predict(net, [(X[:2], labels[:2]), (X[2:], labels[2:])], Views(count))
        assert net.training
        net.eval()
        with torch.no_grad():
            wanted = torch.stack([net(view).softmax(1) for view in Views(count).of(X)]).mean(0)
        torch.testing.assert_close(found.float(), wanted)
        torch.testing.assert_close(probabilities_of(net, X, Views(count)), found)
        assert torch.equal(told, labels)
        net.train()
    none, told = predict(net, [])
    assert len(none) == len(told) == 0
