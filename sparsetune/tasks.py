"""``Tasks``: one backbone in memory, and any number of deltas over it, each with classes of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.bundle import unpacked
from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.outputs import logits_of
from sparsetune.shared import Shared


class Tasks(Shared):
    """An "overloaded" network (paper, Section 5): a task's delta is put in place when it is asked for.

    Each task has its own slices, classifier, and batch-norm statistics; memory grows by the size of its
    delta. Several threads may call at once: they take turns. Make one with :meth:`load`.
    """

    @classmethod
    def load(cls, deltas: Mapping[str, str | Path] | str | Path, **options: Any) -> Tasks:
        """Build the backbone once and read every delta.

        Args:
            deltas: Task name -> delta file; or a bundle. The first builds the backbone; all must stand on the
                same, with the same learn spec. Class counts may differ.
            **options: ``module``, ``backbone``, ``allow_network``: as for :func:`sparsetune.load`.

        Raises:
            ConfigError: When ``deltas`` is empty.
            DeltaError: When a file is damaged or stands on another backbone.
            BackboneError: When the backbone cannot be rebuilt.
        """
        if isinstance(deltas, (str, Path)):
            with unpacked(deltas) as held:
                return cls.load(held.deltas, **{"backbone": held.backbone, **options})
        if not deltas:
            raise ConfigError("no deltas were given; pass a mapping such as {'cats': 'cats.safetensors'}.")
        (name, path), *others = deltas.items()
        tasks = cls(name, path, **options)
        for other, file in others:
            tasks.add(other, file)
        return tasks

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were added."""
        return tuple(self.headers)

    def add(self, name: str, path: str | Path) -> None:
        """Read one more delta.

        Raises:
            ConfigError: When there is a task of that name.
            DeltaError: When the file is damaged or stands on another backbone.
        """
        if name in self.headers:
            raise ConfigError(f"task '{name}' is there already; remove it first, or choose another name.")
        self.take(name, path)

    def remove(self, name: str) -> None:
        """Forget a task and free its memory.

        Raises:
            UnknownNameError: When there is no such task.
        """
        self._check(name)
        self.drop(name)

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """Give the model as it is for one task, for as long as the context lasts.

        Raises:
            UnknownNameError: When there is no such task.
        """
        self._check(name)
        with self.using(name) as net:
            yield net

    def forward(self, *inputs: Any, task: Sequence[str] | None = None) -> Tensor:
        """Compute logits: ``tasks("cats", x)`` for one task, ``tasks(x, task=[...])`` for a task a row.

        Args:
            *inputs: A task's name and pictures ``(B, C, H, W)``, or the pictures alone.
            task: The task of each row; rows of one task are computed together, and come back in their order.

        Returns:
            ``(B, classes)``. Of tasks with different class counts, ``classes`` is the largest, and the rows
            of the others end in ``-inf``: softmax and argmax are those of their own classes.

        Raises:
            UnknownNameError: When there is no such task.
            ConfigError: When there is not one task a row.
        """
        if task is None:
            name, x = inputs
            with self.use(name) as net:
                return logits_of(net(x))
        (x,) = inputs
        if len(task) != len(x):
            raise ConfigError(f"there are {len(task)} tasks for {len(x)} rows; give one a row.")
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(task):
            rows.setdefault(name, []).append(row)
        for name in rows:
            self._check(name)
        found = {}
        for name, own in rows.items():
            index = torch.tensor(own, device=x.device)
            with self.use(name) as net:
                found[name] = index, logits_of(net(x[index]))
        width = max(logits.shape[1] for _, logits in found.values())
        like = next(iter(found.values()))[1]
        together: Tensor = like.new_full((len(x), width), float("-inf"))
        for index, logits in found.values():
            together[index, : logits.shape[1]] = logits
        return together

    def _check(self, name: str) -> None:
        if name not in self.headers:
            raise UnknownNameError("task", name, self.headers)
