"""Give every reader of files what a stranger might: damaged bytes, and forged files with right checksums.

    python tests/fuzz/fuzz.py --seconds 60 [--seed 0] [--out FOLDER] [--readers delta,bundle] [--results FILE]

First come the inputs of ``corpus``, a folder a reader, which once went wrong. All others are changed golden
files of every format, so that each is nearly right. Whatever comes out of a reader
but its result or one of sparsetune's errors in printable words is an escape, and so is what takes longer than
ten seconds or more memory than the process may have; the input is kept in ``--out``. It ends with 1 if there
was one.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import sparsetune as st
from sparsetune.delta import verify
from sparsetune.delta.bundles import unpacked
from sparsetune.host import SEAL, describe_machine, digest_of, taken_bytes
from sparsetune.narrow.network import load_slim
from sparsetune.runs.run import run
from sparsetune.studies.paper import read_results, write_report
from sparsetune.studies.store import open_store
from sparsetune.train.checkpoint import read_history, read_settings

sys.path.insert(0, str(Path(__file__).parent.parent))
from forge import STOPPED, Parts, X, about_of, digest_of_both, folded_again, resealed, sealed

FLAT = tuple(f"format{number}" for number in range(1, 6))
"""Of the files with an index of their own."""
GOLDEN = Path(__file__).parent.parent / "golden"
CORPUS = Path(__file__).parent / "corpus"
ALSO = {"delta": ["inspect", "verify"], "bundle": ["together"], "checkpoint": ["resume"]}
"""Readers that are given what another one's folder holds, too."""
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "paper" / "cifar10-subset.jsonl"
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


