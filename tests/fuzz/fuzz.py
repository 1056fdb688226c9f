"""Give every reader of files what a stranger might: damaged bytes, and forged files with right checksums.

    python tests/fuzz/fuzz.py --seconds 60 [--seed 0] [--out FOLDER] [--readers delta,bundle] [--results FILE]

Inputs are changed golden files of every format, so that each is nearly right. Whatever comes out of a reader
but its result or one of sparsetune's errors in printable words is an escape, and so is what takes longer than
ten seconds or more memory than the process may have; the input is kept in ``--out``. It ends with 1 if there
was one.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

import sparsetune as st
from sparsetune.delta.bundles import unpacked
from sparsetune.host import SEAL, describe_machine, digest_of, taken_bytes
from sparsetune.narrow.network import load_slim
from sparsetune.train.checkpoint import read_history, read_settings

sys.path.insert(0, str(Path(__file__).parent.parent))
from forge import Parts, resealed, sealed

FLAT = tuple(f"format{number}" for number in range(1, 6))
"""Of the files with an index of their own."""
GOLDEN = Path(__file__).parent.parent / "golden"
SLOW = 10.0
MEMORY = 3 << 30
"""Bytes that the process may take beyond those that it starts with; readers may take a sixth of that."""
LONG = "x" * 5000
STRANGE: list[Any] = [
    *(
        None,
        True,
        [],
        {},
        "",
        LONG,
        0,
        -1,
        1,
        2,
        7,
        1.5,
        -0.0,
        1e308,
        2**31,
        2**53,
        2**62,
        2**63,
        10**40,
        10**400,
    ),
    *(
        [0] * 50,
        [[]],
        [1e9],
        {"a": 1},
        "\u202e",
        "\x1b[2J",
        "\ud800",
        "../../etc/passwd",
        "/dev/zero",
        "hf-hub:a/b",
    ),
    *("resnet18", "test_vit_relpos", "swin_tiny_patch4_window7_224", "torchvision", "timm", "module", "zero"),
    *(
        "pretrained",
        "file",
        "seed",
        "float64",
        "bfloat16",
        "int8",
        "int6",
        "line4",
        "block1",
        "fc",
        "*",
        "frozen",
    ),
]
Reader = Callable[[Path], object]


def checkpoint(path: Path) -> object:
    """Read all that a run reads of its checkpoint before a model is made."""
    return read_settings(path), read_history(path)


def bundle(path: Path) -> object:
    """Read a bundle, and each delta in it."""
    with unpacked(path) as held:
        return [
            st.load(delta, backbone=held.backbone, max_bytes=MEMORY // 6) for delta in held.deltas.values()
        ]


def backbone(path: Path) -> object:
    """Build a model on a checkpoint."""
    return st.create("densenet100_12", depth=10, growth_rate=2, num_classes=10, checkpoint=path)


READERS: dict[str, tuple[Reader, str]] = {
    "inspect": (st.inspect, "format*.safetensors"),
    "delta": (lambda path: st.load(path, max_bytes=MEMORY // 6), "format*.safetensors"),
    "bundle": (bundle, "bundle*.safetensors"),
    "slim": (lambda path: load_slim(path, max_bytes=MEMORY // 6), "slim*.safetensors"),
    "checkpoint": (checkpoint, "run-stopped/checkpoint.safetensors"),
    "backbone": (backbone, "slim*.safetensors"),
}


def bent(data: bytes, chance: random.Random) -> bytes:
    """Change bytes: flip, cut, repeat, put in, most often near the start, where the table is."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place = int(len(changed) * chance.random() ** chance.choice((1, 4)))
        what = chance.randrange(5)
        if what == 0 and changed:
            changed[min(place, len(changed) - 1)] ^= 1 << chance.randrange(8)
        elif what == 1:
            del changed[place : place + chance.choice((1, 8, 1000))]
        elif what == 2:
            changed[place:place] = changed[place : place + 100]
        elif what == 3:
            changed[place:place] = chance.choice((b"\0", b'"', b"9" * 30, b"[" * 500, b"\xff\xfe", b"e999"))
        else:
            return bytes(changed[:place])
    return bytes(changed)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def strange(chance: random.Random) -> Any:
    """Return a value that is not expected."""
    return copy.deepcopy(chance.choice(STRANGE))


