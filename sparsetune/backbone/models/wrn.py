"""Wide residual networks for small images."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from sparsetune.backbone.models._cifar import CifarNet, build, check_count, default_cfg, layers_per_block

default_cfgs = generate_default_cfgs(
    {name: default_cfg("conv1", "fc", 8, paper_ids="arXiv:1605.07146") for name in ("wrn28_4", "wrn28_10")}
)


class WideResidual(nn.Module):
    """Pre-activation residual layer: BN, ReLU, 3x3, BN, ReLU, dropout, 3x3, plus the shortcut.

    Where the channel count changes, the shortcut is a 1x1 convolution of the activated input.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False) if in_chs != out_chs else None
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_chs, H, W)`` to ``(N, out_chs, H / stride, W / stride)``."""
        active = self.relu(self.bn1(x))
        residual: Tensor = self.conv2(self.drop(self.relu(self.bn2(self.conv1(active)))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(CifarNet):
    """WRN-``depth``-``width`` (Zagoruyko and Komodakis, 2016), as the reference implementation has it.

    A 3x3 convolution with 16 filters, three blocks of ``(depth - 4) / 6`` residual layers with 16, 32 and 64
    times ``width`` filters, the second and third of stride 2; BN, ReLU, global average, linear classifier.

    Args:
        depth: ``6 n + 4``.
        width: Factor of the filter counts.
        num_classes: Class count; 0 for no classifier.
        in_chans: Image channels.
        global_pool: timm's name of the pooling before the classifier.
        drop_rate: Dropout between the two convolutions of a layer; the reference trains WRN-28-10 with 0.3.

    Raises:
        ConfigError: When a setting is out of range.
    """

    head = "fc"
    stages = 3

    def __init__(
        self,
        depth: int = 28,
        width: int = 4,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans)
        check_count("width", width)
        layers = layers_per_block(depth)
        chs = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(in_chans, chs[0], 3, padding=1, bias=False)
        self.block1 = _block(layers, chs[0], chs[1], 1, drop_rate)
        self.block2 = _block(layers, chs[1], chs[2], 2, drop_rate)
        self.block3 = _block(layers, chs[2], chs[3], 2, drop_rate)
        self.bn1 = nn.BatchNorm2d(chs[3])
        self.relu = nn.ReLU(inplace=True)
        self.num_features = chs[3]
        self.feature_info = [
            {"num_chs": count, "reduction": stride, "module": module}
            for count, stride, module in zip(chs[1:], (1, 2, 4), ("block1", "block2", "relu"), strict=True)
        ]
        self._finish(num_classes, global_pool)

    def init_head(self, linear: nn.Linear) -> None:
        """Set the bias to zero; the weight keeps torch's default."""
        nn.init.zeros_(linear.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of parameter groups: stem, blocks (or their layers)."""
        return {"stem": r"^conv1", "blocks": r"^block(\d+)" if coarse else r"^block(\d+)\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)`` to features ``(N, 64 * width, H / 4, W / 4)``."""
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = self.run(block, x)
        out: Tensor = self.relu(self.bn1(x))
        return out


def _block(layers: int, in_chs: int, out_chs: int, stride: int, drop_rate: float) -> nn.Sequential:
    first = WideResidual(in_chs, out_chs, stride, drop_rate)
    rest = (WideResidual(out_chs, out_chs, 1, drop_rate) for _ in range(layers - 1))
    return nn.Sequential(first, *rest)


@register_model
def wrn28_4(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-4; ``depth`` and ``width`` give any other wide residual network."""
    return build(WideResNet, "wrn28_4", pretrained, **{"depth": 28, "width": 4, **kwargs})


@register_model
def wrn28_10(pretrained: bool = False, **kwargs: Any) -> WideResNet:
    """WRN-28-10; ``depth`` and ``width`` give any other wide residual network."""
    return build(WideResNet, "wrn28_10", pretrained, **{"depth": 28, "width": 10, **kwargs})
