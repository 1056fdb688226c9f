"""The delta file: learned slices and running statistics, and all it takes to rebuild the rest.

One safetensors file. Its metadata has one key, ``sparsetune``, whose value is JSON (see ``header.py``).
Values are packed into one flat tensor for each dtype, in the order of an index: a zlib-compressed JSON list
of ``[name, dtype, shape]`` stored as the uint8 tensor ``index``. Two SHA-256 digests, of the header and of
the tensors, tell any change of a byte. docs/format.md has it all, for readers in other languages.

In files of few bytes what these take for themselves would be the most. So from format 6 on header and index
are one compressed tensor, ``about``, the flat tensors are coded by how often each byte occurs and make one,
``values``, and the metadata has format and digest alone. From format 7 on one digest is of both, ``about`` is
compressed by a dictionary of what such files say, and the index has each kind of module once.
"""

from __future__ import annotations

import json
import reprlib
import zlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from sparsetune.delta.header import (
    DTYPES,
    FORMATS,
    Header,
    header_text,
    parse_entries,
    parse_header,
    text_digest,
)
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.host import fetch, json_from, metadata, reason, write_bytes
from sparsetune.spec import BITS, SHORT, Precision, scales

if TYPE_CHECKING:
    from torch import Tensor

KEY = "sparsetune"
OTHERS = {
    "sparsetune.slim": "a slim network, no delta; load it with sparsetune.load_slim",
    "sparsetune.bundle": "a bundle of deltas; load it with Tasks.load or Ensemble.load",
    "sparsetune.training": "the checkpoint of a run, no delta; go on with sparsetune fit --resume",
}
"""Metadata keys of our other files, and what to do with these."""
INDEX, ABOUT, VALUES = "index", "about", "values"
SCALE, SHORT_SCALE = "scale", "short scale"
STORED = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "bool": "BOOL",
    "bf16": "BF16",
    "fp16": "F16",
    "int8": "I8",
    "root8": "U8",
    SCALE: "F32",
    INDEX: "U8",
    ABOUT: "U8",
    VALUES: "U8",
}
"""Name of each packed tensor -> safetensors' name of its type."""

LIMIT = 4 << 20
"""Most bytes of the header's text, and of the index when unpacked."""
FOLDED = 6
"""The first format in which one tensor holds all values."""
DENSE = 7
"""The first format whose ``about`` is compressed by ``WORDS``."""
FEW = 4096
"""Most bytes of a flat tensor of which a writer tries whether repetition makes it shorter."""
MANY = 1 << 17
"""Most tensors of a file from ``DENSE`` on."""
RATIO, ROOM = 8, 1 << 16
"""How many times as long as ``values`` what it unpacks to may be, and so many bytes more: coded by how often
it occurs, a byte has a bit or more."""


