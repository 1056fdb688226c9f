"""Libraries that are told the numbers: what they get, where it lies, and what happens without them."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

import sparsetune as st
from sparsetune.errors import ConfigError
from sparsetune.spec.config import LOGS

TWO = st.FitConfig(epochs=2, batch_size=64, lr=0.05)


def scalars(folder):
    """Name -> values by epoch, as tensorboard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}


def test_tensorboard_is_told_every_number_of_every_epoch(digits, tiny, tmp_path):
    pytest.importorskip("tensorboard")
    before = dict(os.environ)
    path = tmp_path / "run" / "c.safetensors"
    path.parent.mkdir()
    config = TWO.but(log=("tensorboard", "tensorboard"))
    st.fit(tiny(), digits, config, checkpoint=path, time_budget=0.0)
    steps = []
    history = st.fit(tiny(), digits, config, checkpoint=path, resume=True, watch=steps.append)
    assert dict(os.environ) == before
    expected = {}
    for record in history:
        for name, value in record.to_json().items():
            expected.setdefault(name, {})[record.epoch] = pytest.approx(value, rel=1e-6)
    assert scalars(path.parent / "sparsetune") == expected
    (settings,) = {each.read_text() for each in path.parent.glob("sparsetune/*/hparams.yml")}
    assert {"batch_size: 64", "data: digits", "opt: momentum", "seed: 0"} <= {*settings.splitlines()}
    plain = st.fit(tiny(), digits, TWO)
    assert [each.test_loss for each in plain] == [each.test_loss for each in history]


def test_what_is_not_there_is_told_before_anything_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = [name for name in LOGS if find_spec(name) is None]
    if not missing:
        pytest.skip("all of them are installed")
    (tmp_path / missing[0]).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match=f"^log '{missing[0]}' needs a library that is not here; pip install "
    ):
        st.FitConfig(log=(missing[0],))


def test_what_is_none_is_refused():
    with pytest.raises(
        ConfigError, match=r"log .*tensorbord.* is not one of tensorboard, wandb, mlflow, tra"
    ):
        st.FitConfig(log=("tensorboard", "tensorbord") if find_spec("tensorboard") else ("tensorbord",))


def test_it_changes_nothing_that_a_training_comes_to():
    assert st.FitConfig().to_json() == st.FitConfig(log=()).to_json()
    assert "log" not in st.FitConfig().to_json()
    if find_spec("tensorboard"):
        logging = st.FitConfig(log=["tensorboard"])
        assert logging.to_json()["log"] == ["tensorboard"]
        assert logging.decisive == st.FitConfig().decisive
