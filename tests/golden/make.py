"""Make golden files of every kind that this sparsetune writes.

Run once, when a format version is released, as `python tests/golden/make.py FOLDER`; it prints what
tests/delta/test_golden.py records. Files of a released version are never made again.
"""

import sys
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

import sparsetune as st
from sparsetune.delta.bundles import bundle
from sparsetune.narrow.network import load_slim, write_slim
from sparsetune.runs.run import run

sys.path.insert(0, str(Path(__file__).parent.parent))
from forge import STOPPED, measured, moved


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


def dense(learn, width=2, **start):
    """The smallest model that there is: of width 2 it has 786 values."""
    net = st.create("densenet100_12", depth=10, growth_rate=width, num_classes=10, **start)
    return st.adapt_(net, learn)


def bf16():
    """Two bytes a value."""
    return dense(st.Learn(fraction=0.5), seed=11), {"dtype": "bf16"}


def fp16():
    """Two bytes a value."""
    return dense(st.Learn(fraction=0.5), seed=12), {"dtype": "fp16"}


def int8():
    """One byte a value, by both of its codes."""
    return dense(st.Learn(fraction=0.5), seed=13), {"dtype": "int8", "classes": list("abcdefghij")}


def rank8():
    """Low-rank sums in one byte a value."""
    return dense(st.Learn(rank=1), seed=14), {"dtype": "int8"}


def amounts8():
    """Amounts by layer in one byte a value, as a budget gives them."""
    return dense(st.Learn(rank={"block1": 2, "block3": 1}), seed=15), {"dtype": "int8"}


def depthwise():
    """Sums of rank 1 of the convolutions that are not depthwise; in format 3, also of those that are."""
    return st.adapt_(st.create("test_efficientnet", num_classes=4, seed=19), st.Learn(rank=1, head=False)), {
        "dtype": "int8"
    }


def dimensions():
    """A vector spread over the weights of all layers and the classifier."""
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=6)
    return st.adapt_(net, st.Learn(dimensions=400, norm=False, head=False, projection_seed=3)), {}


def dimensions8():
    """The same by layer, beside slices and low-rank sums; in a byte each."""
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=6)
    return st.adapt_(net, st.Learn(dimensions={"block3": 50}, rank={"block2": 1}, filters={"block1": 1})), {
        "dtype": "int8"
    }


def dimensions6():
    """A vector in the fewest bits, and running statistics in their codes."""
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=8)
    return st.adapt_(net, st.Learn(dimensions=400, norm=False, head=False)), {"dtype": "int6"}


def statistics():
    """Running statistics that stay at the backbone's, and pictures whose middle is cut out."""
    net = dense(st.Learn(fraction=0.5, norm_stats="frozen"), seed=20)
    form = st.Preprocessing((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic", 0.875, "center")
    return net, {"preprocessing": form}


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


def deltas(path, backbone=None):
    """A bundle of two deltas, and of the checkpoint that they stand on if there is one."""
    with TemporaryDirectory() as folder:
        files = {}
        for seed, name in enumerate(("first", "second.too")):
            files[name] = Path(folder) / f"{seed}.safetensors"
            start = {"seed": 16} if backbone is None else {"checkpoint": backbone}
            st.save(moved(dense(st.Learn(fraction=0.5), **start), seed).eval(), files[name])
        bundle(files, path, backbone)
    tasks = st.Tasks.load(path)
    for name in files:
        with tasks.use(name) as net:
            tell(f"{path.stem}/{name}", *measured(net, merge=False))


def trained(path):
    """A bundle that brings its backbone."""
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "trained.safetensors"
        net = st.merge_(moved(dense(st.Learn(fraction=1.0), seed=17), 5))
        save_file({name: value.contiguous() for name, value in net.state_dict().items()}, whole)
        deltas(path, whole)


def small(path):
    """A slim network of which six of ten filters are gone."""
    net = moved(dense(st.Learn(fraction=0.4, frozen="zero"), 4, seed=18)).eval()
    with TemporaryDirectory() as folder:
        delta = Path(folder) / "delta.safetensors"
        st.save(net, delta, preprocessing=st.Preprocessing((3, 8, 8), (0.5,) * 3, (0.3,) * 3))
        write_slim(path, st.slim(net), st.inspect(delta))
    tell(path.stem, *measured(load_slim(path), merge=False))


def stopped(folder):
    """A run that its time budget stopped after one step: its settings, its checkpoint."""
    rmtree(folder, ignore_errors=True)
    assert not run(STOPPED, folder, time_budget=0.0).history


def tell(name, values, logits):
    """Print what to record."""
    print(f'    "{name}": ("{values}", {logits}),')


DELTAS = (
    *((1, make) for make in (plain, zero, layers, module)),
    *((2, make) for make in (bf16, fp16, int8)),
    *((3, make) for make in (rank, rank8)),
    *((4, make) for make in (amounts, amounts8)),
    *((5, make) for make in (depthwise, statistics)),
    *((7, make) for make in (dimensions, dimensions8, dimensions6)),
)


def main(folder: Path) -> None:
    """Write the files and print what to record."""
    for version, make in DELTAS:
        net, words = make()
        path = folder / f"format{version}-{make.__name__}.safetensors"
        st.save(moved(net).eval(), path, **words)
        if "dtype" in words:
            net = st.load(path)
        print(f"    # fingerprint {st.inspect(path).fingerprint}")
        tell(path.stem, *measured(net))
    deltas(folder / "bundle1-seed.safetensors")
    trained(folder / "bundle1-trained.safetensors")
    small(folder / "slim1-small.safetensors")
    stopped(folder / "run-stopped")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
