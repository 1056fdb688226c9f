"""A report of a classifier, against torchmetrics, and what is drawn of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

import sparsetune as st
from sparsetune.data.images import ArrayImages
from sparsetune.data.splits import Split
from sparsetune.errors import ConfigError, DataError
from sparsetune.runs.report import draw_confusion, draw_mistakes, report_on, weakest


def made(classes: int, count: int, name: str = "class {}", sharpness: float = 3.0, lacking: int = 0):
    """A report of drawn predictions; pictures are of one colour each, and the last classes have none."""
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes - lacking, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(count), labels] += sharpness
    colours = np.arange(count * 3).reshape(count, 1, 1, 3) % 251
    pixels = np.broadcast_to(colours, (count, 6, 9, 3)).astype(np.uint8)
    split = Split.whole(ArrayImages(pixels), labels.numpy())
    names = [name.format(number) for number in range(classes)]
    return report_on(logits.softmax(1), split, names, "drawn"), logits.softmax(1), labels


@pytest.mark.parametrize(("classes", "lacking"), [(2, 0), (10, 0), (30, 2)])
def test_agrees_with_torchmetrics(classes, lacking):
    report, p, labels = made(classes, 400, lacking=lacking)
    truth, said, there = labels.numpy(), p.argmax(1).numpy(), range(classes - lacking)
    wanted = [
        share(p.argmax(1), labels, classes, average="none").numpy()[: len(there)]
        for share in (multiclass_precision, multiclass_recall, multiclass_f1_score)
    ]
    counts = np.bincount(truth, minlength=classes)[: len(there)]
    for each, *values in zip(report.classes[: len(there)], *wanted, counts, strict=True):
        assert (each.precision, each.recall, each.f1, each.support) == pytest.approx(values, abs=1e-5)
    for each in report.classes[len(there) :]:
        assert (each.precision, each.recall, each.f1, each.support) == (None, None, None, 0)
    assert [*report.macro.values()] == pytest.approx([np.mean(values) for values in wanted], abs=1e-5)
    assert report.balanced_accuracy == pytest.approx(wanted[1].mean(), abs=1e-5)
    assert report.scores.top1 == (truth == said).mean()
    assert report.confusion.tolist() == multiclass_confusion_matrix(p.argmax(1), labels, classes).tolist()
    assert report.wrong == (truth != said).sum()
    assert (report.scores.top5 is None) == (classes == 2)


def test_the_worst_mistakes_come_first():
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [1.0, 0.0], [0.7, 0.3]])
    split = Split.whole(ArrayImages(np.zeros((5, 2, 2, 3), np.uint8)), np.array([0, 0, 0, 1, 1]))
    report = report_on(p, split, ["cat", "dog"], "pets")
    assert [each.number for each in report.mistakes] == [3, 2, 4, 1]
    assert [each.true for each in report.mistakes] == ["dog", "cat", "dog", "cat"]
    assert [each.predicted for each in report.mistakes] == ["cat", "dog", "cat", "dog"]
    assert [each.probability for each in report.mistakes] == pytest.approx([1, 0.8, 0.7, 0.6])
    losses = [-math.log(value) for value in (0.2, 0.3, 0.4)]
    assert [each.loss for each in report.mistakes[1:]] == pytest.approx(losses)
    assert math.isfinite(report.mistakes[0].loss)
    many, *_ = made(10, 400, sharpness=0.0)
    assert len(many.mistakes) == 24
    assert many.wrong > 24


def test_it_is_written_and_old_mistakes_are_taken_away(tmp_path):
    report, *_ = made(10, 200, lacking=1)
    report.save(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "report.json",
        "confusion.png",
        "mistakes.png",
    }
    text = (tmp_path / "a" / "report.json").read_text()
    told = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert told == report.to_json()
    assert (told["pictures"], told["accuracy"]) == (200, report.scores.top1)
    assert len(text.splitlines()) < 70
    perfect, *_ = made(10, 50, sharpness=99.0)
    perfect.save(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"report.json", "confusion.png"}


def test_the_weakest_classes_are_named(tmp_path):
    report, *_ = made(10, 200, lacking=1)
    report.save(tmp_path)
    ranked = sorted((each.recall, each.name) for each in report.classes if each.support)
    assert weakest(tmp_path) == [(name, recall) for recall, name in ranked[:3]]
    for classes, sharpness, count in ((2, 0.0, 0), (3, 0.0, 2), (10, 99.0, 0)):
        made(classes, 60, sharpness=sharpness)[0].save(tmp_path)
        assert len(weakest(tmp_path)) == count
    assert weakest(tmp_path / "nothing") == []


def test_it_prints_itself():
    report, *_ = made(30, 900, "kind {}", lacking=1)
    first, header, *lines, last = str(report).splitlines()
    assert first.startswith(f"900 test pictures of drawn: accuracy {report.scores.top1:.2%}, balanced ")
    assert header.split() == ["precision", "recall", "F1", "pictures"]
    assert len(lines) == 20
    recalls = [float(line.split()[3].rstrip("%")) for line in lines]
    assert recalls == sorted(recalls)
    assert last == "and 10 more classes of higher recall"
    assert len(str(made(3, 20)[0]).splitlines()) == 5


def texts(figure) -> list:
    """The texts that are drawn inside and beside the matrix, where they are drawn."""
    figure.savefig("/dev/null", format="png", dpi=30)
    panel = figure.axes[0]
    shown = [*panel.texts, *panel.get_xticklabels(), *panel.get_yticklabels()]
    return [(each, each.get_window_extent()) for each in shown if each.get_text() and each.get_visible()]


@pytest.mark.parametrize("name", ["{}", "A RATHER LONG NAME OF A CLASS, $10 and {}"])
@pytest.mark.parametrize("classes", [2, 10, 40, 88, 89, 200])
def test_no_texts_of_a_matrix_overlap(classes, name):
    report, *_ = made(classes, 20 * classes, name)
    figure = draw_confusion(report)
    drawn = texts(figure)
    boxes = np.array([[box.x0, box.y0, box.x1, box.y1] for _, box in drawn])
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    apart = ((boxes[None, :, :2] >= high) | (low >= boxes[None, :, 2:])).any(2)
    assert apart[~np.eye(len(boxes), dtype=bool)].all()
    panel = figure.axes[0]
    assert len(panel.get_yticklabels()) == classes or classes > 88
    counts = report.confusion
    assert len(panel.texts) == (int((counts > 0).sum()) if classes <= 40 else 0)
    shares = panel.images[0].get_array()
    assert np.asarray(shares) == pytest.approx((counts / counts.sum(1, keepdim=True).clamp(1)).numpy())
    for each in panel.texts:
        column, row = each.get_position()
        assert each.get_text() == str(int(counts[row, column]))


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_nothing_of_a_matrix_is_cut_off(classes, tmp_path):
    made(classes, 5 * classes, "A RATHER LONG NAME OF A CLASS {}", lacking=classes > 2)[0].save(tmp_path)
    with Image.open(tmp_path / "confusion.png") as image:
        pixels = np.asarray(image.convert("L"))
    edges = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    assert all((edge == 255).all() for edge in edges)


def test_the_contact_sheet_shows_the_stored_pictures():
    report, *_ = made(10, 300, "A RATHER LONG NAME OF A CLASS {}", sharpness=0.5)
    sheet = np.asarray(draw_mistakes(report))
    assert len(report.mistakes) == 24
    for index, each in enumerate(report.mistakes):
        left, top = 20 + index % 6 * 290, 60 + 40 + 5 + index // 6 * 350
        colour = (np.arange(3) + 3 * each.number) % 251
        assert (sheet[top : top + 180, left : left + 270] == colour).all()
        assert (sheet[top : top + 180, left + 270 : left + 290] == 255).all()
        words = sheet[top - 45 : top, left : left + 290]
        assert (words[:, :270] < 128).any()
        assert (words[:, 270:] == 255).all()  # no word runs into the next one
    few, *_ = made(2, 10, sharpness=1.0)
    assert 0 < len(few.mistakes) < 6
    assert draw_mistakes(few).width >= 3 * 290


def test_a_model_is_judged_as_it_was_trained(tiny, digits, tmp_path):
    net = tiny()
    last = st.fit(net, digits, st.FitConfig(epochs=1, lr=0.05))[-1]
    net.train()
    report = st.evaluate(net, digits, batch_size=64)
    assert net.training
    assert (report.scores.top1, report.scores.nll) == pytest.approx((last.test_top1, last.test_loss))
    assert st.evaluate(net, digits, tta=3).scores.nll != report.scores.nll
    with pytest.raises(ConfigError, match="tta 6 cannot be met; a picture has 0 to 5 views, none of them"):
        st.evaluate(net, digits, tta=6)
    two = digits.regroup("two", {"low": ["0", "1"], "high": ["8", "9"]})
    with pytest.raises(
        DataError, match="was trained on the classes 0, 1, 2 and 7 more and two has low, high"
    ):
        st.evaluate(net, two)
    with pytest.raises(ConfigError, match="the model has 10 outputs but two has 2 classes"):
        st.evaluate(tiny(), two)


def test_the_name_of_a_mistake_is_its_path(tiny, tmp_path):
    for label in ("left", "right"):
        for number in range(6):
            path = Path(tmp_path / "d" / "test" / label / f"no {number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (40 * number, 0, len(label) * 20)).save(path)
    report = st.evaluate(tiny(num_classes=2), st.open_data(str(tmp_path / "d")))
    assert report.mistakes
    for each in report.mistakes:
        assert (tmp_path / "d" / "test" / each.picture).is_file()
        assert each.picture.startswith(f"{each.true}/")