def together(path: Path) -> object:
    """Load a bundle as tasks and as an ensemble, and answer with each."""
    tasks, ensemble = (
        st.Tasks.load(path, max_bytes=MEMORY // 6),
        st.Ensemble.load(path, max_bytes=MEMORY // 6),
    )
    return [tasks(name, X) for name in tasks.names], ensemble(X)


def backbone(path: Path) -> object:
    """Build a model on a checkpoint."""
    return st.create("densenet100_12", depth=10, growth_rate=2, num_classes=10, checkpoint=path)


def resume(path: Path) -> object:
    """Go on with the golden run from a checkpoint, by a step."""
    return _run(path, "checkpoint.safetensors", time_budget=0.0)


def finished(path: Path) -> object:
    """Open a run that has its delta, with a history."""
    return _run(path, "metrics.jsonl")


def settings(path: Path) -> object:
    """Open a run with settings."""
    return _run(path, "config.json", time_budget=0.0)


def _run(path: Path, name: str, time_budget: float | None = None) -> object:
    with tempfile.TemporaryDirectory() as folder:
        for file in (GOLDEN / "run-stopped").iterdir():
            if name != "metrics.jsonl" or file.name != "checkpoint.safetensors":
                shutil.copy(file, folder)
        if name == "metrics.jsonl":
            Path(folder, "delta.safetensors").touch()
        shutil.copy(path, Path(folder, name))
        return run(STOPPED, Path(folder), resume=True, time_budget=time_budget)


def pictures(path: Path) -> object:
    """Read a Parquet file of pictures, and the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder, "train.parquet"))
        data = st.open_data(folder)
        return [picture for picture, _ in data.train or ()]


def rows(path: Path) -> object:
    """Read the results of a study, and make its page."""
    with tempfile.TemporaryDirectory() as folder:
        return write_report(*read_results(path), Path(folder))


def store(path: Path) -> object:
    """Read the results of a study from its database."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder, "results.sqlite"))
        with open_store(Path(folder), write=False) as opened:
            return opened.rows(), opened.noted("selection")


def small() -> torch.nn.Module:
    """A model that learns sums, for adapters."""
    return st.create("densenet100_12", depth=10, growth_rate=2, num_classes=10)


def adapter(path: Path) -> object:
    """Read an adapter of PEFT's, of which the values are the input."""
    return _adapter(path, "adapter_model.safetensors")


def adapter_config(path: Path) -> object:
    """Read an adapter of which the settings are the input."""
    return _adapter(path, "adapter_config.json")


def _adapter(path: Path, name: str) -> object:
    with tempfile.TemporaryDirectory() as folder:
        st.to_peft(st.adapt_(small(), st.Learn(rank=1)), folder)
        shutil.copy(path, Path(folder, name))
        return st.from_peft(small(), folder)


def sources(folder: Path) -> dict[str, list[Path]]:
    """Write what is no golden file: a history, pictures, results; give it by the name of its reader."""
    history = folder / "metrics.jsonl"
    records = [
        {"epoch": n, "lr": 0.1, "train_loss": 2.0, "train_top1": 0.5, "test_top1": 0.5} for n in (1, 2)
    ]
    history.write_text("\n".join(map(json.dumps, records)))
    coded = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(coded, "PNG")
    table = pa.table({"image": [{"bytes": coded.getvalue(), "path": None}] * 40, "label": [0, 1] * 20})
    told = {b"label_names": b'["a", "b"]'}
    for kind in ("snappy", "zstd", "none"):
        pq.write_table(
            table.replace_schema_metadata(told),
            folder / f"{kind}.parquet",
            compression=kind,
            row_group_size=25,
        )
    database = folder / "study"
    found, selection = read_results(RESULTS)
    with open_store(database, write=True) as opened:
        for row in found[:3]:
            opened.add(row)
        opened.note("selection", selection)
    opened.connection.close()
    adapted = folder / "adapter"
    st.to_peft(st.adapt_(small(), st.Learn(rank=1)), adapted)
    return {
        "adapter": [adapted / "adapter_model.safetensors"],
        "adapter_config": [adapted / "adapter_config.json"],
        "finished": [history],
        "settings": [GOLDEN / "run-stopped" / "config.json"],
        "pictures": sorted(folder.glob("*.parquet")),
        "rows": [RESULTS],
        "store": [database / "results.sqlite"],
    }


READERS: dict[str, tuple[Reader, str]] = {
    "inspect": (st.inspect, "format*.safetensors"),
    "delta": (lambda path: st.load(path, max_bytes=MEMORY // 6), "format*.safetensors"),
    "verify": (lambda path: verify(path, max_bytes=MEMORY // 6), "format*.safetensors"),
    "bundle": (bundle, "bundle*.safetensors"),
    "together": (together, "bundle*.safetensors"),
    "slim": (lambda path: load_slim(path, max_bytes=MEMORY // 6), "slim*.safetensors"),
    "checkpoint": (checkpoint, "run-stopped/checkpoint.safetensors"),
    "backbone": (backbone, "slim*.safetensors"),
    "resume": (resume, "run-stopped/checkpoint.safetensors"),
    "finished": (finished, ""),
    "settings": (settings, ""),
    "pictures": (pictures, ""),
    "rows": (rows, ""),
    "store": (store, ""),
    "adapter": (adapter, ""),
    "adapter_config": (adapter_config, ""),
}
"""What is read, and which golden files are changed for it; the others' files are made."""


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
        dense = value["format"] > 6
        inner = folded_again(twisted(about_of(body[start:stop], dense), chance), dense)
        body = body[:start] + inner + body[stop:]
        for each in table.values():
            if "data_offsets" in each:
                each["data_offsets"] = [
                    n + (len(inner) - (stop - start)) * (n >= stop) for n in each["data_offsets"]
                ]
        table["about"]["shape"] = [len(inner)]
        values = body[slice(*table["values"]["data_offsets"])] if "values" in table else b""
        about[key] = json.dumps({**value, "digest": digest_of_both(inner, values, dense)})
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


def relined(data: bytes, chance: random.Random) -> bytes:
    """Forge lines of JSON, or a file of it."""
    lines = data.decode().splitlines()
    whole = len(lines[0]) < 3
    values = [json.loads(data)] if whole else [json.loads(line) for line in lines[:9]]
    number = chance.randrange(len(values))
    values[number] = twisted(values[number], chance)
    return "\n".join(map(json.dumps, values)).encode()


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


def escaped(read: Reader, path: Path, slow: float = SLOW) -> str | None:
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
    return f"{seconds:.1f} s" if seconds > slow else None


def known() -> Iterator[tuple[str, Path]]:
    """Yield each input that once went wrong, with the readers that it is for."""
    for path in sorted(CORPUS.glob("*/*")):
        for name in (path.parent.name, *ALSO.get(path.parent.name, ())):
            yield name, path


def main() -> int:
    """Fuzz for so long and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", type=float, default=SLOW, help="seconds that an input may take")
    parser.add_argument("--out", type=Path, default=Path("escaped"))
    parser.add_argument("--results", type=Path, help="a file to which a line with what was seen is added")
    parser.add_argument("--readers", default=",".join(READERS))
    given = parser.parse_args()
    chance = random.Random(given.seed)
    names = given.readers.split(",")
    for name in names:  # what is loaded late is loaded before memory is limited
        read, pattern = READERS[name]
        if pattern:
            escaped(read, sorted(GOLDEN.glob(pattern))[0])
    most = (taken_bytes("VmData") or 0) + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    warnings.simplefilter("ignore")
    counts, escapes = Counter[str](), 0
    for name, kept in known():
        counts[f"{name}, known"] += 1
        if found := escaped(READERS[name][0], kept, given.slow):
            escapes += 1
            print(f"{kept}: {found}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        made = sources(Path(folder))
        path, ends = Path(folder) / "input", time.monotonic() + given.seconds
        while time.monotonic() < ends:
            name = chance.choice(names)
            read, pattern = READERS[name]
            source = chance.choice(made.get(name) or sorted(GOLDEN.glob(pattern)))
            how = chance.choice(("bent", "rewritten", "reindexed"))
            if name in made:
                lines = source.suffix in (".json", ".jsonl")
                how = chance.choice(("bent", "relined")) if lines else "bent"
            if how == "relined":
                data = relined(source.read_bytes(), chance)
            elif how == "reindexed":
                data = reindexed(source, path, chance)
            else:
                data = (bent if how == "bent" else rewritten)(source.read_bytes(), chance)
            path.write_bytes(data)
            counts[f"{name}, {how}"] += 1
            if found := escaped(read, path, given.slow):
                escapes += 1
                given.out.mkdir(parents=True, exist_ok=True)
                kept = given.out / f"{name}-{sha256(data).hexdigest()[:10]}{source.suffix}"
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
