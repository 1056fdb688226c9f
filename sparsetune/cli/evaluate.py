"""``sparsetune eval`` and ``predict``: what deltas say of pictures."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsetune.cli import console, options
from sparsetune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsetune.data import Data, Overlap, Preprocessing, Split
    from sparsetune.delta import Header
    from sparsetune.train import Detection, Diversity, Scores

TABLES = (".csv", ".parquet")
"""Suffixes of the tables that ``predict`` writes."""
SOME_FAILED, ALL_FAILED = 1, 2
"""Exit codes of ``predict`` where some pictures, or all, cannot be read."""


def evaluate(
    deltas: Annotated[
        list[str],
        typer.Argument(help="Deltas or bundles, files or hf://OWNER/NAME; several also as an ensemble."),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="As for fit; the data that the first delta was trained on if left out."),
    ] = None,
    test_limit: Annotated[
        int | None,
        typer.Option("--test-limit", help="Use so many test pictures, balanced over classes."),
    ] = None,
    ood: Annotated[
        str | None,
        typer.Option("--ood", help="Data of other things; measure how well low confidence tells them apart."),
    ] = None,
    tta: options.Tta = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Write report.json, confusion.png and mistakes.png to this folder; of several deltas, about "
            "their ensemble.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Pictures at a time.")] = 256,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes that decode pictures.")] = 0,
    device: options.Device = None,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Measure accuracy and calibration on test pictures, or validation pictures where there is no test.

    Example: sparsetune eval a.safetensors b.safetensors --data digits
    """
    with ExitStack() as held:
        files = [item for path in deltas for item in _files(path, backbone, held)]
        _evaluate(
            files,
            data,
            test_limit,
            ood,
            tta,
            report,
            batch_size,
            workers,
            device,
            allow_network,
            max_memory,
            as_json,
        )


@dataclass(frozen=True)
class _File:
    """A delta, what to call it, and the checkpoint that it stands on, if that was given or lies beside it."""

    name: str
    path: str | Path
    backbone: str | Path | None


def _files(path: str, backbone: str | None, held: ExitStack) -> list[_File]:
    """A delta as it is, or those of a bundle."""
    from sparsetune.delta import is_bundle, unpacked

    if not is_bundle(path):
        return [_File(path, path, backbone)]
    inside = held.enter_context(unpacked(path))
    return [_File(f"{path}: {name}", f, backbone or inside.backbone) for name, f in inside.deltas.items()]


def _evaluate(
    files: list[_File],
    data: str | None,
    test_limit: int | None,
    ood: str | None,
    tta: int,
    report: Path | None,
    batch_size: int,
    workers: int,
    device: str | None,
    allow_network: bool,
    max_memory: int | None,
    as_json: bool,
) -> None:
    import torch

    from sparsetune.data import loader, open_data
    from sparsetune.delta import inspect, load
    from sparsetune.host import pick_device
    from sparsetune.runs import report_on
    from sparsetune.train import Views, diversity, pictures_for, predict

    place = pick_device(device)
    headers = [inspect(file.path) for file in files]
    opened = open_data(data or _trained_on(headers[0]), test_limit=test_limit)
    views = Views(tta, opened.augment.flip)
    for file, header in zip(files, headers, strict=True):
        _check_classes(file.name, header, opened)
    others = None if ood is None else open_data(ood)
    for each in (opened, others):
        if each:
            console.tell_data(each)
    overlaps = _overlaps(headers, opened.judged)
    for file, overlap in zip(files, overlaps, strict=True):
        if overlap and overlap.pictures:
            _warn(file.name, overlap, len(opened.judged))
    known: list[Tensor] = []
    other: list[Tensor] = []
    labels = torch.empty(0, dtype=torch.int64)
    with console.progress() as bars:
        for file, header in zip(files, headers, strict=True):
            net = load(
                file.path, backbone=file.backbone, allow_network=allow_network, max_bytes=max_memory
            ).to(place)

            def probabilities(
                data: Data, net: nn.Module = net, header: Header = header
            ) -> tuple[Tensor, Tensor]:
                form = header.preprocessing or pictures_for(net, opened).preprocessing
                batches = loader(data.judged, form, batch_size=batch_size, workers=workers)
                return predict(net, bars.track(batches, description=data.name), views)

            found, labels = probabilities(opened)
            known.append(found)
            other += [probabilities(others)[0]] if others else []
    names, together = [file.name for file in files], torch.stack(known)
    if len(files) > 1:
        names.append("ensemble")
        known.append(together.mean(0))
        other += [torch.stack(other).mean(0)] if other else []
    measured = [_measure(name, known[i], labels, other[i] if other else None) for i, name in enumerate(names)]
    differ = diversity(together) if len(files) > 1 else None
    judged = None
    if report:
        judged = report_on(known[-1], opened.judged, opened.classes, opened.name, opened.judged_by)
        judged.save(report)
    if as_json:
        value = _value(opened, others, len(labels), measured, differ, overlaps)
        console.print_json(value | ({"report": str(report)} if report else {}))
    else:
        _print(opened, others, len(labels), measured, differ)
        if judged:
            console.out.print(f"\n{judged}\n\nreport  {report}")


