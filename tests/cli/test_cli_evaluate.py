"""What ``eval`` says of the pictures that it scores, and ``fit`` of where they come from."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import sparsetune as st
from sparsetune.publish.card import command

FIT = "fit --model test_resnet --fraction 0.25 --epochs 1 --lr 0.05 -b 16"


def put(folder: Path, first: int, last: int) -> Path:
    """Write some threes and fours, as a tree of classes."""
    digits = load_digits()
    for label in (3, 4):
        (folder / f"class {label}").mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(digits.target == label)[first:last], first):
            grey = Image.fromarray((digits.images[index] * 15.9).astype("uint8"))
            grey.convert("RGB").save(folder / f"class {label}" / f"{number}.png")
    return folder


def warnings(result) -> list[str]:
    return [line for line in result.err.splitlines() if "trained on" in line]


def member(result) -> dict:
    return result.json["members"][0]["trained_on"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sparsetune) -> tuple[Path, Path]:
    """A folder called ``digits`` with train, val and test, and the run on it."""
    data = tmp_path_factory.mktemp("data") / "digits"
    for split, first, last in (("train", 0, 40), ("val", 40, 50), ("test", 50, 60)):
        put(data / split, first, last)
    sparsetune(FIT, "--data", data, "--out", data.parent / "run")
    return data, data.parent / "run"


def test_the_pictures_held_out_are_scored_without_a_word(sparsetune, trained):
    data, run = trained
    result = sparsetune("eval", run / "delta.safetensors", "--data", data, "--json")
    assert warnings(result) == []
    assert member(result) == {"pictures": 0, "exact": True, "held_out": True}
    result = sparsetune("eval", run / "delta.safetensors", "--data", data, "--test-limit", 10, "--json")
    assert member(result) == {"pictures": 0, "exact": True, "held_out": False}


def test_pictures_that_were_trained_on_are_told(sparsetune, trained):
    """Seven of each class's twenty pictures here were trained on, under other names."""
    _, run = trained
    delta = run / "delta.safetensors"
    put(Path("other/test"), 33, 53)
    result = sparsetune("eval", delta, "--data", "other")
    assert len(warnings(result)) == 1
    assert warnings(result)[0].startswith(
        f"{delta} was trained on 14 of the 40 pictures that it is scored on"
    )
    assert "40 test pictures of other" in result.out
    shutil.copy(delta, "copy.safetensors")
    result = sparsetune("eval", delta, "copy.safetensors", "--data", "other", "--json")
    assert [line.split()[0] for line in warnings(result)] == [str(delta), "copy.safetensors"]
    assert member(result) == {"pictures": 14, "exact": True, "held_out": False}


def test_a_start_from_a_delta_tells_of_its_pictures(sparsetune, trained):
    """The test pictures of the second training were trained on in the first."""
    _, run = trained
    put(Path("second/train"), 60, 90)
    put(Path("second/test"), 20, 40)
    start = ["--init-from", run / "delta.safetensors"]
    result = sparsetune(FIT, *start, "--data", "second", "--out", "r")
    assert warnings(result) == [
        "40 of the test pictures were trained on, now or before, so the test accuracy is better than on new "
        "ones; take them out of one of the two."
    ]
    result = sparsetune("eval r/delta.safetensors --data second --json")
    assert member(result) == {"pictures": 40, "exact": True, "held_out": True}
    assert len(warnings(result)) == 1


def test_a_file_that_does_not_say_is_evaluated_without_a_word(sparsetune, trained):
    data, run = trained
    header = st.inspect(run / "delta.safetensors")
    known = st.load(run / "delta.safetensors")
    net = st.adapt_(st.create(header.model, num_classes=header.num_classes, **header.kwargs), header.learn)
    net.load_state_dict(known.state_dict())
    st.save(net, "silent.safetensors", classes=header.classes, preprocessing=header.preprocessing)
    result = sparsetune("eval silent.safetensors --json --data", data)
    assert member(result) is None
    assert warnings(result) == []
    st.save(st.adapt_(st.merge_(known), header.learn, header.backbone), "again.safetensors")
    assert member(sparsetune("eval again.safetensors --json --data", data)) is not None


def test_validation_is_shown_and_test_is_told_at_the_end(sparsetune, trained):
    data, _ = trained
    result = sparsetune(FIT, "--epochs", 2, "--data", data, "--out", "r")
    lines = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert ["test_top1" in line for line in lines] == [False, True]
    epochs = [line for line in result.err.splitlines() if line.startswith("epoch")]
    for line, record in zip(epochs, lines, strict=True):
        assert f"validation {record['validation_top1']:7.2%}" in line
        assert "test" not in line
    assert f"test accuracy  {lines[1]['test_top1']:.2%}" in result.out
    found = sparsetune("eval r/delta.safetensors --json --data", data).json["members"][0]
    assert found["top1"] == lines[1]["test_top1"]
    assert found["nll"] == pytest.approx(lines[1]["test_loss"], rel=1e-5)


