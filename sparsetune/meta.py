"""Build a model without memory for its values: what its tensors are named and how large they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from sparsetune.errors import ConfigError

MOST_PARAMETERS = 10_000
"""Most parameter tensors that a model may have; the largest of timm 1.0.31 has 1,853."""


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Return what ``build`` builds, on the meta device as far as it can be.

    Args:
        build: Calls a constructor; it may be called twice.

    Raises:
        ConfigError: When the model has more than ``MOST_PARAMETERS`` parameter tensors.
    """
    with torch.random.fork_rng(devices=[]), _few_parameters():
        try:
            with torch.device("meta"):
                return build()
        except Exception as error:
            if not isinstance(error.__cause__, NotImplementedError):
                raise
        with _EmptyOnMeta():
            return build()


class _EmptyOnMeta(TorchFunctionMode):
    """Makes uninitialised tensors without memory, for constructors that compute with small real ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))


@contextmanager
def _few_parameters() -> Iterator[None]:
    count = 0

    def check(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_PARAMETERS:
            raise ConfigError(f"the model described has more than {MOST_PARAMETERS} parameter tensors.")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()
