"""The time of a step of each entry, taken in turn."""

from __future__ import annotations

from dataclasses import replace

from sparsetune.studies.jobs import Job, in_order
from sparsetune.studies.runner import go
from sparsetune.studies.store import open_store
from sparsetune.studies.work import perform


def test_every_entry_is_timed_but_one_whose_budget_was_never_spent(small, inline, place):
    entries = (
        small(kind="ours", fraction=1.0),
        small(kind="ours", fraction=None, filters=0),
        small(kind="lora", fraction=None, rank=4),
        small(kind="ours", fraction=None, budget=25_000),
        small(kind="ours", fraction=None, budget=25_000, spread="low rank, last third"),
        small(kind="ours", fraction=None, budget=25_000, lr=1e30),
    )
    pace = Job({**entries[0].settings, "kind": "pace", "of": [each.id for each in entries]}, entries)
    with open_store(place.folder, write=True) as store:
        assert go([*in_order([pace])], store, inline).failed == {}
        rows = {row.id: row for row in store.rows()}
    assert "choice" not in rows[entries[-1].id].result
    steps = rows[pace.id].result["steps"]
    assert [step["id"] for step in steps] == pace.settings["of"][:5]
    assert all(0 < step["low"] <= step["ms"] <= step["high"] for step in steps)
    assert pace.name == "wrn28_4 digits steps of 6 methods"


def test_a_result_of_before_a_setting_was_there_is_timed(small, row, place):
    entry = small(kind="ours")
    old = {name: value for name, value in entry.settings.items() if name not in ("budget", "spread")}
    pace = Job({**entry.settings, "kind": "pace", "of": [entry.id]}, (entry,))
    with open_store(place.folder, write=True) as store:
        store.add(replace(row(entry), settings=old))
        (step,) = perform(pace.id, pace.settings, place)["steps"]
    assert step["id"] == entry.id