def test_a_report_is_written_and_printed(sparsetune, trained):
    data, run = trained
    delta = run / "delta.safetensors"
    result = sparsetune("eval", delta, "--data", data, "-b", 16, "--report", "told")
    told = json.loads(Path("told/report.json").read_text())
    assert told == json.loads((run / "report.json").read_text())
    lines = result.out.splitlines()
    assert lines[1].split() == ["delta", "top-1", "NLL", "Brier", "ECE", "aECE", "ECE", "at", "T"]
    assert f"20 test pictures of digits: accuracy {told['accuracy']:.2%}, " in result.out
    assert {each["name"] for each in told["classes"]} == {"class 3", "class 4"}
    for each in told["mistakes"]:
        assert each["true"] != each["predicted"]
        assert (data / "test" / each["picture"]).is_file()
    value = sparsetune("eval", delta, delta, "--data", data, "--report", "both", "--json").json
    assert value["report"] == "both"
    assert "top5" not in value["members"][0]
    both = json.loads(Path("both/report.json").read_text())  # of two equal members
    assert both["nll"] == pytest.approx(told["nll"])
    wrong = sparsetune("eval", delta, "--data", data, "--report", delta, code=2)
    assert wrong.out == ""
    assert wrong.err.splitlines()[-1].startswith(f"error: cannot write {delta}/confusion.png: ")


def test_predictions_are_averaged_over_views(sparsetune, refused, trained, deltas):
    data, run = trained
    delta, opened = run / "delta.safetensors", st.open_data(str(data))
    form, net = st.inspect(delta).preprocessing, st.load(delta)
    x = torch.stack([form.apply(opened.test[i][0]) for i in range(len(opened.test))])
    with torch.no_grad():
        p = torch.stack([net(x).softmax(1), net(x.flip(3)).softmax(1)]).mean(0)
    nll = -p[torch.arange(len(x)), opened.test.labels].log().mean().item()
    found = sparsetune("eval", delta, "--data", data, "--tta", 2, "--json").json["members"][0]
    assert found["nll"] == pytest.approx(nll, rel=1e-4)
    picture = sorted((data / "test").rglob("*.png"))[0]
    ((each,),) = [sparsetune("predict", delta, picture, "--tta", 2, "--json").json]
    ranked = {one["name"]: one["probability"] for one in each["classes"]}
    assert ranked == pytest.approx(dict(zip(opened.classes, p[0].tolist(), strict=True)), abs=1e-5)
    assert refused("predict", delta, picture, "--tta", 11) == (
        "tta 11 cannot be met; a picture has 0 to 10 views."
    )
    assert refused("eval", deltas[0], "--tta", 6) == (
        "tta 6 cannot be met; a picture has 0 to 5 views, none of them mirrored: in a mirror it may be of "
        "another class."
    )


def test_one_line_says_what_was_found(sparsetune, trained):
    data, run = trained
    found = st.open_data(str(data)).found
    assert found
    for words in ((FIT, "--out", "r"), ("eval", run / "delta.safetensors")):
        assert sparsetune(*words, "--data", data).err.splitlines()[:2].count(found) == 1


def test_a_folder_called_as_a_built_in_is_not_taken_for_it(sparsetune, refused, trained):
    data, run = trained
    delta = run / "delta.safetensors"
    told = refused("eval", delta)
    assert "was trained on 'digits/', which is not a built-in data set; pass --data" in told
    assert str(data.parent) not in json.dumps(st.inspect(delta).to_json())
    words = shlex.split(command(st.inspect(delta)))
    assert words[words.index("--data") + 1] == "digits/"
    assert "'digits' is not a folder" in refused(*words[1:])
    shutil.copytree(data, "digits")
    sparsetune(*words[1:], "--out", "again")
    assert Path("again/delta.safetensors").read_bytes() == delta.read_bytes()


def test_a_built_in_beside_a_folder_of_its_name_is_said(sparsetune, deltas):
    Path("digits").mkdir()
    line = "--data digits is the built-in data set; write ./digits for the folder of that name here."
    assert sparsetune("eval", deltas[0], "--test-limit", 20).err.splitlines() == [line]
    words = (FIT, "--train-limit", 40, "--test-limit", 20, "--out", "r")
    assert line in sparsetune(*words).err.splitlines()[:2]
    assert sparsetune(*words, "--data", "digits", "--resume").err == ""