WORDS = (
    b'"downsample.1","stem.conv","stages.1.blocks.0.mlp.fc2","layers.0.blocks.1.attn.qkv",'
    b'"blocks.1.0.conv_pwl","blocks.2.1.conv_dw","features.10","denseblock1.layers.2.bn1",'
    b'"layer1.0.conv3","block1.1.shortcut","block2.3.conv1",0],["block2.3.conv2",1],["layer2.0.bn2",'
    b'2],["bias","int6",[64]]],[["weight_A","int6",[4,64,3,3]],["weight_B","int6",[64,4]]],[["weight",'
    b'"int8",[10,256]],[["running_mean","line4",[128]],["running_var","curve4",[128]],'
    b'["num_batches_tracked","int64",[]]],[["weight_theta","int6",[256]]],"backbone":{"generator":1,'
    b'"kind":"pretrained","revision":"","seed":0,"source":"timm/","kind":"file","seed":0,"sha256":"",'
    b'"source":".safetensors"},"classes":["0","1","2","3","4","5","6","7","8","9"],"dtype":"float32",'
    b'"fingerprint":"","format":7,"index":[[[["weight_theta","int8",[512]]],"learn":{"dim":"out",'
    b'"dimensions":4000,"filters":null,"fraction":null,"frozen":null,"head":false,"layers":null,'
    b'"norm":false,"norm_stats":"frozen"},"head":true,"model":{"kwargs":{},"library":"timm",'
    b'"name":"tf_efficientnet_","wrn28_4","num_classes":10},'
    b'"preprocessing":{"crop_mode":"center","crop_pct":0.875,"interpolation":"bilinear","bicubic",'
    b'"mean":[0.485,0.456,0.406],"size":[3,224,224],"std":[0.229,0.224,0.225]},'
    b'"training":{"config":{"amp":null,"batch_size":16,"compile":false,"decay_milestones":[],'
    b'"decay_rate":0.1,"epochs":12,"grad_checkpointing":false,"lr":0.1,"momentum":0.9,"opt":"adamw",'
    b'"scale":0.35,"sched":"cosine","seed":0,"smoothing":0.1,"val_share":0.1,"warmup_epochs":1.0,'
    b'"weight_decay":0.01},"data":"digits","options":{"dtype":"int6","init_from":null,"size":null,'
    b'"test_limit":null,"train_limit":null},"pictures":{"held_out":"","shared":0,"trained_on":[""],'
    b'"whole":false},"result":{"epoch":12,"lr":0.0,"test_loss":0.1,"test_top1":0.9,"test_top5":0.99,'
    b'"train_loss":0.1,"train_top1":0.9,"validation_loss":0.1,"validation_top1":0.9,'
    b'"validation_top5":1.0},"train_pictures":1438},"versions":{"numpy":"2.4.6","safetensors":"0.8.0",'
    b'"sparsetune":"0.1.0","timm":"1.0.31","torch":"2.14.1","torchvision":"0.29.1"}}'
)
"""What a file of few bytes may say of itself: the dictionary of ``about``. It never changes."""


def write_delta(
    path: str | Path, header: Header, tensors: Mapping[str, Tensor], precision: Precision | None = None
) -> None:
    """Write a delta file; it appears whole or not at all.

    Args:
        path: The file.
        header: All but ``entries`` and ``payload``, which follow from ``tensors``.
        tensors: Learned slices and buffers, by name, in the plan's order.
        precision: Write float32 values in fewer bits, but for frozen ones; ``None`` writes all as they are.

    Raises:
        ConfigError: When the header holds what is not plain JSON, or too much of it.
        DeltaError: When a tensor has a dtype, or a value, that the format or ``precision`` does not hold.
        StorageError: When the file cannot be written.
    """
    import torch  # late, here and below: a header is read without it
    from safetensors.torch import save as to_bytes

    from sparsetune.parts import FROZEN, decode, encode, role_of

    entries: list[list[Any]] = []
    groups: dict[str, list[Tensor]] = {}
    for name, value in tensors.items():
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise DeltaError(f"'{name}' has dtype {dtype}; a delta holds {', '.join(DTYPES)}.")
        numbers = value.detach().cpu().contiguous().reshape(-1)
        if precision and dtype == "float32" and not name.endswith(FROZEN):
            dtype, numbers, scale = encode(value, precision, role_of(name))
            if not decode(dtype, numbers, scale, tuple(value.shape)).isfinite().all():
                raise DeltaError(f"'{name}' holds values that {precision} cannot hold; leave dtype out.")
            if len(scale):
                short = dtype in SHORT
                kept = scale.bfloat16() if short else scale
                groups.setdefault(SHORT_SCALE if short else SCALE, []).append(kept)
        entries.append([name, dtype, list(value.shape)])
        groups.setdefault(dtype, []).append(numbers)
    packed = {dtype: torch.cat(values) for dtype, values in groups.items()}
    header = replace(header, format=_format(header, {*packed}))
    try:
        fold = _folded if header.format >= FOLDED else _plain
        packed, text, longest = fold(header, entries, packed)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot hold what is not plain JSON ({error}).") from error
    if longest > LIMIT:
        raise ConfigError(
            f"{path} would hold {longest} bytes about itself, more than {LIMIT}; "
            "shorten the class names or the summary of the training."
        )
    write_bytes(path, to_bytes(packed, metadata={KEY: text}))


Packed = dict[str, "Tensor"]
"""The tensors of a file."""


def _plain(header: Header, entries: list[list[Any]], packed: Packed) -> tuple[Packed, str, int]:
    """The tensors, the metadata's text, and the length of the longer of text and index."""
    index = json.dumps(entries, separators=(",", ":"))
    packed[INDEX] = _as_tensor(zlib.compress(index.encode(), 9))
    text = header_text(replace(header, payload=_payload_digest(packed)))
    return packed, text, max(len(text), len(index))


