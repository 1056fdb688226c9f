"""A model whose backbone several delta files share; the first builds it, all must stand on the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from sparsetune.adapt import adapted
from sparsetune.delta import read_delta, read_header
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.header import Header
from sparsetune.layers import head_names
from sparsetune.outputs import logits_of
from sparsetune.rebuild import check_fit
from sparsetune.saving import load
from sparsetune.switching import State, Switch


class Shared(nn.Module):
    """One adapted model, and the packed values of each delta by name; for evaluation only.

    Args:
        path: The first delta; its backbone is the one.
        name: What to call it.
        module: As for :func:`sparsetune.load`.
        backbone: Likewise.
        allow_network: Likewise.
    """

    def __init__(
        self,
        name: str,
        path: str | Path,
        *,
        module: nn.Module | None = None,
        backbone: str | Path | None = None,
        allow_network: bool = False,
    ) -> None:
        super().__init__()
        self.net = load(path, module, backbone=backbone, allow_network=allow_network)
        self.first = read_header(path)
        self.switch = Switch(self.net)
        self.states = nn.ModuleDict()
        self.headers: dict[str, Header] = {}
        self.take(name, path)
        self.eval()

    def take(self, name: str, path: str | Path) -> None:
        """Read a delta and keep its values under ``name``.

        Raises:
            ConfigError: When the name is no text.
            DeltaError: When it is damaged, or stands on another backbone or learns other slices.
        """
        if not isinstance(name, str):
            raise ConfigError(f"the name {name!r} of a delta is not a text; write it as one.")
        header, first = read_header(path), self.first
        if (header.fingerprint, header.learn) != (first.fingerprint, first.learn):
            raise DeltaError(
                f"{path} stands on {header.backbone.describe()} with {header.learn}, the deltas here on "
                f"{first.backbone.describe()} with {first.learn}; load those of one backbone together."
            )
        check_fit(header, adapted(self.net).plan, head_names(self.net), first.num_classes)
        self.states[_key(name)] = self.switch.pack(read_delta(path, header))
        known = {entry: entry for entry in first.entries}  # whose names need no second copy
        entries = tuple(known.get(entry, entry) for entry in header.entries)
        self.headers[name] = replace(header, entries=entries)

    def drop(self, name: str) -> None:
        """Forget a delta."""
        del self.states[_key(name)], self.headers[name]

    @contextmanager
    def using(self, name: str, lend: bool = False) -> Iterator[nn.Module]:
        """Give the model with a delta's values, for as long as the context lasts; other threads wait.

        Args:
            name: The delta's.
            lend: Whether the model is given to the user, who may do with it what he likes.
        """
        with self.switch.holding(cast(State, self.states[_key(name)]), lend) as net:
            yield net

    def logits(self, name: str, x: Tensor) -> Tensor:
        """Compute a delta's logits; no row of pictures gives no row of logits."""
        with self.using(name) as net:
            found = logits_of(net(x if len(x) else x.new_zeros(1, *x.shape[1:])))
        return found if len(x) else found[:0]

    def train(self, mode: bool = True) -> Shared:
        """Stay in evaluation mode, where deltas cannot mix.

        Raises:
            ConfigError: When ``mode`` is true.
        """
        if mode:
            raise ConfigError(
                f"{type(self).__name__} is for evaluation; train a delta by itself, as load() gives it."
            )
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        with self.switch.lock:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self.switch.relink()
        return self


def check_pictures(x: object) -> None:
    """Refuse what is no batch.

    Raises:
        ConfigError: When it is not a tensor with a row for each picture.
    """
    if not isinstance(x, Tensor):
        raise ConfigError(
            f"the pictures are a {type(x).__name__}, not a tensor; give one of shape (B, C, H, W)."
        )
    if x.dim() < 2:
        raise ConfigError(f"pictures of shape {tuple(x.shape)} are no batch; give (B, C, H, W).")


def _key(name: str) -> str:
    """A name as a module may have it: without dots."""
    return "delta " + name.replace("%", "%25").replace(".", "%2E")
