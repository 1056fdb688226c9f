"""What a training tells: its records, its accuracy by its right name, and a bar to who looks."""

from __future__ import annotations

import io
import json
import pickle
import sys
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import sparsetune as st
from sparsetune.spec.recipe import PAPER
from sparsetune.train.history import Epoch, History, final, records_from
from sparsetune.train.loop import fit_quietly

TWO = st.FitConfig(epochs=2, batch_size=64, lr=0.05)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def untested(digits):
    """The digits of a source without a test split."""
    return replace(digits, test=None, validation=digits.test)


def records(count, **last):
    found = [
        Epoch(n, 0.1, 2.0 / n, 0.5, validation_loss=n, validation_top1=n / 100, validation_top5=0.9)
        for n in range(1, count + 1)
    ]
    return [*found[:-1], replace(found[-1], **last)]


def test_it_is_the_list_of_its_records_and_prints_itself_as_a_table():
    plain = records(3, kept=1, test_top1=0.625)
    history = History(plain, TWO.but(epochs=3), PAPER)
    assert history == plain
    assert history.finished
    assert repr(history).splitlines() == [
        "epoch   loss   train  validation  seconds",
        "    1  2.000  50.00%       1.00%      0.0",
        "    2  1.000  50.00%       2.00%      0.0",
        "    3  0.667  50.00%       3.00%      0.0",
        "finished: 3 of 3 epochs; kept is epoch 1; test accuracy 62.50%",
    ]
    html = history._repr_html_()
    assert html.startswith("<table><thead><tr><th>epoch</th><th>loss</th><th>train</th><th>validation</th>")
    assert html.endswith("</table><p>finished: 3 of 3 epochs; kept is epoch 1; test accuracy 62.50%</p>")
    assert html.count("<tr>") == 4
    again = pickle.loads(pickle.dumps(history))
    assert (again, again.config, repr(again)) == (history, history.config, repr(history))


def test_long_tables_are_cut_and_ends_are_told_apart():
    lines = repr(History(records(100), TWO.but(epochs=100), PAPER)).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [
        *"123456", "…", "95", "96", "97", "98", "99", "100"
    ]  # fmt: skip
    assert lines[-1] == "finished: 100 of 100 epochs; kept is epoch 100; validation accuracy 100.00%"
    config = TWO.but(epochs=5)
    assert History(records(2), config, PAPER).end == "not finished: 2 of 5 epochs"
    assert History([], config, PAPER).end == "not finished: 0 of 5 epochs"
    stopped = History(records(3, stopped=True), config, PAPER).end
    assert stopped == "stopped early after 3 of 5 epochs; kept is epoch 3; validation accuracy 3.00%"


def test_what_it_came_to_is_of_the_values_that_are_kept():
    last = final(records(3, kept=2))
    assert (last.epoch, last.kept, last.validation_top1, last.validation_loss) == (3, 2, 0.02, 2)


def test_without_a_test_split_all_is_validation(untested, tiny):
    config = st.FitConfig(epochs=3, batch_size=64, lr=0.05, keep="best", patience=2)
    history = st.fit(tiny(), untested, config)
    for record in history:
        assert (record.watched, record.judged) == ("validation", "validation")
        assert not [name for name in record.to_json() if name.startswith("test")]
    assert "; validation accuracy " in history.end
    tested = st.fit(tiny(), replace(untested, test=untested.validation, validation=None), TWO)
    alone = st.fit(tiny(), untested, TWO)
    assert [each.test_top1 for each in tested] == [each.validation_top1 for each in alone]


def test_a_checkpoint_of_a_version_that_called_it_test_goes_on(untested, tiny, tmp_path):
    straight = st.fit(tiny(), untested, TWO)
    path = tmp_path / "c"
    steps = []

    def watch(event):
        steps.append(event)
        if isinstance(event, Epoch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        st.fit(tiny(), untested, TWO, checkpoint=path, watch=watch)
    with safe_open(path, framework="pt") as file:
        value = json.loads(file.metadata()["sparsetune.training"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    first = value["position"]["history"][0]
    value["position"]["history"] = [{k.replace("validation_", "test_"): v for k, v in first.items()}]
    as_before = replace(untested, test=untested.validation, validation=None)
    assert value["config"]["data_digest"] == as_before.digest()
    save_file(tensors, path, {"sparsetune.training": json.dumps(value)})
    history = st.fit(tiny(), untested, TWO, checkpoint=path, resume=True)
    assert [replace(each, seconds=0) for each in history] == [replace(each, seconds=0) for each in straight]


def test_it_says_what_was_learned_and_how(digits, tiny):
    history = st.fit(tiny(), digits, TWO)
    assert history.about[0] == "learning over a random backbone (seed 0)"
    assert history.about[-1] == f"learning with {history.config.describe()}"
    assert history.config.complete
    assert history.recipe == PAPER
    assert history.rate is None


def test_a_bar_is_for_who_looks_alone(digits, tiny, monkeypatch, capfd):
    st.fit(tiny(), digits, TWO)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fit_quietly(tiny(), digits, TWO)
    st.fit(tiny(), digits, TWO, watch=lambda _: None)
    assert terminal.getvalue() == ""
    st.fit(tiny(), digits, TWO)
    assert "epoch 2/2  loss " in terminal.getvalue()
    assert "test " in terminal.getvalue()
    assert capfd.readouterr() == ("", "")


RECORD = {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "train_top1": 0.5}


def test_records_come_back():
    values = [RECORD, {**RECORD, "epoch": 2, "test_loss": float("inf"), "kept": 1, "stopped": True, "lr": 0}]
    assert [record.to_json() for record in records_from(values)] == [{**v, "seconds": 0.0} for v in values]


@pytest.mark.parametrize(
    "wrong",
    [
        *([], None, 3, {}, {**RECORD, "more": 1}),
        {name: value for name, value in RECORD.items() if name != "lr"},
        *({**RECORD, "epoch": n} for n in (0, 2, True, 1.0, "1")),
        *({**RECORD, "kept": n} for n in (0, 2, -1, 1.0)),
        *({**RECORD, "train_loss": each} for each in ("2", None, [2], 10**400, True)),
        {**RECORD, "stopped": 1},
    ],
)
def test_what_is_no_record_is_refused(wrong):
    with pytest.raises(ValueError, match="epoch 1"):
        records_from([wrong])