def _folded(header: Header, entries: list[list[Any]], packed: Packed) -> tuple[Packed, str, int]:
    """The same of a file whose values are one tensor."""
    values = b"".join(_dense(packed[name]) for name in sorted(packed))
    fields = {**header.to_json(), INDEX: _by_kind(entries)}
    del fields["payload"]
    about = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    folded = _deflated(about.encode(), words=WORDS)
    said = {"digest": _short_digest(folded, values), "format": header.format}
    text = json.dumps(said, separators=(",", ":"))
    return {ABOUT: _as_tensor(folded), VALUES: _as_tensor(values)}, text, len(about)


def _by_kind(entries: list[list[Any]]) -> list[list[Any]]:
    """Kinds of modules, lists of ``[leaf, dtype, shape]``, and each module's name with its kind's number."""
    kinds: dict[str, int] = {}
    modules = []
    for module, held in groupby(entries, key=lambda entry: entry[0].rpartition(".")[0]):
        kind = [[name.rpartition(".")[2], dtype, shape] for name, dtype, shape in held]
        modules.append([module, kinds.setdefault(json.dumps(kind), len(kinds))])
    return [[json.loads(kind) for kind in kinds], modules]


def _entries(index: Any) -> list[list[Any]]:
    """Undo :func:`_by_kind`.

    Raises:
        ValueError: When it is not such a result.
    """
    kinds, modules = index if isinstance(index, list) and len(index) == 2 else (None, None)
    entries: list[list[Any]] = []
    if not isinstance(kinds, list) or not isinstance(modules, list):
        raise ValueError("its index is not a list of kinds and one of modules")
    for each in modules:
        name, number = each if isinstance(each, list) and len(each) == 2 else (None, None)
        if not isinstance(name, str) or type(number) is not int or not 0 <= number < len(kinds):
            raise ValueError(f"its index has a module {reprlib.repr(each)}")
        kind = kinds[number]
        if not isinstance(kind, list) or not all(
            isinstance(part, list) and len(part) == 3 and isinstance(part[0], str) for part in kind
        ):
            raise ValueError(f"its index has a kind {reprlib.repr(kind)}")
        if len(entries) + len(kind) > MANY:
            raise ValueError(f"its index has more than {MANY:,} tensors")
        entries += [[f"{name}.{leaf}" if name else leaf, *rest] for leaf, *rest in kind]
    return entries


def _dense(values: Tensor) -> bytes:
    """Code bytes by how often each occurs (Huffman), as a deflate stream; a few also by repetition."""
    import torch

    content = values.view(torch.uint8).numpy().tobytes()
    coded = _deflated(content, strategy=zlib.Z_HUFFMAN_ONLY)
    return min(coded, _deflated(content), key=len) if len(content) <= FEW else coded


def _deflated(content: bytes, words: bytes = b"", strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy, words)
    return packer.compress(content) + packer.flush()


def _short_digest(about: bytes, values: bytes) -> str:
    """The SHA-256 over both, in base 64 without padding."""
    return b64encode(sha256(about + values).digest()).decode().rstrip("=")


def _as_tensor(content: bytes) -> Tensor:
    import torch

    if not content:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def read_header(path: str | Path) -> Header:
    """Read what a delta file says of itself; its values stay on disk.

    Raises:
        DeltaError: When the file is missing, damaged, or no delta.
    """
    with _Opened(path, framework="np") as file:
        return file.header()


def read_delta(path: str | Path, header: Header | None = None) -> dict[str, Tensor]:
    """Read and check a delta file's tensors.

    Args:
        path: The file.
        header: As :func:`read_header` gave it, to save reading it again.

    Returns:
        Every tensor of the index, by name, in its order.

    Raises:
        DeltaError: When the file is missing, damaged, or no delta.
    """
    with _Opened(path) as file:
        return file.tensors(header or file.header())


def is_delta(path: str | Path) -> bool:
    """Whether ``path`` is a safetensors file that says it is a delta; it may still be damaged."""
    return KEY in metadata(fetch(path))


