"""``Ensemble``: several members over one backbone, whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsetune.delta import unpacked
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.serve.shared import Shared, check_pictures


class Ensemble(Shared):
    """A cheap ensemble (paper, Section 4.3): the members share every frozen value.

    Make one with :meth:`load`.
    """

    @classmethod
    def load(cls, deltas: Sequence[str | Path] | str | Path, **options: Any) -> Ensemble:
        """Build the backbone once and read every member.

        Args:
            deltas: The members' delta files, over one backbone, with one learn spec and the same classes; or
                a bundle.
            **options: ``module``, ``backbone``, ``allow_network``: as for :func:`sparsetune.load`.

        Raises:
            ConfigError: When ``deltas`` is empty.
            DeltaError: When a file is damaged, stands on another backbone, or has other classes.
            BackboneError: When the backbone cannot be rebuilt.
        """
        if isinstance(deltas, (str, Path)):
            with unpacked(deltas) as held:
                return cls.load([*held.deltas.values()], **{"backbone": held.backbone, **options})
        if isinstance(deltas, Mapping) or not deltas:
            raise ConfigError(
                f"{'a mapping was' if deltas else 'no deltas were'} given; pass a list of files."
            )
        ensemble = cls("0", deltas[0], **options)
        for number, path in enumerate(deltas[1:], 1):
            ensemble.take(str(number), path)
            ensemble._check_classes(str(number), path)
        return ensemble

    def __len__(self) -> int:
        return len(self.headers)

    def forward(self, x: Tensor) -> Tensor:
        """Compute every member's logits.

        Args:
            x: Pictures ``(B, C, H, W)``.

        Returns:
            ``(members * B, classes)``: all rows of the first member, then of the second, and so on, as
            torch-uncertainty lays them out.

        Raises:
            ConfigError: When ``x`` is not a tensor with a row for each picture.
        """
        check_pictures(x)
        return torch.cat([self.logits(name, x) for name in self.headers])

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the mean of the members' probabilities, ``(B, classes)``."""
        logits: Tensor = self(x)
        return logits.view(len(self), len(x), logits.shape[-1]).softmax(-1).mean(0)

    def _check_classes(self, name: str, path: str | Path) -> None:
        first, header = self.headers["0"], self.headers[name]
        if (header.num_classes, header.classes) != (first.num_classes, first.classes):
            raise DeltaError(
                f"{path} knows {header.num_classes} classes that are not those of the first member "
                f"({first.num_classes}); members must know the same."
            )
