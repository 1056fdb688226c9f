"""Plain chains of convolutions for small images: VGG-19, with and without batch norm, and AlexNet."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from sparsetune.backbone.models._cifar import CifarNet, build, check_count, default_cfg
from sparsetune.errors import ConfigError

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""Filters of each stage's 3x3 convolutions, and how many there are."""

default_cfgs = generate_default_cfgs(
    {
        name: default_cfg("features.0", "classifier", 1, paper_ids="arXiv:1409.1556")
        for name in ("vgg19_cifar", "vgg19_bn_cifar")
    }
    | {"alexnet_cifar": default_cfg("features.0", "classifier", 1, paper_ids="arXiv:1404.5997")}
)


class PlainNet(CifarNet):
    """A trunk that is one chain named ``features``: convolutions, ReLUs, and 2x2 max pooling behind ReLUs.

    A pooling rounds sides up (``ceil_mode``), so that a side of 1 stays 1. For 32x32 images every pooled side
    is even and nothing changes by it. Smaller images, down to 8x8, are 1x1 early and pass the remaining
    poolings as they are; of an odd side the last row and column are kept, not dropped.
    """

    head = "classifier"
    flat = True

    features: nn.Sequential

    def _finish(self, num_classes: int, global_pool: str, head_drop: float = 0.0) -> None:
        self.feature_info = []
        reduction = 1
        for i, layer in enumerate(self.features):
            if isinstance(layer, nn.Conv2d):
                self.num_features = layer.out_channels
                reduction *= layer.stride[0]
            elif isinstance(layer, nn.MaxPool2d):
                stage = {"num_chs": self.num_features, "reduction": reduction, "module": f"features.{i - 1}"}
                self.feature_info.append(stage)
                reduction *= 2
        super()._finish(num_classes, global_pool, head_drop)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse ``enable``: a plain chain has no layers worth recomputing.

        Raises:
            ConfigError: When ``enable`` is set.
        """
        if enable:
            raise ConfigError(
                f"{type(self).__name__} has no gradient checkpointing; leave it off, or use a wrn."
            )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of parameter groups: the first convolution, then one group a layer."""
        return {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)`` to features ``(N, num_features, H', W')``."""
        out: Tensor = self.features(x)
        return out


def pool2x2() -> nn.MaxPool2d:
    """Return the pooling of a :class:`PlainNet`."""
    return nn.MaxPool2d(2, ceil_mode=True)


class VGG19(PlainNet):
    """VGG-19 (Simonyan and Zisserman, 2015) with one linear layer, as the reference implementation has it.

    Sixteen 3x3 convolutions with biases in five stages, each followed by 2x2 max pooling; see
    :class:`PlainNet` for images that are not 32x32.

    Args:
        norm: Whether batch norm follows each convolution.
        width: Factor on the number of filters of each layer.
        num_classes: Class count; 0 for no classifier.
        in_chans: Image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout before the classifier.
    """

    stages = len(STAGES)

    def __init__(
        self,
        norm: bool = False,
        width: float = 1.0,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans)
        trunk: list[nn.Module] = []
        chs = in_chans
        for usual, count in STAGES:
            filters = round(usual * width)
            check_count("filters", filters)
            for _ in range(count):
                trunk.append(nn.Conv2d(chs, filters, 3, padding=1))
                trunk.extend([nn.BatchNorm2d(filters)] if norm else [])
                trunk.append(nn.ReLU(inplace=True))
                chs = filters
            trunk.append(pool2x2())
        self.features = nn.Sequential(*trunk)
        self._finish(num_classes, global_pool, drop_rate)

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


class AlexNet(PlainNet):
    """AlexNet (Krizhevsky, 2014) with one linear layer, as the reference implementation has it.

    An 11x11 convolution of stride 4, a 5x5 and three 3x3, with 64, 192, 384, 256 and 256 filters and biases;
    2x2 max pooling after the first, second and last; see :class:`PlainNet` for images that are not 32x32.

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