@dataclass(frozen=True)
class _Measured:
    """A member or the ensemble: its scores as it is, after temperature scaling, and on other things."""

    name: str
    plain: Scores
    scaled: Scores
    detects: Detection | None

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {**self.plain.to_json(), "calibrated": self.scaled.to_json()}
        return value if self.detects is None else {**value, "ood": self.detects.to_json()}


def _measure(name: str, known: Tensor, labels: Tensor, other: Tensor | None) -> _Measured:
    from sparsetune.train import calibrated, detection, scores

    detects = None if other is None else detection(known, other)
    return _Measured(name, scores(known, labels), scores(calibrated(known, labels), labels), detects)


def _value(
    data: Data,
    others: Data | None,
    count: int,
    measured: list[_Measured],
    differ: Diversity | None,
    overlaps: list[Overlap | None],
) -> dict[str, Any]:
    members = measured[:-1] if differ else measured
    value: dict[str, Any] = {"data": data.name, "split": data.judged_by, "pictures": count}
    value |= {"ood": others.name} if others else {}
    value["members"] = [
        {"delta": each.name, **each.to_json(), "trained_on": overlap and asdict(overlap)}
        for each, overlap in zip(members, overlaps, strict=True)
    ]
    if differ:
        value["ensemble"] = {**measured[-1].to_json(), **differ.to_json()}
    return value


def _print(
    data: Data, others: Data | None, count: int, measured: list[_Measured], differ: Diversity | None
) -> None:
    against = f", told from {others.name} by low confidence" if others else ""
    console.out.print(f"{count:,} {data.judged_by} pictures of {data.name}{against}")
    header = ["delta", "top-1", *["top-5"] * (len(data.classes) > 5)]
    header += ["NLL", "Brier", "ECE", "aECE", "ECE at T"]
    header += ["AUROC", "AUPR", "FPR95"] if others else []
    console.print_table(header, [[each.name, *_cells(each)] for each in measured])
    if differ:
        console.out.print(
            f"mutual information {differ.mutual_information:.4f} nats, disagreement {differ.disagreement:.2%}"
        )


def _cells(each: _Measured) -> list[str]:
    s, detects = each.plain, each.detects
    shares = [f"{value:.2%}" for value in (s.top1, s.top5) if value is not None]
    figures = [s.nll, s.brier, s.ece, s.adaptive_ece, each.scaled.ece]
    figures += [detects.auroc, detects.aupr, detects.fpr95] if detects else []
    return shares + [f"{value:.4f}" for value in figures]


def _overlaps(headers: list[Header], judged: Split) -> list[Overlap | None]:
    """How many of the pictures each delta was trained on; ``None`` for one that does not say."""
    from sparsetune.data import Seen

    known = [Seen.from_json(header.training) for header in headers]
    keys = judged.keys() if any(known) else None
    return [each.overlap(keys) if each and keys is not None else None for each in known]


def _warn(name: str, overlap: Overlap, count: int) -> None:
    about = "" if overlap.exact else "about "
    console.err.print(
        f"{name} was trained on {about}{overlap.pictures:,} of the {count:,} pictures that it is scored on "
        "here, so its scores are better than on new ones; score it on pictures that it has not seen."
    )


def _trained_on(header: Header) -> str:
    from sparsetune.data import NAMES

    name = header.training.get("data")
    if name not in NAMES:
        raise ConfigError(
            f"the delta was trained on '{name}', which is not a built-in data set; pass --data with "
            "the name, address or path of pictures of its classes."
        )
    return str(name)


def _check_classes(name: str, header: Header, data: Data) -> None:
    classes = header.classes
    if header.num_classes == len(data.classes) and classes in (None, data.classes):
        return
    named = f" ({', '.join(classes[:3])}, …)" if classes else ""
    raise DataError(
        f"{name} knows {header.num_classes} classes{named}, but {data.name} has "
        f"{len(data.classes)} ({', '.join(data.classes[:3])}, …); evaluate it on data of its own classes."
    )


