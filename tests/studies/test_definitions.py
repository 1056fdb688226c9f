"""The text experiment: its entries, its model, and one short training done again by hand."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

import sparsetune as st
from sparsetune.errors import DataError
from sparsetune.studies.definitions import SORTS, TEST, TEXT, TRAIN, TRANSFORMER, definitions, numbers
from sparsetune.studies.intervals import unpacked
from sparsetune.studies.jobs import DEFAULTS, job
from sparsetune.studies.sources import KNOWN, check_digest, forward_work, look
from sparsetune.studies.store import Place
from sparsetune.studies.work import about, perform

SETTINGS = {
    **DEFAULTS,
    "kind": "text",
    "model": TRANSFORMER,
    "model_kwargs": {"depth": 1, "width": 16},
    "data": TEXT,
    "filters": 2,
    "epochs": 1,
    "batch_size": 500,
    "opt": "adamw",
    "lr": 0.01,
    "weight_decay": 0.01,
}


def test_entries_are_as_many_of_each_sort_and_none_twice():
    texts = definitions()
    assert texts.labels.bincount().tolist() == [TRAIN] * len(SORTS)
    assert texts.test[1].bincount().tolist() == [TEST] * len(SORTS)
    assert (len(texts.labels), len(texts.test[1])) == (KNOWN[TEXT].train, KNOWN[TEXT].test)
    assert KNOWN[TEXT].classes == len(SORTS)


def test_words_are_numbers_that_every_machine_gives():
    """CRC-32 of "a" is 0xe8b7be43; of "an entry" two words are told."""
    first, *_ = numbers("A!")
    assert first == 1 + 0xE8B7BE43 % 8191
    assert sum(number > 0 for number in numbers("an, entry")) == 2
    assert len(numbers("word " * 100)) == len(numbers("")) == 32


def test_a_training_is_what_plain_torch_makes_of_it(tmp_path):
    made = job(SETTINGS)
    place = Place(tmp_path, {})
    result = perform(made.id, made.settings, place)
    texts = definitions()
    torch.manual_seed(0)
    net = st.adapt_(st.create(TRANSFORMER, seed=0, depth=1, width=16), st.Learn(filters=2))
    opt = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01, weight_decay=0.01)
    order = torch.randperm(7_500).view(15, 500)
    for number, batch in enumerate(order):
        opt.param_groups[0]["lr"] = 0.005 * (1 + torch.tensor(number * torch.pi / 15).cos().item())
        opt.zero_grad()
        F.cross_entropy(net(texts.words[batch]), texts.labels[batch]).backward()
        opt.step()
    with torch.no_grad():
        right = net.eval()(texts.test[0]).argmax(1) == texts.test[1]
    apart = unpacked(result["right"], 1_500) != right.numpy()
    assert apart.mean() < 0.01  # rates are rounded elsewhere
    assert result["top1"] == pytest.approx(right.double().mean().item(), abs=0.01)
    loaded = st.load(place.run(made.id) / "delta.safetensors")
    assert st.adapted(loaded).plan.learned_parameters == result["learned_parameters"]


def test_it_is_counted_and_told_as_other_data_is(tmp_path):
    noted = look([TEXT], {})
    assert re.fullmatch("[0-9a-f]{16}", noted[TEXT]["digest"])
    assert about(SETTINGS, Place(tmp_path, {}))["data"] == {"name": TEXT, "lossy": False}
    check_digest({**SETTINGS, "digest": noted[TEXT]["digest"]}, TEXT)
    with pytest.raises(DataError, match="holds other pictures"):
        check_digest({**SETTINGS, "digest": "0" * 16}, TEXT)
    assert forward_work({**SETTINGS, "model_kwargs": None}) > forward_work(SETTINGS) > 0


def test_out_of_time_it_starts_anew(tmp_path):
    made = job(SETTINGS)
    assert perform(made.id, made.settings, Place(tmp_path, {}), budget=0.0) is None
    assert not (tmp_path / "runs").exists()
