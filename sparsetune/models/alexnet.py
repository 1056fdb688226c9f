"""AlexNet for small images."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from sparsetune.models._cifar import build, default_cfg
from sparsetune.models.vgg import PlainNet, pool2x2

default_cfgs = generate_default_cfgs(
    {"alexnet_cifar": default_cfg("features.0", "classifier", 1, paper_ids="arXiv:1404.5997")}
)


class AlexNet(PlainNet):
    """AlexNet (Krizhevsky, 2014) with one linear layer, as the reference implementation has it.

    An 11x11 convolution of stride 4, a 5x5 and three 3x3, with 64, 192, 384, 256 and 256 filters and biases;
    2x2 max pooling after the first, second and last; see :class:`~sparsetune.models.vgg.PlainNet` for images
    that are not 32x32.

    Convolutions start at ``N(0, 2 / (kh * kw * O))`` as in the other networks (the reference leaves them at
    torch's smaller default); their biases and the classifier start at torch's default.

    Args:
        num_classes: Class count; 0 for no classifier.
        in_chans: Image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
    """

    stages = 3

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, global_pool: str = "avg", drop_rate: float = 0.0
    ) -> None:
        super().__init__(in_chans)
        self.features = nn.Sequential(
            nn.Conv2d(in_chans, 64, 11, stride=4, padding=5),
            nn.ReLU(inplace=True),
            pool2x2(),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            pool2x2(),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            pool2x2(),
        )
        self._finish(num_classes, global_pool, drop_rate)


@register_model
def alexnet_cifar(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet for 32x32 images."""
    return build(AlexNet, "alexnet_cifar", pretrained, **kwargs)
