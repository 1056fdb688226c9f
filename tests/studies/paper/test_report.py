from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sparsetune.errors import DataError
from sparsetune.studies.jobs import DEFAULTS, job
from sparsetune.studies.paper.experiments import EXPERIMENTS
from sparsetune.studies.paper.report import read_results, write_report
from sparsetune.studies.paper.results import Results, Selection
from sparsetune.studies.runner import estimate, work

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Tags, texts and tables of a page; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.targets, self.images, self.tables, self.texts = [], [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.targets += [given[name] for name in ("href", "src") if name in given]
        self.images += [given] if tag == "img" else []
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def written(row, tmp_path_factory):
    """A report of the short preset over three seeds: table 1 and figure 2 were run, without CIFAR-100."""
    selection = Selection(preset="short", seeds=(0, 1, 2), train_limit=2000, epochs=2)
    rows = [
        row(
            each,
            top1=0.5 + 0.1 * each.settings["seed"],
            seconds=60.0,
            about={"data": {"name": "cifar10", "lossy": True}},
        )
        for name in ("table1", "fig2")
        for each in selection.jobs(EXPERIMENTS[name])
        if each.settings["data"] == "cifar10"
    ]
    folder = tmp_path_factory.mktemp("report")
    page = write_report(rows, {**selection.to_json(), "absent": ["cifar100"]}, folder)
    return rows, page


def test_all_ten_are_there_and_the_page_needs_nothing_else(written):
    page = Page(written[1].read_text())
    assert set(EXPERIMENTS) <= set(page.ids)
    assert all(target.startswith(("#", "data:")) for target in page.targets)
    assert {target[1:] for target in page.targets if target[0] == "#"} <= set(page.ids)
    assert "http" not in re.sub(r"base64,[\w+/=]*", "", written[1].read_text())
    assert "width=device-width" in written[1].read_text()
    assert "@media print" in written[1].read_text()


def test_pictures_are_drawings_with_a_name(written):
    page = Page(written[1].read_text())
    assert [image["alt"] for image in page.images] == ["Figure 2, panel 1", "Figure 2, panel 2"]
    for image in page.images:
        svg = base64.b64decode(image["src"].partition("base64,")[2])
        assert ET.fromstring(svg).tag.endswith("svg")


def test_ours_stands_beside_the_papers_with_spread_and_difference(written):
    page = Page(written[1].read_text())
    (table,) = [table for table in page.tables if table[0][:2] == ["model", "learned"] and "C10" in table[0]]
    assert len(table) == 1 + 12
    assert table[1] == [
        "densenet",
        "BN",
        "23,988",
        "24K",
        "60.00 ± 10.00",
        "60.85",
        "-0.85",
        "not run",
        "16.06",
        "",
    ]
    assert table[6][2:4] == ["27,418 / 58,288", "27.4K / 58.3K"]
    assert '<td class="near">-0.85</td>' in written[1].read_text()
    assert '<td class="far">+29.80</td>' in written[1].read_text()  # WRN-28-4, BN: 30.2


def test_what_was_not_run_and_what_differs_is_said(written):
    text = " ".join(Page(written[1].read_text()).texts)
    assert "at most 2,000 training pictures, 2 epochs" in text
    assert "CIFAR-10 was read from a lossy JPEG copy" in text
    assert "CIFAR-100 was not here, so nothing was run on it." in text
    assert text.count("Not run.") == 8
    assert "12 of its 24 rows were run." in text
    assert "half a cosine" in text
    assert "a processor, 1 thread(s); torch 2; commit abc; 2026-01-01" in text


def test_claims_are_a_checklist(written):
    page = Page(written[1].read_text())
    decided, waiting = [table for table in page.tables if "taken to hold when" in table[0]]
    assert {row[0] for row in waiting[1:]} == {"not run"}
    assert "not run" not in {row[0] for row in decided}
    verdicts = {row[2]: row[0] for row in decided[1:] + waiting[1:]}
    assert len(verdicts) == 25
    assert verdicts["Learning only batch norm gives non-trivial performance (densenet, CIFAR-10)."] == "holds"
    assert verdicts["70 % and 100 % are nearly indistinguishable."] == "not run"
    alike = "Learning a subset of filters outperforms learning a subset of the weights of each filter."
    assert verdicts[alike] == "too close to tell"


def test_data_beside_the_page_make_it_again(written, tmp_path):
    rows, page = written
    found, selection = read_results(page.parent / "results.jsonl")
    assert found == rows
    again = write_report(found, selection, tmp_path)
    assert again.read_text() == page.read_text()


def test_what_is_no_results_file_is_one_sentence(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"x\.jsonl is not a results\.jsonl of a report"):
        read_results(tmp_path / "x.jsonl")


@pytest.mark.parametrize("text", ["[]", "null", '{"id": 3}', '{"id": "a", "settings": [], "result": {}}'])
def test_what_is_no_row_is_one_sentence(written, tmp_path, text):
    first = (written[1].parent / "results.jsonl").read_text().splitlines()[0]
    (tmp_path / "x.jsonl").write_text(f"{first}\n{text}\n")
    with pytest.raises(DataError, match=r"x\.jsonl is not a results\.jsonl of a report"):
        read_results(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {}},
        {"about": {"versions": 3}},
        {"result": {"top1": "high", "layers": 3, "learned_parameters": {}}},
    ],
)
def test_rows_that_no_job_wrote_are_one_sentence(written, tmp_path, change):
    rows, page = written
    _, selection = read_results(page.parent / "results.jsonl")
    with pytest.raises(DataError, match="one is not as this study writes them"):
        write_report([replace(rows[0], **change), *rows[1:]], selection, tmp_path)
    assert not [*tmp_path.iterdir()]


