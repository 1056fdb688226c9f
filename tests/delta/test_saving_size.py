"""The size that is told before the training is that of the file that a training leaves."""

from __future__ import annotations

import pytest
import torch
from forge import stirred

import sparsetune as st
from sparsetune.delta.saving import file_bytes

WORDS = {
    "classes": [f'une classe trouvée nº {i} "' for i in range(10)],
    "preprocessing": st.Preprocessing((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic"),
    "training": {"data": "x" * 900, "result": {"test_loss": -1.2345678901234567e-300}},
}


def own():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 10))


@pytest.mark.parametrize("dtype", [None, "bf16", "int8"])
@pytest.mark.parametrize("words", [{}, WORDS], ids=["bare", "full"])
@pytest.mark.parametrize(
    ("make", "learn"),
    [
        (lambda: st.create("wrn28_4", depth=10, width=1, num_classes=10), st.Learn(rank={"block2": 2})),
        (lambda: st.create("test_vit", num_classes=10), st.Learn(fraction=0.2)),
        (own, st.Learn(filters=1)),
        (lambda: own().half(), st.Learn(fraction=0.5, dim="in", frozen="zero")),
    ],
    ids=["rank", "vit", "own", "half"],
)
def test_the_size_told_is_that_of_the_file(tmp_path, make, learn, words, dtype):
    told = file_bytes(net := make(), st.plan(net, learn), **words, dtype=dtype)
    st.save(stirred(st.adapt_(net, learn), 1), tmp_path / "delta", **words, dtype=dtype)
    assert abs((tmp_path / "delta").stat().st_size - told) <= (160 if dtype == "int8" else 0)