def predict(
    delta: options.Delta,
    images: Annotated[
        list[str], typer.Argument(help="Pictures, folders of pictures, or patterns such as 'photos/*.jpg'.")
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Show so many classes of each.")] = 5,
    tta: options.Tta = 0,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time; memory grows with it.")
    ] = 32,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write a table too, a row for each picture: .csv or .parquet."),
    ] = None,
    device: options.Device = None,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Name what is in pictures.

    Example: sparsetune predict runs/NAME/delta.safetensors cat.jpg photos/ -o answers.csv

    Pictures that cannot be read are named on stderr, and the others answered; the exit code is then 1.
    """
    import torch

    from sparsetune.data import check_batch, mirrors
    from sparsetune.delta import inspect, load
    from sparsetune.host import pick_device
    from sparsetune.train import Views, probabilities_of

    if out is not None and out.suffix not in TABLES:
        raise ConfigError(f"'{out}' does not end in {' or '.join(TABLES)}, the tables that are written.")
    place = pick_device(device)
    header = inspect(delta)
    if header.preprocessing is None:
        raise ConfigError(f"{delta} does not say how pictures are prepared; save it with preprocessing=...")
    views = Views(tta, mirrors(str(header.training.get("data"))))
    named = [each for word in images for each in _pictures(word)]
    if all(error for _, error in named):
        raise DataError("\n".join(str(error) for _, error in named))
    check_batch(header.preprocessing, min(batch_size, len(named)))
    net = load(delta, backbone=backbone, allow_network=allow_network, max_bytes=max_memory).to(place)
    found: list[dict[str, Any]] = []
    for start in range(0, len(named), batch_size):
        batch = named[start : start + batch_size]
        answers = [(name, error or _read(name, header.preprocessing)) for name, error in batch]
        readable = [x for _, x in answers if not isinstance(x, DataError)]
        if readable:
            rows = iter(probabilities_of(net, torch.stack(readable), views))
        for name, answer in answers:
            if isinstance(answer, DataError):
                console.complain(answer)
                found.append({"image": name, "error": str(answer)})
                continue
            ranked = _ranked(next(rows), header.classes, top)
            found.append({"image": name, "classes": [{"name": n, "probability": p} for n, p in ranked]})
            if not as_json:
                console.out.print(name, style="bold")
                for label, probability in ranked:
                    console.out.print(f"  {probability:7.2%}  {label}")
    if out is not None:
        from sparsetune.data import write_table

        write_table(out, [_row(each) for each in found])
    failed = sum("error" in each for each in found)
    if failed == len(found):
        raise typer.Exit(ALL_FAILED)
    if as_json:
        console.print_json(found)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _row(answer: dict[str, Any]) -> dict[str, Any]:
    """A picture's row of the table: its likeliest class first, then the others."""
    row = {"image": answer["image"]}
    for number, each in enumerate(answer.get("classes", ()), 1):
        place = "" if number == 1 else f"_{number}"
        row |= {f"class{place}": each["name"], f"probability{place}": each["probability"]}
    return row | ({"error": answer["error"]} if "error" in answer else {})


def _pictures(word: str) -> Iterator[tuple[str, DataError | None]]:
    """Yield the pictures that an argument names, in the order of their names, or why there are none."""
    from sparsetune.data import scan

    path = Path(word).expanduser()
    matches = [] if path.exists() else glob.glob(str(path), recursive=True)  # noqa: PTH207 (no hidden files)
    if matches:
        for match in sorted(matches):
            yield from _pictures(match)
    elif path.is_dir():
        inside = scan(path).below()
        yield from ((picture, None) for picture in inside)
        if not inside:
            yield str(path), DataError(f"folder '{path}' holds no pictures; name one that does.")
    else:
        yield str(path), None


def _read(picture: str, preprocessing: Preprocessing) -> Tensor | DataError:
    """The model's input, or why there is none."""
    from sparsetune.data import decode

    try:
        return preprocessing.apply(decode(picture, f"image '{picture}'"))
    except DataError as error:
        return error


def _ranked(row: Tensor, classes: tuple[str, ...] | None, top: int) -> list[tuple[str, float]]:
    values, indices = row.topk(min(top, len(row)))
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return [(classes[index] if classes else str(index), value) for index, value in pairs]
