"""Read and write delta files with nothing of sparsetune, from docs/format.md alone; and forge them."""

import base64
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import torch

import sparsetune as st
from sparsetune.runs.settings import Run

STORED = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "bool": "BOOL",
    "index": "U8",
}
CODES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "root8": torch.uint8,
    "int6": torch.int8,
    "line4": torch.uint8,
    "curve4": torch.uint8,
}
SCALES = {"int8": "scale", "root8": "scale", **dict.fromkeys(("int6", "line4", "curve4"), "short scale")}
SIZES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "BOOL": 1, "U8": 1}

STOPPED = Run(
    model="densenet100_12",
    model_kwargs={"depth": 10, "growth_rate": 2},
    learn=st.Learn(fraction=0.5),
    config=st.FitConfig(epochs=2, batch_size=32, lr=0.05, device="cpu"),
    train_limit=100,
    test_limit=20,
)
"""The settings of the golden run that was stopped."""


FORMAT = Path(__file__).parent.parent / "docs" / "format.md"
WORDS = FORMAT.read_text().split("```text\n")[-1].split("\n```")[0].encode()
"""The dictionary, as the documentation has it."""


def about_of(folded, dense=True):
    """What a folded file says of itself."""
    stream = zlib.decompressobj(-15, WORDS) if dense else zlib.decompressobj()
    text = stream.decompress(folded)
    assert stream.eof
    return json.loads(text)


def folded_again(fields, dense=True):
    """Undo :func:`about_of`."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9, 0, WORDS) if dense else zlib.compressobj()
    return stream.compress(json.dumps(fields).encode()) + stream.flush()


def digest_of_both(about, values, dense=True):
    """The digest that a folded file has."""
    if not dense:
        return hashlib.sha256(about).hexdigest()
    return base64.b64encode(hashlib.sha256(about + values).digest()).decode().rstrip("=")


class Parts:
    """A delta file taken apart: header, index, and the bytes of each packed tensor."""

    def __init__(self, path):
        data = Path(path).read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        table = json.loads(data[8 : 8 + size])
        self.text = table.pop("__metadata__")["sparsetune"]
        self.header = json.loads(self.text)
        body = data[8 + size :]
        self.packed = {name: body[slice(*item["data_offsets"])] for name, item in table.items()}
        self.types = {name: item["dtype"] for name, item in table.items()}
        if "about" in self.packed:
            self.unfold()
            return
        self.index_bytes = self.packed.pop("index")
        self.index = json.loads(zlib.decompress(self.index_bytes))

    def unfold(self):
        """Take a file of few bytes apart, whose header and packed tensors are compressed."""
        about, rest, dense = self.packed["about"], self.packed["values"], self.header["format"] > 6
        assert digest_of_both(about, rest, dense) == self.header["digest"]
        self.header = about_of(about, dense) | {"digest": self.header["digest"]}
        self.index = self.header.pop("index")
        if dense:
            self.header["payload"] = hashlib.sha256(rest).hexdigest()
            kinds, modules = self.index
            self.index = [
                [f"{module}.{leaf}".removeprefix("."), *rest]
                for module, kind in modules
                for leaf, *rest in kinds[kind]
            ]
        assert hashlib.sha256(rest).hexdigest() == self.header["payload"]
        used = {code for _, code, shape in self.index if 0 not in shape}
        self.packed = {}
        for name in sorted(used | {SCALES[code] for code in used & {*SCALES}}):
            stream = zlib.decompressobj(-15 if dense else 15)
            self.packed[name] = stream.decompress(rest)
            assert stream.eof
            rest = stream.unused_data
        assert not rest

    def tensors(self):
        """Name -> tensor, cut out of the packed bytes in the index's order."""
        offsets = dict.fromkeys(self.packed, 0)
        found = {}

        def take(packed, dtype, count):
            place = {"offset": offsets[packed], "count": count}
            offsets[packed] += count * dtype.itemsize
            return torch.frombuffer(bytearray(self.packed[packed]), dtype=dtype, **place)

        for name, code, shape in self.index:
            count = torch.Size(shape).numel()
            values = take(code, CODES.get(code) or getattr(torch, code), count)
            if code in ("int8", "int6"):
                kind = torch.float32 if code == "int8" else torch.bfloat16
                scale = take(SCALES[code], kind, shape[0] if len(shape) > 1 else 1).float().numpy()
                values = torch.from_numpy(values.numpy().reshape(len(scale), -1) * scale[:, None])
            elif code in ("line4", "curve4"):
                first, second = take(SCALES[code], torch.bfloat16, 2).double().tolist()
                steps = [
                    first + n * second if code == "line4" else _times(first, second, n)
                    for n in values.tolist()
                ]
                values = torch.tensor(steps, dtype=torch.float64).float()
            elif code == "root8":
                root = values.numpy().astype("f8") * take("scale", torch.float32, 1).numpy().astype("f8")
                values = torch.from_numpy(((root * root) * (root * root)).astype("f4"))
            found[name] = (values.float() if code in CODES else values).reshape(shape)
        return found

    def payload(self, packed):
        digest = hashlib.sha256()
        for name in sorted(packed):
            digest.update(f"{name}\0{len(packed[name])}\0".encode() + packed[name])
        return digest.hexdigest()

    def write(self, path, *, index_bytes=None, seal=True, metadata=None):
        """Write the parts, by default with both digests made right, as a forger would."""
        if index_bytes is None:
            index_bytes = zlib.compress(json.dumps(self.index).encode()) if seal else self.index_bytes
        packed = {**self.packed, "index": index_bytes}
        if seal:
            if isinstance(self.header, dict) and isinstance(self.header.get("payload"), str):
                self.header["payload"] = self.payload(packed)
            self.text = sealed(self.header)
        return raw(path, packed, self.types, {"sparsetune": self.text} if metadata is None else metadata)


