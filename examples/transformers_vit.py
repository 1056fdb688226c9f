"""A Hugging Face transformers image classifier: learn a slice of it, save, load into a fresh one.

Run: python examples/transformers_vit.py [epochs]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

import sparsetune as st
from sparsetune.data import loader


def classifier() -> nn.Module:
    """Return the same values each time, here from torch's seed; published ones would do as well."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_labels=10,
    )
    return ViTForImageClassification(config)


def main(epochs: int = 10) -> float:
    """Train a quarter of each layer on the embedded digits; return the test accuracy of what was loaded."""
    data = st.open_data("digits")
    net = st.adapt_(classifier(), st.Learn(fraction=0.25))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for epoch in range(epochs):
        net.train()
        for x, y in loader(data.train, data.preprocessing, batch_size=64, train=True, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(x).logits, y).backward()
            optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        st.save(net, path, classes=data.classes, preprocessing=data.preprocessing)
        net = st.load(path, module=classifier())
        size = path.stat().st_size
    with torch.inference_mode():
        batches = loader(data.test, data.preprocessing, batch_size=512)
        right = sum(int((net(x).logits.argmax(1) == y).sum()) for x, y in batches)
    accuracy = right / len(data.test)
    print(f"delta {size / 1024:.0f} KiB, test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
