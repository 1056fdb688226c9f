"""Convolutions of few filters against torch's own."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_convolution import Kernels
from torch.nn import functional as F

from sparsetune.sliced import convolution as shifts
from sparsetune.sliced.convolution import SHIFT_VALUES, conv_of_few


@settings(deadline=None, max_examples=200)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 3), st.integers(1, 8), st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from((0, shifts.FOLD_VALUES)),
)
def test_few_filters_convolve_as_many_do(kernel, padding, stride, shape, filters, channels_last, limit):
    padding = padding or ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
    assume(all(shape[2 + i] + 2 * padding[i] >= kernel[i] for i in (0, 1)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn((filters, shape[1], *kernel), generator=generator, dtype=torch.float64)
    wanted = F.conv2d(x, weight, None, stride, padding)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with mock.patch.object(shifts, "FOLD_VALUES", limit):  # one call adds all up, or one a position
        torch.testing.assert_close(conv_of_few(x, weight, (stride, padding, (1, 1), 1)), wanted)


@pytest.mark.parametrize(("filters", "way"), [(4, "product"), (16, "library")])
def test_few_filters_are_a_product_in_pieces_that_fit_a_cache(filters, way):
    x, weight = torch.randn(40, 16, 32, 32), torch.randn(filters, 16, 3, 3)
    assert 40 * filters * 9 * 32 * 32 > SHIFT_VALUES
    with Kernels() as kernels:
        found = conv_of_few(x, weight, ((1, 1), (1, 1), (1, 1), 1))
    assert ("convolution" in kernels.count) == (way == "library")
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)