def twisted(value: Any, chance: random.Random) -> Any:
    """Put something strange in some places of a JSON value, take others away, or give them twice."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        ways = [way for way in places(value) if way]
        if not ways:
            return strange(chance)
        *way, last = chance.choice(ways)
        holder = value
        for key in way:
            holder = holder[key]
        what = chance.randrange(6)
        if what == 0:
            del holder[last]
        elif what == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif what == 2 and isinstance(holder[last], (int, float)):
            holder[last] = chance.choice((-holder[last], holder[last] + 1, holder[last] * 10**6))
        elif what == 3 and isinstance(holder, dict):
            holder[chance.choice(("extra", "img_size", "depth", "rank", "dimensions", "layers", last))] = (
                strange(chance)
            )
        else:
            holder[last] = strange(chance)
    return value


def rewritten(data: bytes, chance: random.Random) -> bytes:
    """Forge a file: another header, index, or description, with every checksum as it should be."""
    (size,) = struct.unpack("<Q", data[:8])
    table, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    about = table.get("__metadata__", {})
    key = next((key for key in about if key.startswith("sparsetune") and key != SEAL), None)
    if key is None:
        return bent(data, chance)
    text = about[key]
    value = json.loads(text)
    if key == "sparsetune" and "about" in table:
        start, stop = table["about"]["data_offsets"]
        inner = zlib.compress(
            json.dumps(twisted(json.loads(zlib.decompress(body[start:stop])), chance)).encode()
        )
        body = body[:start] + inner + body[stop:]
        for each in table.values():
            if "data_offsets" in each:
                each["data_offsets"] = [
                    n + (len(inner) - (stop - start)) * (n >= stop) for n in each["data_offsets"]
                ]
        table["about"]["shape"] = [len(inner)]
        about[key] = json.dumps({**value, "digest": sha256(inner).hexdigest()})
    elif key == "sparsetune.training":
        about[key] = json.dumps(twisted(value, chance))
        names = [name for name in table if name != "__metadata__"]
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            Path(file.name).write_bytes(data)
            tensors = {name: value for name, value in _tensors(file.name).items() if name in names}
        about[SEAL] = digest_of(tensors, about[key])
    elif key == "sparsetune.bundle":
        about[key] = json.dumps(twisted(value, chance))
    else:
        changed = twisted(value, chance)
        about[key] = sealed(changed) if isinstance(changed, dict) else json.dumps(changed)
        if isinstance(changed, dict) and chance.random() < 0.1:
            about[key] = resealed(
                re.sub(r"\d+", lambda found: found[0] * chance.choice((1, 1, 300)), about[key])
            )
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + body


def _tensors(path: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def reindexed(path: Path, out: Path, chance: random.Random) -> bytes:
    """Forge a delta's index, as :class:`Parts` writes it; of files without one, bend their bytes."""
    data = path.read_bytes()
    if not path.name.startswith(FLAT):
        return bent(data, chance)
    parts = Parts(path)
    parts.index = twisted(parts.index, chance)
    return parts.write(out).read_bytes()


def escaped(read: Reader, path: Path) -> str | None:
    """Read a file; say what came out that must not."""
    began = time.monotonic()
    try:
        read(path)
    except st.SparsetuneError as error:
        text = str(error).replace(str(path), "")
        if not all(line.isprintable() for line in text.splitlines()) or len(text) > 2000:
            return f"unfit to print: {text[:200]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    seconds = time.monotonic() - began
    return f"{seconds:.1f} s" if seconds > SLOW else None


def main() -> int:
    """Fuzz for so long and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("escaped"))
    parser.add_argument("--results", type=Path, help="a file to which a line with what was seen is added")
    parser.add_argument("--readers", default=",".join(READERS))
    given = parser.parse_args()
    chance, ends = random.Random(given.seed), time.monotonic() + given.seconds
    names = given.readers.split(",")
    for name in names:  # what is loaded late is loaded before memory is limited
        read, pattern = READERS[name]
        escaped(read, sorted(GOLDEN.glob(pattern))[0])
    most = (taken_bytes("VmData") or 0) + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    warnings.simplefilter("ignore")
    counts, escapes = Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "input.safetensors"
        while time.monotonic() < ends:
            name = chance.choice(names)
            read, pattern = READERS[name]
            source = chance.choice(sorted(GOLDEN.glob(pattern)))
            how = chance.choice(("bent", "rewritten", "reindexed"))
            if how == "reindexed":
                data = reindexed(source, path, chance)
            else:
                data = (bent if how == "bent" else rewritten)(source.read_bytes(), chance)
            path.write_bytes(data)
            counts[f"{name}, {how}"] += 1
            if found := escaped(read, path):
                escapes += 1
                given.out.mkdir(parents=True, exist_ok=True)
                kept = given.out / f"{name}-{sha256(data).hexdigest()[:10]}.safetensors"
                kept.write_bytes(data)
                print(f"{kept}: {found}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seen = {
        "inputs": counts.total(),
        "escapes": escapes,
        "peak_mib": peak,
        "by": dict(sorted(counts.items())),
    }
    print(json.dumps(seen))
    if given.results:
        row = {"seed": given.seed, "seconds": given.seconds, **seen, "run": describe_machine()}
        with given.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return 1 if escapes else 0


if __name__ == "__main__":
    sys.exit(main())