class _Opened:
    """A delta file open for reading; every fault becomes one ``DeltaError``."""

    def __init__(self, path: str | Path, framework: str = "pt") -> None:
        self.path, self.framework = path, framework

    def __enter__(self) -> _Opened:
        local = fetch(self.path)
        if not local.is_file():
            raise DeltaError(f"{self.path} is not a file; pass a delta such as runs/NAME/delta.safetensors.")
        try:
            self.file: Any = safe_open(local, framework=self.framework)
        except (SafetensorError, OSError) as error:
            raise self._damaged(reason(error)) from error
        return self

    def __exit__(self, *error: object) -> None:
        self.file.__exit__(*error)

    def header(self) -> Header:
        """Parse the metadata and the index."""
        texts = self.file.metadata() or {}
        text = texts.get(KEY)
        for key in OTHERS.keys() & texts.keys():
            raise DeltaError(f"{self.path} is {OTHERS[key]}.")
        if text is None:
            raise DeltaError(
                f"{self.path} is a safetensors file without '{KEY}' metadata, so no delta; "
                "pass a file that sparsetune saved."
            )
        if len(text) > LIMIT:
            raise self._damaged(f"its header is longer than {LIMIT} bytes")
        try:
            value = json_from(text)
        except ValueError as error:
            raise self._damaged("its header is not readable") from error
        if not isinstance(value, dict) or type(value.get("format")) is not int:
            raise self._damaged("its header has no format")
        if value["format"] not in FORMATS:
            raise DeltaError(
                f"{self.path} has format {value['format']}; this sparsetune reads formats "
                f"{min(FORMATS)} to {max(FORMATS)}: "
                "install the version that wrote it, or a newer one."
            )
        digest = value.get("digest")
        folded, dense = value["format"] >= FOLDED, value["format"] >= DENSE
        values = self._bytes(VALUES) if dense else b""
        if dense:
            found = _short_digest(self._bytes(ABOUT), values)
        elif folded:
            found = sha256(self._bytes(ABOUT)).hexdigest()
        else:
            found = text_digest(text, str(digest))
        if digest != found:
            raise self._damaged("its header does not match its checksum")
        try:
            if folded:
                about = self._unpacked(ABOUT, dense)
                if not isinstance(about, dict) or about.get("format") != value["format"]:
                    raise ValueError("it does not have the format that it says")
                if not dense:
                    return parse_header(about, parse_entries(about.get(INDEX)))
                payload = sha256(values).hexdigest()
                return parse_header({**about, "payload": payload}, parse_entries(_entries(about.get(INDEX))))
            return parse_header(value, parse_entries(self._unpacked(INDEX)))
        except (ConfigError, ValueError) as error:
            raise self._damaged(f"its header has a wrong value: {reason(error)}") from error

    def tensors(self, header: Header) -> dict[str, Tensor]:
        """Unpack the tensors after every size and checksum agrees."""
        import torch

        from sparsetune.parts import decode

        sizes = dict[str, int]()
        for entry in header.entries:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.numel
            if count := scales(entry.dtype, entry.shape):
                name = SHORT_SCALE if entry.dtype in SHORT else SCALE
                sizes[name] = sizes.get(name, 0) + count
        packed = self._folded(sizes, header) if header.format >= FOLDED else self._flat(sizes, header)
        offsets = dict.fromkeys(sizes, 0)

        def take(name: str, count: int) -> Tensor:
            start = offsets.setdefault(name, 0)
            offsets[name] = start + count
            return packed[name][start : start + count] if name in packed else torch.empty(0)

        tensors = {}
        for entry in header.entries:
            numbers = take(entry.dtype, entry.numel)
            if entry.dtype in BITS:
                name = SHORT_SCALE if entry.dtype in SHORT else SCALE
                scale = take(name, scales(entry.dtype, entry.shape)).float()
                tensors[entry.name] = decode(entry.dtype, numbers, scale, entry.shape)
            else:
                tensors[entry.name] = numbers.view(entry.shape)
        return tensors

    def _flat(self, sizes: Mapping[str, int], header: Header) -> Packed:
        """The flat tensors as they stand in the file."""
        held = {name: self._shape(name) for name in self.file.keys()}  # noqa: SIM118
        if held.pop(INDEX, None) is None or held != {dtype: [size] for dtype, size in sizes.items()}:
            raise self._damaged("its tensors do not have the sizes that its index gives")
        packed = {name: self.file.get_tensor(name) for name in [*sizes, INDEX]}
        if _payload_digest(packed) != header.payload:
            raise self._damaged("its values do not match their checksum")
        return packed

    def _folded(self, sizes: Mapping[str, int], header: Header) -> Packed:
        """The flat tensors out of the one that holds them, one stream after another."""
        import torch

        from sparsetune.parts import CODES

        content = self._bytes(VALUES)
        if {*self.file.keys()} != {ABOUT, VALUES} or sha256(content).hexdigest() != header.payload:
            raise self._damaged("its values do not match their checksum")
        kinds = {SCALE: torch.float32, SHORT_SCALE: torch.bfloat16, **CODES}
        types = {name: kinds.get(name) or getattr(torch, name) for name in sizes}
        lengths = {name: size * types[name].itemsize for name, size in sizes.items()}
        if sum(lengths.values()) > RATIO * len(content) + ROOM:
            raise self._damaged("its values are not as many as its index says")
        packed = {}
        for name in sorted(lengths):
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS if header.format >= DENSE else zlib.MAX_WBITS)
            try:
                found = unpacker.decompress(content, lengths[name] + 1)
            except zlib.error as error:
                raise self._damaged("its values cannot be unpacked") from error
            if len(found) != lengths[name] or not unpacker.eof:
                raise self._damaged("its values are not as many as its index says")
            packed[name] = _as_tensor(found).view(types[name])
            content = unpacker.unused_data
        if content:
            raise self._damaged("its values are not as many as its index says")
        return packed

    def _unpacked(self, name: str, dense: bool = False) -> Any:
        """What a compressed tensor of JSON says."""
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS, WORDS) if dense else zlib.decompressobj()
        try:
            text = unpacker.decompress(self._bytes(name), LIMIT)
        except zlib.error as error:
            raise ValueError(f"its {name} cannot be unpacked") from error
        if not unpacker.eof:
            raise ValueError(f"its {name} is cut off or too long")
        return json_from(text)

    def _bytes(self, name: str) -> bytes:
        """The bytes of a tensor of such."""
        import numpy as np

        if name not in self.file.keys():  # noqa: SIM118
            raise self._damaged(f"it has no {name}")
        self._shape(name)
        return np.asarray(self.file.get_tensor(name)).tobytes()

    def _shape(self, name: str) -> list[int]:
        """Return the shape of a packed tensor, after its type is seen to be what its name says."""
        part = self.file.get_slice(name)
        if part.get_dtype() != STORED.get(name):
            raise self._damaged(f"its tensor {reprlib.repr(name)} is stored as {part.get_dtype()}")
        shape: list[int] = part.get_shape()
        return shape

    def _damaged(self, reason: str) -> DeltaError:
        return DeltaError(f"{self.path} is not an intact delta ({reason}); get a fresh copy of the file.")


