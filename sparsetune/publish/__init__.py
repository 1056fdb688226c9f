"""ROOM publish."""

from sparsetune.publish.export import export_onnx
from sparsetune.publish.hub import from_pretrained, pull, push, save_pretrained

__all__ = [
    "export_onnx",
    "from_pretrained",
    "pull",
    "push",
    "save_pretrained",
]
