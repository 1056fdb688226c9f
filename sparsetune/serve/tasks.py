"""``Tasks``, one of many deltas at a time, and ``Ensemble``, the mean of several, over one backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.delta import Header, unpacked
from sparsetune.errors import ConfigError, DeltaError, UnknownNameError
from sparsetune.host import listed
from sparsetune.serve.shared import Shared, State, check_name, check_pictures


class Tasks(Shared):
    """An "overloaded" network (paper, Section 5): a task's delta is put in place when it is asked for.

    Each task has its own slices, classifier, and batch-norm statistics; memory grows by the size of its
    delta, up to ``cache_bytes`` where that is given. Several threads may call at once: they take turns. Make
    one with :meth:`load`.
    """

    def __init__(
        self, name: str, path: str | Path, *, cache_bytes: int | None = None, **options: Any
    ) -> None:
        whole = isinstance(cache_bytes, int) and not isinstance(cache_bytes, bool)
        if cache_bytes is not None and not (whole and cache_bytes >= 0):
            raise ConfigError(f"cache_bytes {cache_bytes!r} is not a whole number of bytes, 0 or more.")
        super().__init__(name, path, **options)
        self.files: dict[str, str | Path] = {name: path}
        self.cache_bytes = cache_bytes
        self.cached_bytes = 0
        self._recent: dict[str, int] = {}
        self.held(name)

    @classmethod
    def load(
        cls,
        deltas: Mapping[str, str | Path] | str | Path,
        *,
        cache_bytes: int | None = None,
        **options: Any,
    ) -> Tasks:
        """Build the backbone once and read every delta.

        Args:
            deltas: Task name -> delta file; or a bundle. The first builds the backbone; all must stand on the
                same, with the same learn spec. Class counts may differ.
            cache_bytes: Read each delta but the first when its task is asked for, and forget those that were
                not asked for longest while all have more bytes than this; one that is forgotten is read again
                when it is asked for. ``None`` reads all of them now, and keeps them.
            **options: ``module``, ``backbone``, ``allow_network``, ``max_bytes``: as for ``load``.

        Raises:
            ConfigError: When ``deltas`` is empty, or a bundle shall be read bit by bit.
            DeltaError: When a file is damaged or stands on another backbone.
            BackboneError: When the backbone cannot be rebuilt.
        """
        if isinstance(deltas, (str, Path)):
            if cache_bytes is not None:
                raise ConfigError(
                    f"'{deltas}' is read whole; cache_bytes is of deltas in files of their own."
                )
            with unpacked(deltas) as held:
                return cls.load(held.deltas, **{"backbone": held.backbone, **options})
        if not isinstance(deltas, Mapping) or not deltas:
            given = f"{type(deltas).__name__} is no mapping" if deltas else "no deltas were given"
            raise ConfigError(f"{given}; pass one such as {{'cats': 'cats.safetensors'}}.")
        (name, path), *others = deltas.items()
        tasks = cls(name, path, cache_bytes=cache_bytes, **options)
        for other, file in others:
            tasks.add(other, file)
        return tasks

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks, in the order in which they were added."""
        return tuple(self.files)

    def add(self, name: str, path: str | Path) -> None:
        """Read one more delta; with ``cache_bytes``, when its task is first asked for.

        Raises:
            ConfigError: When there is a task of that name.
            DeltaError: When the file is damaged or stands on another backbone. One that is read later raises
                it then.
        """
        with self.switch.lock:
            if name in self.files:
                raise ConfigError(f"task '{name}' is there already; remove it first, or choose another name.")
            check_name(name)
            if self.cache_bytes is None:
                self.take(name, path)
            self.files[name] = path

    def remove(self, name: str) -> None:
        """Forget a task and free its memory.

        Raises:
            UnknownNameError: When there is no such task.
        """
        with self.switch.lock:
            self._check(name)
            self._forget(name)
            del self.files[name]

    def header(self, name: str) -> Header:
        """Return what a task's delta says of itself: class names, preprocessing, training.

        Raises:
            UnknownNameError: When there is no such task.
            DeltaError: When its file is read now, and is damaged or stands on another backbone.
        """
        with self.switch.lock:
            self._check(name)
            return self.held(name)[1]

    def held(self, name: str) -> tuple[State, Header]:
        """Return a task's values and header, read now if need be; forget what is too much."""
        if self.cache_bytes is None:
            return super().held(name)
        with self.switch.lock:
            if name not in self.headers:
                self._check(name)
                self.take(name, self.files[name])
            found = super().held(name)
            self.cached_bytes += found[0].nbytes - self._recent.pop(name, 0)
            self._recent[name] = found[0].nbytes
            while self.cached_bytes > self.cache_bytes and len(self._recent) > 1:
                self._forget(next(iter(self._recent)))
            return found

    def _forget(self, name: str) -> None:
        self.cached_bytes -= self._recent.pop(name, 0)
        if name in self.headers:
            self.drop(name)

    @contextmanager
    def use(self, name: str) -> Iterator[nn.Module]:
        """Give the model as it is for one task, for as long as the context lasts.

        It is the one model of all tasks, for evaluation. Other tasks may be asked meanwhile by calling this
        object. Whatever is written to the model is undone before it is used again.

        Raises:
            UnknownNameError: When there is no such task.
            ConfigError: When the model is in use for another task.
        """
        self._check(name)
        with self.using(name, lend=True) as net:
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
            ConfigError: When there is not one task a row, or the arguments are others.
        """
        if len(inputs) != (2 if task is None else 1):
            beside = "without task" if task is None else "beside task"
            raise ConfigError(
                f"{len(inputs)} arguments were given {beside}; call tasks('cats', x) for one task, or "
                "tasks(x, task=[...]) for one a row."
            )
        check_pictures(x := inputs[-1])
        if task is None:
            self._check(inputs[0])
            return self.logits(inputs[0], x)
        found = {}
        for name, own in self._rows(task, len(x)).items():
            index = torch.tensor(own, dtype=torch.int64, device=x.device)
            found[name] = index, self.logits(name, x[index])
        width = max(logits.shape[1] for _, logits in found.values())
        like = next(iter(found.values()))[1]
        together: Tensor = like.new_full((len(x), width), float("-inf"))
        for index, logits in found.values():
            together[index, : logits.shape[1]] = logits
        return together

    def _rows(self, task: Any, count: int) -> dict[str, list[int]]:
        """The rows of each task; of no rows those of every task."""
        if isinstance(task, str) or not isinstance(task, Iterable):
            raise ConfigError(f"task {task!r} is no list of names; give one a row, or call tasks('cats', x).")
        names = list(task)
        if len(names) != count:
            raise ConfigError(f"there are {len(names)} tasks for {count} rows; give one a row.")
        if not self.files:
            raise ConfigError("there is no task; add one.")
        rows: dict[str, list[int]] = {} if names else {name: [] for name in self.files}
        for row, name in enumerate(names):
            self._check(name)
            rows.setdefault(name, []).append(row)
        return rows

    def _check(self, name: Any) -> None:
        if not isinstance(name, str):
            raise ConfigError(f"task {name!r} is no name; give one of {listed([*self.files])}.")
        if name not in self.files:
            raise UnknownNameError("task", name, self.files)


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
            **options: ``module``, ``backbone``, ``allow_network``, ``max_bytes``: as for ``load``.

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
