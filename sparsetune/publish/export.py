"""A plain classifier to one ONNX file that runs without torch and without sparsetune."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.backbone import logits_of
from sparsetune.errors import ConfigError
from sparsetune.host import reason, replacing

LIMIT = 2**31 - 2**24
"""Bytes of values that one ONNX file can hold, some room left for the graph."""
TOLERANCE = 1e-3
"""Largest difference from torch's outputs, relative to the largest of them, that another runtime may show."""
IMAGE, LOGITS = "image", "logits"
"""Names of the file's input and output."""


def export_onnx(
    net: nn.Module, path: str | Path, size: tuple[int, int, int], metadata: Mapping[str, str]
) -> float | None:
    """Write a plain classifier as ONNX, in float32 and evaluation mode; the file appears whole or not at all.

    Input ``image`` is ``(batch, channels, height, width)`` and output ``logits`` ``(batch, classes)``, both
    float32 with any batch. Where onnxruntime is installed, the file is run before it appears.

    Args:
        net: A plain model (see ``merge_``) on the CPU; it is left in float32 and evaluation mode.
        path: The file. All values are inside it.
        size: Channels, height and width of a picture.
        metadata: Keys and values that the file shall carry.

    Returns:
        The largest difference between its outputs and torch's; ``None`` without onnxruntime.

    Raises:
        ConfigError: When ONNX's packages are missing, the model is too large for one file, cannot be
            exported, or computes something else in onnxruntime.
        StorageError: When the file cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX export needs {' and '.join(missing)}, which this Python lacks; "
            "run: pip install 'sparsetune[onnx]'."
        )
    net = net.float().eval()
    held = sum(value.nbytes for value in net.state_dict().values())
    if held > LIMIT:
        raise ConfigError(
            f"the model holds {held / 2**30:.2f} GiB, and one ONNX file at most {LIMIT / 2**30:.2f}; "
            "export a smaller one, or write a checkpoint with sparsetune merge."
        )
    net = _classifier(net, size)
    program = _program(net, size)
    _forget_origin(program.model)
    program.model.metadata_props.update(metadata)
    with replacing(path) as temporary:
        program.save(temporary, external_data=False)
        return _difference(net, temporary, size)


class _Logits(nn.Module):
    """A model that gives its main logits alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return logits_of(self.net(image))


def _classifier(net: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    """The model, so that it gives nothing but logits."""
    pictures = torch.zeros(2, *size)
    try:
        with torch.no_grad():
            outputs = net(pictures)
    except Exception as error:
        shape = "x".join(map(str, size))
        raise ConfigError(f"the model cannot take pictures of {shape} ({reason(error)}).") from error
    if isinstance(outputs, Tensor):
        return net
    try:
        logits_of(outputs)
    except ConfigError as error:
        what = type(outputs).__name__
        raise ConfigError(f"the model gives a {what}; export writes classifiers alone.") from error
    return _Logits(net).eval()


def _program(net: nn.Module, size: tuple[int, int, int]) -> Any:
    """The exported graph; whatever torch's exporter says is said in one sentence or not at all."""
    pictures = torch.zeros(2, *size)
    try:
        with torch.no_grad(), _silent():
            return torch.onnx.export(
                net,
                (pictures,),
                dynamo=True,
                verbose=False,
                input_names=[IMAGE],
                output_names=[LOGITS],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
    except Exception as error:
        raise ConfigError(
            f"torch cannot export this {type(net).__name__} to ONNX ({reason(error.__cause__ or error)}); "
            "write a checkpoint with sparsetune merge instead."
        ) from error


def _forget_origin(model: Any) -> None:
    """Take away the exporter's notes, which hold paths of this machine."""
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)


def _difference(net: nn.Module, path: Path, size: tuple[int, int, int]) -> float | None:
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    pictures = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = net(pictures)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run([LOGITS], {IMAGE: pictures.numpy()})[0])
    difference: float = (found - wanted).abs().max().item()
    if not difference <= TOLERANCE * wanted.abs().max().item():
        raise ConfigError(
            f"onnxruntime's outputs differ from torch's by {difference:.2g}, more than rounding explains, so "
            "no file was written; write a checkpoint with sparsetune merge instead."
        )
    return difference


@contextmanager
def _silent() -> Iterator[None]:
    """Keep warnings and log lines of the exporter off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