def compress(path: str | Path, out: str | Path, dtype: Precision) -> None:
    """Write a delta in fewer bits.

    Args:
        path: The delta.
        out: The file to write.
        dtype: ``bf16``, ``fp16``, ``int8`` or ``int6``.

    Raises:
        DeltaError: When ``path`` is damaged, or holds a value that ``dtype`` does not.
        StorageError: When ``out`` cannot be written.
    """
    header = read_header(path)
    write_delta(out, header, read_delta(path, header), dtype)


def _format(header: Header, groups: set[str]) -> int:
    """The oldest format that holds the file, so that older readers take what they can."""
    learn, form = header.learn, header.preprocessing
    if learn.dimensions is not None or SHORT_SCALE in groups:
        return 7  # 6 is read alone: what it held takes fewer bytes so
    if learn.norm_stats or (learn.rank is not None and not learn.depthwise_sums) or (form and form.crops):
        return 5
    if header.learn.by_layer:
        return 4
    return 3 if header.learn.rank is not None else 2 if groups & {*BITS} else 1


def _payload_digest(packed: Mapping[str, Tensor]) -> str:
    import torch

    digest = sha256()
    for name in sorted(packed):
        values = packed[name].view(torch.uint8).numpy()
        digest.update(f"{name}\0{values.size}\0".encode())
        digest.update(values.data)
    return digest.hexdigest()