def test_smoke_says_that_it_says_nothing(row, tmp_path):
    smoke = Selection(preset="smoke")
    rows = [row(each, top1=0.1, layers=[]) for each in smoke.jobs()]
    page = Page(write_report(rows, {**smoke.to_json(), "absent": []}, tmp_path).read_text())
    text = " ".join(page.texts)
    assert "say nothing about the paper" in text
    assert not any("taken to hold when" in table[0] for table in page.tables)
    assert "#claims" not in page.targets
    assert "Not run." not in text


def test_a_training_that_diverged_counts_as_chance_and_says_so(row):
    selection = Selection(preset="full", only=("fig1",))
    (point,) = Results([], selection).points("fig1", model="vgg19_cifar", filters=1, frozen="zero")
    results = Results([row(job(point), diverged="the loss became nan")], selection)
    spread = results.spread(point)
    assert (spread.values, spread.diverged) == ((10.0,), 1)


def settings(model, **differing):
    return {**DEFAULTS, "model": model, "fraction": 1.0, **differing}


def test_an_estimate_is_in_proportion_to_pictures_epochs_and_arithmetic(row, monkeypatch):
    here = {"processor": "here", "accelerator": None}
    monkeypatch.setattr("sparsetune.studies.runner.here", lambda: here)
    done = job(settings("wrn28_4", train_limit=1000, test_limit=500, epochs=2))
    rows = [
        row(done, about=here, seconds=10.0),
        row(job(settings("densenet100_12")), about={"processor": "there"}, seconds=1.0),
    ]
    more = job(settings("wrn28_4", train_limit=3000, test_limit=1500, epochs=4))
    assert estimate([more], rows) == pytest.approx(60.0)
    assert estimate([more, more], rows, at_a_time=2) == pytest.approx(60.0)
    other = job(settings("wrn28_10", train_limit=1000, test_limit=500, epochs=2))
    assert estimate([other], rows) == pytest.approx(10 * work(other.settings) / work(done.settings))
    assert estimate([more], rows[1:]) is None
    assert estimate([], rows) == 0


def test_the_arithmetic_of_a_wide_resnet_is_what_its_description_says():
    # 3x3 convolutions of 8 layers each on 32, 16 and 8 pixels, two operations a multiplication
    side, chs, total = 32, 16, 2 * 9 * 3 * 16 * 32 * 32
    for number, width in enumerate((64, 128, 256)):
        for layer in range(4):
            stride = 2 if number and not layer else 1
            side //= stride
            total += 2 * 9 * chs * width * side**2 + (0 if layer else 2 * chs * width * side**2)
            chs = width
            total += 2 * 9 * chs * width * side**2
    total += 2 * 256 * 10
    one = work(settings("wrn28_4", train_limit=1, test_limit=1, epochs=1))
    assert one == 4 * total


def test_json_of_results_is_plain(written):
    first, *lines = (written[1].parent / "results.jsonl").read_text().splitlines()
    assert json.loads(first)["selection"]["preset"] == "short"
    assert len(lines) == len(written[0])
