"""What the CIFAR networks share: pooling and classifier with timm's methods, initial values, registration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, resolve_pretrained_cfg
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from sparsetune.errors import BackboneError, ConfigError

Net = TypeVar("Net", bound="CifarNet")


class CifarNet(nn.Module):
    """A trunk (``forward_features``), global pooling, and one linear classifier.

    A subclass builds its trunk, sets ``num_features`` and ``feature_info``, and then calls ``_finish``.

    Attributes:
        head: Name of the classifier's attribute.
        stages: Number of entries of ``feature_info``.
        flat: Whether those stages lie inside one sequential trunk.
        num_features: Channels of the trunk's output.
        num_classes: Class count; 0 for none.
        head_hidden_size: Length of the classifier's input.
        feature_info: Channels, total stride and module of each stage: what ``features_only=True`` returns.
    """

    head: ClassVar[str]
    stages: ClassVar[int]
    flat: ClassVar[bool] = False

    num_features: int
    num_classes: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        check_count("in_chans", in_chans)
        self.in_chans = in_chans
        self.grad_checkpointing = False

    def _finish(self, num_classes: int, global_pool: str, head_drop: float = 0.0) -> None:
        self.init_trunk()
        self._set_head(num_classes, global_pool)
        self.head_drop = nn.Dropout(head_drop)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        check_count("num_classes", num_classes, least=0)
        self.num_classes = num_classes
        pool, classifier = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.global_pool = pool
        self.head_hidden_size = self.num_features * pool.feat_mult()
        if isinstance(classifier, nn.Linear):
            self.init_head(classifier)
        setattr(self, self.head, classifier)

    def init_trunk(self) -> None:
        """Draw each convolution's weight ``(O, I, kh, kw)`` from ``N(0, 2 / (kh * kw * O))`` (He, fan-out).

        Batch norm starts at weight 1 and bias 0, which is torch's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                height, width = module.kernel_size
                nn.init.normal_(module.weight, 0.0, (2 / (height * width * module.out_channels)) ** 0.5)

    def init_head(self, linear: nn.Linear) -> None:
        """Set the classifier's initial values; unless overridden they are torch's default."""

    def get_classifier(self) -> nn.Module:
        """Return the classifier: a linear layer, or an identity where there are no classes."""
        return self.get_submodule(self.head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one on the trunk's device and in its dtype.

        Args:
            num_classes: The new class count; 0 removes the classifier.
            global_pool: ``avg``, ``max``, ``avgmax``, ``catavgmax`` or ``""`` (none); ``None`` keeps it.
        """
        self._set_head(num_classes, str(self.global_pool.pool_type) if global_pool is None else global_pool)
        trunk = next(self.parameters())
        self.get_classifier().to(trunk.device, trunk.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each residual or dense layer in the backward pass, for less memory at more time."""
        self.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)`` to features ``(N, num_features, H', W')``."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits ``(N, num_classes)``.

        Args:
            x: Result of :meth:`forward_features`.
            pre_logits: Stop before the classifier, at ``(N, head_hidden_size)``.
        """
        pooled: Tensor = self.head_drop(self.global_pool(x))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)``, sides of 8 pixels or more, to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def run(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        """Apply ``layers``, each of them checkpointed where that is set."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            for layer in layers:
                x = _checkpointed(layer, x)
            return x
        out: Tensor = layers(x)
        return out


def _checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply ``layer``, recomputed in the backward pass; running statistics move once, not twice."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(layer)

    if torch.compiler.is_compiling():  # moves them once by itself, and takes no contexts
        out: Tensor = checkpoint(layer, x, use_reentrant=False)
    else:
        out = checkpoint(layer, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _running_statistics_kept(layer: nn.Module) -> Iterator[None]:
    norms = [module for module in layer.modules() if isinstance(module, _NormBase)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def default_cfg(first_conv: str, classifier: str, pool_size: int, **extra: Any) -> dict[str, Any]:
    """Return timm's description of a CIFAR-10 network: input, normalisation, names of its ends.

    ``pool_size`` is the side of the feature map that is pooled, for 32x32 images; ``extra`` are further
    entries of timm's ``PretrainedCfg``.
    """
    return {
        "input_size": (3, 32, 32),
        "min_input_size": (3, 8, 8),
        "pool_size": (pool_size, pool_size),
        "num_classes": 10,
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": classifier,
        **extra,
    }


def build(kind: type[Net], name: str, pretrained: bool, **kwargs: Any) -> Net:
    """Build a registered network the way timm does, with arguments of ``kind`` and of timm's builder.

    Raises:
        BackboneError: When ``pretrained`` is set and the caller names no weights in ``pretrained_cfg``.
    """
    weights = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    if pretrained and not (weights.has_weights or weights.state_dict):
        raise BackboneError(
            f"{name} has no pretrained weights; leave pretrained out to start from random ones, "
            "or load a checkpoint of your own."
        )
    features = {"out_indices": tuple(range(kind.stages)), "flatten_sequential": kind.flat}
    net: Net = build_model_with_cfg(kind, name, pretrained, feature_cfg=features, **kwargs)
    return net


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse a ``value`` of setting ``name`` that is not a whole number of ``least`` or more.

    Raises:
        ConfigError: When it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} {value!r} is not a whole number of {least} or more.")


def layers_per_block(depth: int) -> int:
    """Return ``n`` of a network with three equal blocks of two convolutions a layer: ``depth = 6 n + 4``.

    Raises:
        ConfigError: When ``depth`` has not that form; the nearest one that has is named.
    """
    check_count("depth", depth)
    layers, rest = divmod(depth - 4, 6)
    if rest or layers < 1:
        nearest = 6 * max(1, (depth - 1) // 6) + 4
        raise ConfigError(
            f"depth {depth} is not 6 n + 4 with n of 1 or more; the nearest such depth is {nearest}."
        )
    return layers
