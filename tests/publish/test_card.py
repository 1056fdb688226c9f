"""The model card, read by the Hub's own reader of cards and by a renderer of Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import timm
import torch
from forge import small
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from safetensors.torch import save_file

import sparsetune as st
from sparsetune.publish.card import card, command
from sparsetune.runs.run import run
from sparsetune.runs.settings import Run

HOSTILE = [
    "a | b",
    "a \\| b \\",
    "</table><script>alert(1)</script>",
    "[click](javascript:alert(1)) ![x](http://x)",
    "`code` ``` ~~~",
    "---",
    "# head",
    "**bold** _em_ __strong__ ~~gone~~",
    "&lt; &#124; &amp;",
    "key: value # {a: [1",
    "'\" ''' \"\"\"",
    "$x$ $$y$$ ${z}",
    "- item",
    "!!python/object:os.system",
    "ä ✓ 😀 \u200f \ufeff\ufffe",
]
TRAINING = {"data": "digits", "result": {"test_top1": 0.9375}}


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "d.safetensors"
    shape = st.Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    st.save(small(), path, classes=list("abcdefghij"), preprocessing=shape, training=TRAINING)
    return st.inspect(path)


class Cells(HTMLParser):
    """The text of each cell of a page's one table, and the kinds of all its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.kinds: set[str] = set()
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.kinds.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag not in ("td", "th")

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def shown(text: str) -> Cells:
    """Render the card's body as the Hub does."""
    return Cells(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(ModelCard(text).text))


def table(text: str) -> dict[str, str]:
    cells = shown(text)
    assert all(len(row) == 2 for row in cells.rows)
    return dict(cells.rows)


def test_what_it_says_of_a_model(header):
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    total = sum(p.numel() for p in net.parameters())
    learned = sum(p.numel() for p in st.adapt_(net, header.learn).parameters())
    made = st.plan(st.create("wrn28_4", depth=10, width=1, num_classes=10), header.learn)
    rows = table(card(header, 50_000, made, "hf://some/digits"))
    assert rows["learned"] == f"{learned:,} of {total:,} values ({learned / total:.1%})"
    assert rows["file"] == f"48.8 KiB, {50_000 / (4 * total):.1%} of a whole checkpoint"
    assert rows["backbone"] == "seed 0"
    assert rows["fingerprint"] == header.fingerprint
    assert rows["test accuracy"] == "93.75%"
    assert rows["data"] == "digits"
    assert rows["classes"] == "a, b, c, d, e, f, g, h, i, j"
    assert rows["slices"] == "fraction 0.2 along out, norm, head"
    assert rows["model"] == "timm wrn28_4, 10 classes"


def test_its_front_matter_is_what_the_hub_reads(header):
    data = ModelCard(card(header, 1, None, "x")).data
    assert data.library_name == "sparsetune"
    assert data.tags == ["sparsetune", "timm"]
    assert data.pipeline_tag == "image-classification"
    assert data.base_model is None
    assert data.license is None
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.9375)
    assert (result.task_type, result.dataset_type) == ("image-classification", "digits")
    plain = ModelCard(card(replace(header, training={}), 1, None, "x")).data
    assert plain.eval_results is None
    assert "model-index" not in plain.to_dict()


@pytest.mark.parametrize(
    ("library", "source", "base"),
    [
        ("timm", "timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm", "https://host/resnet18.pth", None),
        ("torchvision", "torchvision/resnet18", None),
    ],
)
def test_the_base_model_is_a_repository(header, library, source, base):
    published = st.Backbone(kind="pretrained", source=source, revision="abc")
    text = card(replace(header, library=library, backbone=published), 1, None, "hf://some/x")
    assert ModelCard(text).data.base_model == base
    assert 'st.load("hf://some/x", allow_network=True)' in text
    assert "sparsetune predict hf://some/x picture.jpg --allow-network" in text


