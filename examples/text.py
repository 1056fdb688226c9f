"""A text classifier of one's own: a slice of a small transformer learns whose documentation it reads.

The text is real and always there: docstrings of Python's ``asyncio`` and ``email``, read as bytes. Test
passages come from files that training never saw.

Run: python examples/text.py [epochs]
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsetune as st

PACKAGES = ("asyncio", "email")
LENGTH = 128


class Reader(nn.Module):
    """Bytes ``(B, LENGTH)`` to logits ``(B, 2)``: embedding, convolution, transformer, mean, classifier."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.syllables = nn.Conv1d(width, width, kernel_size=6, stride=3)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, len(PACKAGES))

    def forward(self, text: Tensor) -> Tensor:
        """Return one row of logits a passage."""
        syllables = F.gelu(self.syllables(self.bytes(text).mT)).mT
        return self.head(self.encoder(syllables).mean(1))


def reader() -> Reader:
    """Return the same random values each time: the backbone of every delta."""
    torch.manual_seed(0)
    return Reader()


def passages() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training passages ``(N, LENGTH)`` and labels ``(N,)``, then those of every fourth file."""
    found: list[list[tuple[Tensor, int]]] = [[], []]
    for label, package in enumerate(PACKAGES):
        files = sorted((Path(sysconfig.get_path("stdlib")) / package).glob("*.py"))
        for number, file in enumerate(files):
            tree = ast.walk(ast.parse(file.read_text("utf-8")))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            texts = [ast.get_docstring(node) or "" for node in tree if isinstance(node, kinds)]
            content = torch.frombuffer(bytearray(" ".join(texts).encode()), dtype=torch.uint8)
            for piece in content.unfold(0, LENGTH, LENGTH // 2) if len(content) >= LENGTH else ():
                found[number % 4 == 0].append((piece.long(), label))
    (x, y), (test_x, test_y) = (zip(*part, strict=True) for part in found)
    return torch.stack(x), torch.tensor(y), torch.stack(test_x), torch.tensor(test_y)


def main(epochs: int = 3) -> tuple[float, float]:
    """Train a quarter of each layer; return test accuracy, and that of always saying the commoner package."""
    x, y, test_x, test_y = passages()
    net = st.adapt_(reader(), st.Learn(fraction=0.25))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packages.safetensors"
        st.save(net, path, classes=PACKAGES)
        net = st.load(path, module=reader())
        size = path.stat().st_size
    with torch.inference_mode():
        accuracy = (net(test_x).argmax(1) == test_y).double().mean().item()
    chance = test_y.bincount().max().item() / len(test_y)
    print(f"delta {size / 1024:.0f} KiB, test accuracy {accuracy:.1%}; always the commoner: {chance:.1%}")
    return accuracy, chance


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
