"""Densely connected networks for small images."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from sparsetune.backbone.models._cifar import CifarNet, build, check_count, default_cfg, layers_per_block

default_cfgs = generate_default_cfgs(
    {"densenet100_12": default_cfg("conv1", "fc", 8, paper_ids="arXiv:1608.06993")}
)


class Bottleneck(nn.Module):
    """Dense layer: BN, ReLU, 1x1, BN, ReLU, 3x3, dropout; the result is appended to the input's channels.

    The 1x1 convolution has four times as many filters as the 3x3, which has ``growth_rate``.
    """

    def __init__(self, in_chs: int, growth_rate: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, 4 * growth_rate, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth_rate)
        self.conv2 = nn.Conv2d(4 * growth_rate, growth_rate, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_chs, H, W)`` to ``(N, in_chs + growth_rate, H, W)``."""
        new = self.conv1(self.relu(self.bn1(x)))
        new = self.drop(self.conv2(self.relu(self.bn2(new))))
        return torch.cat((x, new), 1)


class Transition(nn.Sequential):
    """BN, ReLU, 1x1 convolution to half the channels, 2x2 average: half the side."""

    def __init__(self, in_chs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_chs, in_chs // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2)


class DenseNet(CifarNet):
    """DenseNet-BC (Huang et al., 2017) with compression 0.5, as the reference implementation has it.

    A 3x3 convolution with ``2 * growth_rate`` filters, three dense blocks of ``(depth - 4) / 6`` bottleneck
    layers with a transition after the first and the second, BN, ReLU, global average, linear classifier.

    Args:
        depth: ``6 n + 4``.
        growth_rate: Channels that each layer adds.
        num_classes: Class count; 0 for no classifier.
        in_chans: Image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout after each layer's last convolution.

    Raises:
        ConfigError: When a setting is out of range.
    """

    head = "fc"
    stages = 3

    def __init__(
        self,
        depth: int = 100,
        growth_rate: int = 12,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans)
        check_count("growth_rate", growth_rate)
        layers = layers_per_block(depth)
        added = layers * growth_rate
        chs1 = 2 * growth_rate + added
        chs2 = chs1 // 2 + added
        chs3 = chs2 // 2 + added
        self.conv1 = nn.Conv2d(in_chans, 2 * growth_rate, 3, padding=1, bias=False)
        self.block1 = _block(layers, chs1 - added, growth_rate, drop_rate)
        self.trans1 = Transition(chs1)
        self.block2 = _block(layers, chs2 - added, growth_rate, drop_rate)
        self.trans2 = Transition(chs2)
        self.block3 = _block(layers, chs3 - added, growth_rate, drop_rate)
        self.bn = nn.BatchNorm2d(chs3)
        self.relu = nn.ReLU(inplace=True)
        self.num_features = chs3
        self.feature_info = [
            {"num_chs": chs1, "reduction": 1, "module": "block1"},
            {"num_chs": chs2, "reduction": 2, "module": "block2"},
            {"num_chs": chs3, "reduction": 4, "module": "relu"},
        ]
        self._finish(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of parameter groups: stem, blocks (or their layers), transitions."""
        behind_every_layer = (10**6,)
        fine = [(r"^block(\d+)\.(\d+)", None), (r"^trans(\d+)", behind_every_layer)]
        return {"stem": r"^conv1", "blocks": r"^(?:block|trans)(\d+)" if coarse else fine}

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)`` to features ``(N, num_features, H / 4, W / 4)``."""
        x = self.run(self.block1, self.conv1(x))
        x = self.run(self.block2, self.trans1(x))
        x = self.run(self.block3, self.trans2(x))
        out: Tensor = self.relu(self.bn(x))
        return out


def _block(layers: int, in_chs: int, growth_rate: int, drop_rate: float) -> nn.Sequential:
    return nn.Sequential(
        *(Bottleneck(in_chs + i * growth_rate, growth_rate, drop_rate) for i in range(layers))
    )


@register_model
def densenet100_12(pretrained: bool = False, **kwargs: Any) -> DenseNet:
    """DenseNet-BC, 100 layers, growth rate 12; ``depth`` and ``growth_rate`` give any other."""
    return build(DenseNet, "densenet100_12", pretrained, **{"depth": 100, "growth_rate": 12, **kwargs})
