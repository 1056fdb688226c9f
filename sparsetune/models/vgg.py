"""VGG-19 for small images, with and without batch norm."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from sparsetune.models._cifar import PlainNet, build, default_cfg, pool2x2

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Filters of each stage's 3x3 convolutions, and how many there are."""

default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("features.0", "classifier", 1, paper_ids="arXiv:1409.1556")
        for name in ("vgg19_cifar", "vgg19_bn_cifar")
    }
)


class VGG19(PlainNet):
    """VGG-19 (Simonyan and Zisserman, 2015) with one linear layer, as the paper's reference implementation has it.

    Sixteen 3x3 convolutions with biases in five stages, each stage followed by 2x2 max pooling. See
    :class:`~sparsetune.models._cifar.PlainNet` for small images.

    Args:
        norm: Whether batch norm follows each convolution.
        num_classes: Class count; 0 for no classifier.
        in_chans: Image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
    """

    stages = len(STAGES)

    def __init__(
        self,
        norm: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        trunk: list[nn.Module] = []
        chs = in_chans
        for filters, count in STAGES:
            for _ in range(count):
                trunk.append(nn.Conv2d(chs, filters, 3, padding=1))
                trunk.extend([nn.BatchNorm2d(filters)] if norm else [])
                trunk.append(nn.ReLU(inplace=True))
                chs = filters
            trunk.append(pool2x2())
        super().__init__(trunk, num_classes, in_chans, global_pool, drop_rate)

    def init_trunk(self) -> None:
        """Draw weights as every network does, and set biases to zero."""
        super().init_trunk()
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def init_head(self, linear: nn.Linear) -> None:
        """Draw the weight from ``N(0, 0.01 ** 2)`` and set the bias to zero."""
        nn.init.normal_(linear.weight, 0.0, 0.01)
        nn.init.zeros_(linear.bias)


@register_model
def vgg19_cifar(pretrained: bool = False, **kwargs: Any) -> VGG19:
    """VGG-19 for 32x32 images, without batch norm."""
    return build(VGG19, "vgg19_cifar", pretrained, **{"norm": False, **kwargs})


@register_model
def vgg19_bn_cifar(pretrained: bool = False, **kwargs: Any) -> VGG19:
    """VGG-19 for 32x32 images, with batch norm."""
    return build(VGG19, "vgg19_bn_cifar", pretrained, **{"norm": True, **kwargs})
