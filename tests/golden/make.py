"""Make the golden delta files of the format version that this sparsetune writes.

Run once, when a format version is released, as `python tests/golden/make.py FOLDER`; it prints what
tests/test_delta.py records. Files of a released version are never made again.
"""

import sys
from pathlib import Path

import torch

import sparsetune as st

sys.path.insert(0, str(Path(__file__).parent.parent))
from forge import measured, moved


def plain():
    """The commonest case, with every field of the header filled."""
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=0)
    return st.adapt_(net, st.Learn(fraction=0.1)), {
        "classes": [f"digit {i}" for i in range(10)],
        "preprocessing": st.Preprocessing((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic"),
        "training": {
            "data": "digits",
            "config": {"epochs": 4},
            "result": {"test_top1": 0.9375, "loss": 1e-05},
        },
    }


def zero():
    """Inputs instead of filters, the rest zero, bfloat16."""
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=7)
    return st.adapt_(net, st.Learn(filters=2, dim="in", frozen="zero")).bfloat16(), {}


def layers():
    """A densenet of which one block is learned and no classifier; float16."""
    net = st.create("densenet100_12", depth=10, growth_rate=8, num_classes=4, seed=2**70)
    return st.adapt_(net, st.Learn(fraction=1.0, layers=["block2"], head=False)).half(), {}


def module():
    """A user's own model: whoever loads brings the frozen values."""
    return st.adapt_(own(), st.Learn(fraction=0.5, norm=False)), {}


def rank():
    """Low-rank sums."""
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=3)
    return st.adapt_(net, st.Learn(rank=2)), {}


def amounts():
    """Amounts by layer: slices and low-rank sums beside each other."""
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=5)
    return st.adapt_(net, st.Learn(filters={"block2.0.conv1": 1, "block2": 3}, rank={"block3": 2})), {}


def own():
    """The user's own model of `module`, from plain arithmetic."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2),
        torch.nn.BatchNorm2d(4),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 3),
    )
    with torch.no_grad():
        for value in net.parameters():
            value.copy_((torch.arange(value.numel()).reshape(value.shape) % 7 - 3) / 8)
    return net


def main(folder: Path) -> None:
    """Write the files and print what to record."""
    for version, make in ((1, plain), (1, zero), (1, layers), (1, module), (3, rank), (4, amounts)):
        net, words = make()
        path = folder / f"format{version}-{make.__name__}.safetensors"
        st.save(moved(net).eval(), path, **words)
        values, logits = measured(net)
        print(f'    "{path.stem}": (')
        print(f'        "{st.inspect(path).fingerprint}",')
        print(f'        "{values}",')
        print(f"        {logits},")
        print("    ),")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