def test_how_to_load_what_stands_on_more(header):
    file = replace(header, backbone=st.Backbone(kind="file", source="w.safetensors", sha256="0" * 64))
    text = card(file, 1, None, "hf://some/x")
    assert 'st.load("hf://some/x", backbone="whole.safetensors")' in text
    assert "sparsetune predict hf://some/x picture.jpg --backbone whole.safetensors" in text
    own = replace(header, library="module", backbone=st.Backbone(kind="module", source="Net"))
    text = card(own, 1, None, "hf://some/x")
    assert 'st.load("hf://some/x", module=net)' in text
    assert "sparsetune predict" not in text
    assert ModelCard(text).data.pipeline_tag is None
    bare = card(replace(header, preprocessing=None), 1, None, "hf://some/x")
    assert "sparsetune verify hf://some/x\n" in bare


def test_without_a_plan_it_gives_no_share(header):
    rows = table(card(header, 50_000, None, "x"))
    assert rows["file"] == "48.8 KiB"
    assert "learned" not in rows


@pytest.mark.parametrize("text", HOSTILE)
def test_a_strangers_text_is_shown_as_it_is(header, text):
    training = {**TRAINING, "data": text}
    classes = (text, *"bcdefghij")
    page = card(replace(header, model=text, classes=classes, training=training), 1, None, "x")
    rows = table(page)
    assert rows["data"] == text.strip()
    assert rows["classes"] == ", ".join(classes)
    assert rows["model"] == f"timm {text}, 10 classes"
    kinds = {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert shown(page).kinds == kinds
    data = ModelCard(page).data
    assert data.eval_results[0].dataset_name == text
    assert data.model_name == f"{text} on {text}"
    assert re.findall("^# .*$", page, re.MULTILINE)[0].startswith("# ")


def test_the_command_stays_inside_its_block(header):
    training = {
        **TRAINING,
        "data": "```\n# out".replace("\n", " "),
        "config": {},
        "options": dict.fromkeys(("size", "train_limit", "test_limit", "init_from")),
    }
    page = card(replace(header, kwargs={}, training=training), 1, None, "x")
    assert "```sh\nsparsetune fit --model wrn28_4 --fraction 0.2 --data '``` # out'\n```\n" in page
    assert MarkdownIt().render(ModelCard(page).text).count("<h1>") == 1


def test_a_folder_of_pictures_is_no_built_in_and_its_path_is_asked_for(header):
    options = dict.fromkeys(("size", "train_limit", "test_limit", "init_from"))
    training = {**TRAINING, "data": "digits/", "config": {}, "options": options}
    header = replace(header, kwargs={})
    text = card(replace(header, training=training), 1000, None, "hf://a/b")
    assert "--data digits/\n" in text
    assert "Put the path of these pictures in the place of digits/." in text
    text = card(replace(header, training={**training, "data": "digits"}), 1000, None, "hf://a/b")
    assert "--data" not in text
    assert "Put the path" not in text


def test_over_trained_weights_the_command_spells_what_a_recipe_would_decide(tmp_path):
    """Else the recipe of another day would take the place of settings that happen to be the defaults."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "w.safetensors")
    config = st.FitConfig(epochs=10, batch_size=64, opt="momentum", lr=0.1, scale=None, val_share=0.0)
    learn, few = st.Learn(filters=0), {"size": 32, "train_limit": 70, "test_limit": 10}
    start = str(tmp_path / "w.safetensors")
    settings = Run(model="test_resnet", learn=learn, config=config, init_from=start, **few)
    header = st.inspect(run(settings, tmp_path / "run").folder / "delta.safetensors")
    said = command(header)
    for words in (
        "--epochs 10",
        "--batch-size 64",
        "--opt momentum",
        "--lr 0.1",
        "--norm-stats frozen",
        "--aug",
    ):
        assert f"{words} " in f"{said} "
    assert "--no-aug" not in said
    assert "None" not in said
