"""A slice of a timm model learned in a plain PyTorch loop, saved, loaded and merged.

Run: python examples/own_loop.py [epochs]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import timm
import torch
from torch.nn import functional as F

import sparsetune as st
from sparsetune.data import loader


def main(epochs: int = 3) -> float:
    """Train ResNet-10-t at 25 % on the embedded digits; return the test accuracy."""
    data = st.open_data("digits")
    net = st.create("resnet10t", num_classes=len(data.classes), seed=0)
    st.adapt_(net, st.Learn(fraction=0.25))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for epoch in range(epochs):
        net.train()
        for x, y in loader(data.train, data.preprocessing, batch_size=64, train=True, epoch=epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.safetensors"
        st.save(net, path, classes=data.classes, preprocessing=data.preprocessing)
        loaded = st.load(path)
        size = path.stat().st_size

    plain = timm.create_model("resnet10t", num_classes=len(data.classes))
    plain.load_state_dict(st.merge_(loaded).state_dict())
    plain.eval()
    with torch.inference_mode():
        batches = loader(data.test, data.preprocessing, batch_size=512)
        right = sum(int((plain(x).argmax(1) == y).sum()) for x, y in batches)
    accuracy = right / len(data.test)
    print(f"delta {size / 1024:.0f} KiB, test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
