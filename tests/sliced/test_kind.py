"""What is kept of a whole value while no gradient is wanted."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sparsetune.sliced.kind import Formed, keepable
from sparsetune.sliced.sums import summed


def test_a_kept_value_knows_every_change():
    a, b = nn.Parameter(torch.randn(2, 5)), nn.Parameter(torch.randn(6, 2))
    frozen = torch.randn(6, 5)
    assert keepable(a, b, frozen)
    with torch.no_grad():
        kept = Formed.of(summed, (a, b), frozen)
        assert kept.holds((a, b), frozen)
        assert not kept.holds((a, b), frozen.clone())
        for factor in (a, b):
            factor.data[0, 0] += 1  # unseen by autograd's count of changes
            assert not kept.holds((a, b), frozen)
            kept = Formed.of(summed, (a, b), frozen)
        frozen[0, 0] += 1
        assert not kept.holds((a, b), frozen)
        assert not keepable(a, b.detach(), frozen)
        assert not keepable(*(copy.deepcopy(value).to("meta") for value in (a, b, frozen)))
