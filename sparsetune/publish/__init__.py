"""What leaves the house.

Imports ``delta``.

- ``hub``: a delta to the Hugging Face Hub and back; ``card``: its card, with the command that trains it.
- ``export``: ONNX, checked against the model; ``adapters``: PEFT's LoRA adapters, written and read.
"""

from sparsetune.publish.adapters import classes_in, from_peft, is_adapter, to_peft
from sparsetune.publish.export import export_onnx
from sparsetune.publish.hub import from_pretrained, pull, push, save_pretrained

__all__ = [
    "classes_in",
    "export_onnx",
    "from_peft",
    "from_pretrained",
    "is_adapter",
    "pull",
    "push",
    "save_pretrained",
    "to_peft",
]
