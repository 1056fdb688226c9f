"""All settings of a run, and the model and data that they stand for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from sparsetune.backbone import create
from sparsetune.data import Data, open_data
from sparsetune.delta import fill, inspect, is_delta
from sparsetune.errors import ConfigError
from sparsetune.sliced import Taught, adapt_, teach
from sparsetune.spec import FitConfig, Learn, Precision, check_precision
from sparsetune.train import augmented, parted, pictures_for, recipe_for, settled


@dataclass(frozen=True, kw_only=True)
class Run:
    """All settings of one run.

    Attributes:
        model: Name of the model.
        model_kwargs: Arguments of its constructor, plain JSON values.
        budget: Most bytes of the delta, for :func:`~sparsetune.runs.choosing.choose` to spend on layers.
        dtype: ``bf16``, ``fp16`` or ``int8`` to save the delta in fewer bits; ``None`` for all of them.
        learn: Which slices are learned; with a budget, what is learned beside them.
        config: How to train.
        data: Name or path of the data.
        size: Height and width of pictures; ``None`` takes the data's or, where it must be, the model's.
        classes: Use only the first so many classes.
        train_limit: Use so many training pictures, the same number of each class.
        test_limit: Likewise for test pictures.
        backbone_seed: Seed of the backbone.
        pretrained: Stand on published weights instead.
        init_from: A whole checkpoint to stand on, or a delta over the same backbone to start from.

    Raises:
        ConfigError: When there is no such ``dtype``.
    """

    model: str
    learn: Learn
    config: FitConfig
    data: str = "digits"
    size: int | None = None
    classes: int | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    backbone_seed: int = 0
    pretrained: bool = False
    init_from: str | None = None
    model_kwargs: dict[str, Any] | None = None
    budget: int | None = None
    dtype: Precision | None = None

    def __post_init__(self) -> None:
        check_precision(self.dtype)

    @property
    def name(self) -> str:
        """A short name from the settings that matter most, for a folder."""
        learn = self.learn
        letters = {"fraction": "f", "filters": "n", "rank": "r", "dimensions": "d"}
        size = "".join(
            letters.get(kind, kind) + ("" if learn.by_layer else f"{n:g}")
            for kind, n in learn.amounts.items()
        )
        size = size if self.budget is None else f"{self.budget}B"
        pieces = [self.model, Path(self.data).name or "data", size]
        pieces += [str(learn.dim)] if learn.dim != "out" else []
        pieces += [f"p{learn.projection_seed}"] if learn.projection_seed else []
        pieces += ["-".join(learn.layers)] if learn.layers else []
        pieces += ["nonorm"] * (not learn.norm) + ["nohead"] * (not learn.head)
        pieces += [learn.frozen] if learn.frozen else []
        pieces += [self.dtype] if self.dtype and self.budget is None else []
        pieces.append(f"s{self.config.seed}")
        safe = ("".join(c if c.isalnum() or c in "._-" else "_" for c in piece) for piece in pieces)
        return "-".join(safe)[:150]

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**asdict(self), "learn": self.learn.to_json(), "config": self.config.to_json()}


def opened(settings: Run) -> Data:
    """Open the data of a run, in its own form."""
    return open_data(
        settings.data,
        size=settings.size,
        classes=settings.classes,
        train_limit=settings.train_limit,
        test_limit=settings.test_limit,
    )


def _delta(settings: Run) -> str | None:
    """The delta to start from."""
    delta = settings.init_from if settings.init_from and is_delta(settings.init_from) else None
    if delta and settings.budget is not None:
        raise ConfigError(
            f"init_from '{delta}' is a delta, which says what is learned, and so would the budget; keep one."
        )
    return delta


def build(settings: Run) -> tuple[nn.Module, Data]:
    """Make the plain model; return it with the data in the form that it takes."""
    delta = _delta(settings)
    data = opened(settings)
    net = create(
        settings.model,
        num_classes=len(data.classes),
        seed=settings.backbone_seed,
        pretrained=settings.pretrained,
        checkpoint=None if delta else settings.init_from,
        **settings.model_kwargs or {},
    )
    if delta:
        header = inspect(delta)
        teach(net, Taught(header.classes, header.preprocessing))
    return net, pictures_for(net, data)


def follow(net: nn.Module, data: Data, settings: Run) -> tuple[Run, Data]:
    """Put a recipe's settings in the place of those that were left out, and make of the data what they say.

    Args:
        net: The plain model.
        data: As :func:`build` gives it.
        settings: What was asked.
    """
    recipe = recipe_for(net, data, settings.config, settings.learn)
    config = settings.config.following(recipe)
    asked = replace(settings, config=config, learn=settled(settings.learn, recipe))
    return asked, augmented(parted(data, config), config)


def adapt(net: nn.Module, settings: Run) -> None:
    """Make the model learn what the settings say, from where they say."""
    adapt_(net, settings.learn)
    if delta := _delta(settings):
        fill(net, delta)