def _times(value, factor, count):
    """The value, multiplied so many times, one after the other."""
    for _ in range(count):
        value *= factor
    return value


def sealed(header):
    if not isinstance(header, dict):
        return json.dumps(header)
    return resealed(json.dumps({**header, "digest": ""}, sort_keys=True, separators=(",", ":")))


def resealed(text):
    """The text with the digest that it should have."""
    blank = re.sub('"digest":"[0-9a-f]*"', '"digest":""', text, count=1)
    return blank.replace('"digest":""', f'"digest":"{hashlib.sha256(blank.encode()).hexdigest()}"', 1)


def raw(path, packed, types, metadata):
    """Write a safetensors file by hand."""
    table, body = {"__metadata__": metadata} if metadata is not None else {}, b""
    order = sorted(packed, key=lambda name: -SIZES.get(types.get(name, STORED.get(name, "U8")), 1))
    for name in order:
        kind = types.get(name, STORED.get(name, "U8"))
        shape = [len(packed[name]) // SIZES.get(kind, 1)]
        table[name] = {
            "dtype": kind,
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(packed[name])],
        }
        body += packed[name]
    head = json.dumps(table).encode()
    head += b" " * (-len(head) % 8)
    Path(path).write_bytes(struct.pack("<Q", len(head)) + head + body)
    return path


def small(learn=None, *, seed=0, **kwargs):
    """An adapted WRN-10-1 whose learned values and statistics have moved."""
    net = st.create("wrn28_4", **{"depth": 10, "width": 1, "num_classes": 10, **kwargs}, seed=seed)
    return moved(st.adapt_(net, learn or st.Learn(fraction=0.2)))


def moved(net, seed=1):
    """Move every learned value and statistic, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    still = {buffer.name for buffer in st.adapted(net).plan.statistics}
    with torch.no_grad():
        for value in (*net.parameters(), *net.buffers()):
            if value.is_floating_point() and value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator).to(value.dtype), alpha=0.1)
        for name, value in net.named_buffers():
            if name in still:
                continue
            if name.endswith("running_mean"):
                value.add_(torch.randn(value.shape, generator=generator).to(value.dtype), alpha=0.1)
            if name.endswith("running_var"):
                value.mul_(1 + torch.rand(value.shape, generator=generator).to(value.dtype))
            if name.endswith("num_batches_tracked"):
                value.add_(17)
    return net


def same(a, b):
    """Whether two models have equal names, dtypes and values."""
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def measured(net, merge=True):
    """Digest over every value of a model, frozen ones too, and its float32 logits for one picture.

    Sums are rounded as the processor does it, so of these the digest is over the factors. Without ``merge``
    it is over the model's own values, which it keeps.
    """
    factors = net.state_dict() if not merge or st.adapted(net).plan.learn.rank else None
    net = st.merge_(net) if merge else net
    digest = hashlib.sha256()
    for name, value in (factors or net.state_dict()).items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    picture = ((torch.arange(3 * 16 * 16) * 37 % 101) / 50 - 1).reshape(1, 3, 16, 16)
    with torch.no_grad():
        logits = net.float().eval()(picture)[0]
    return digest.hexdigest(), [round(value, 5) for value in logits.tolist()]


X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def stirred(net, seed):
    """Give an adapted model other learned values and statistics, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator), alpha=0.1)
            else:
                value.fill_(seed)
    return net


def bare(*rooms):
    """Python code after which files of these rooms are imported without what the rooms' doors import."""
    root = Path(st.__file__).parent
    places = {"sparsetune": root, **{f"sparsetune.{room}": root / room for room in rooms}}
    return "import sys, types\n" + "".join(
        f"package = sys.modules[{name!r}] = types.ModuleType({name!r}); package.__path__ = [{str(path)!r}]\n"
        for name, path in places.items()
    )


def fresh(code, *args, **env):
    """Run Python code in a new process; give the JSON that its last line prints."""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **{k: str(v) for k, v in env.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def in_threads(work, count):
    """Run ``work(number)`` in so many threads, and wait for all."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
