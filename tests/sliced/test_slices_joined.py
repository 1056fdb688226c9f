"""A slice of filters and its rest share one memory, and the slice's storage holds nothing else."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from sparsetune.parts.part import Part
from sparsetune.sliced.slices import Slice, join_, joinable

WEIGHTS = {
    "contiguous": lambda: torch.randn(6, 4, 3, 3),
    "channels_last": lambda: torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(4, 6).t(),
    "inside another": lambda: torch.randn(9, 5)[2:8],
    "every second column": lambda: torch.randn(6, 8)[:, ::2],
    "half": lambda: torch.randn(6, 5).half(),
    "bias": lambda: torch.randn(6),
}


def parts(whole: torch.Tensor, apart: bool) -> tuple[nn.Parameter, torch.Tensor]:
    """The first two filters and the rest: views of ``whole``, or copies."""
    learned, rest = whole[:2], whole[2:]
    return (nn.Parameter(learned.clone()), rest.clone()) if apart else (nn.Parameter(learned), rest)


@pytest.mark.parametrize("apart", [False, True], ids=["views", "copies"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_whole_follows_the_slice(kind, apart):
    wanted = WEIGHTS[kind]()
    learned, rest = parts(wanted.clone(), apart)
    joined = join_(learned, rest)
    assert joined.holds(learned, joined.rest)
    assert torch.equal(joined.whole, wanted)
    with torch.no_grad():
        learned.mul_(2)
    wanted[:2] *= 2
    assert torch.equal(joined.whole, wanted)
    assert torch.equal(joined.rest, wanted[2:])


@pytest.mark.parametrize("apart", [False, True], ids=["views", "copies"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_slice_is_written_alone(kind, apart):
    learned, rest = parts(WEIGHTS[kind](), apart)
    join_(learned, rest)
    assert learned.untyped_storage().nbytes() == learned.numel() * learned.element_size()
    file = io.BytesIO()
    torch.save(learned.detach(), file)
    file.seek(0)
    assert torch.equal(torch.load(file), learned)


def test_joining_views_of_one_weight_copies_nothing():
    whole = torch.randn(6, 4)
    learned, rest = parts(whole, apart=False)
    joined = join_(learned, rest)
    assert whole.data_ptr() == learned.data_ptr() == joined.whole.data_ptr()
    again = join_(learned, joined.rest)
    assert again.whole.data_ptr() == whole.data_ptr()


def test_memory_lives_as_long_as_its_slice():
    learned, rest = parts(torch.randn(600, 400), apart=True)
    wanted = learned.detach().clone()
    join_(learned, rest)
    del rest
    torch.zeros(600, 400)  # would take the memory, were it free
    assert torch.equal(learned, wanted)


def test_a_change_of_the_slice_is_one_of_the_whole_to_autograd():
    learned, rest = parts(torch.randn(6, 4), apart=True)
    joined = join_(learned, rest)
    before = joined.whole._version
    with torch.no_grad():
        learned.add_(1)
    assert joined.whole._version == before + 1


def test_what_cannot_lie_together_is_told():
    learned, rest = parts(torch.randn(6, 4), apart=True)
    assert joinable(learned, rest)
    assert not joinable(learned, rest.double())
    assert not joinable(learned, rest.to("meta"))
    learned.share_memory_()
    assert not joinable(learned, rest)


@pytest.mark.parametrize("dim", [0, 1])
def test_a_change_of_the_slice_is_none_of_its_rest(dim):
    part = Part("weight", (6, 4), dim, 2, True, (("", "weight"),))
    (learned,), rest = Slice(dim).start(part, torch.randn(6, 4))
    before = rest._version
    with torch.no_grad():
        learned.add_(1)
    assert rest._version == before
