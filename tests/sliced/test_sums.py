"""Low-rank sums: forward and gradients equal those of autograd through ``W + B @ A``."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from sparsetune.sliced.sums import factor_gradients, factored, summed

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def by_autograd(x, a, b, frozen, operation, grad):
    """Output and gradients of x, A and B, with the product summed index by index."""
    inputs = [value.detach().clone().requires_grad_() for value in (x, a, b)]
    product = torch.einsum("or,r...->o...", inputs[2], inputs[1])
    y = operation(inputs[0], frozen + product)
    return y.detach(), torch.autograd.grad(y, inputs, grad(y))


def assert_agrees(found, wanted, inputs):
    (y, gradients) = wanted
    assert torch.allclose(found, y, rtol=1e-12, atol=1e-12)
    for value, expected in zip(inputs, gradients, strict=True):
        scale = max(1.0, expected.abs().max().item() if expected.numel() else 1.0)
        assert value.grad.shape == expected.shape
        assert (value.grad - expected).abs().max() <= 1e-10 * scale


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.integers(1, 4))
    inputs, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    stride = [draw(st.integers(1, 3)) for _ in range(dims)]
    padding = [draw(st.integers(0, 2)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    sizes = [
        max(draw(st.integers(1, 7)), d * (k - 1) + 1 - 2 * p)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    ]
    rank = draw(st.integers(1, 5))
    return draw(st.integers(1, 3)), groups, inputs, outputs, kernel, sizes, rank, (stride, padding, dilation)


@settings(deadline=None, max_examples=150)
@given(convolutions(), st.booleans(), st.booleans())
@example((1, 1, 2, 1, [2, 1], [2, 1], 1, ([1, 1], [0, 0], [1, 1])), True, False)
def test_a_convolution_equals_autograd(case, channels_last, with_bias):
    batch, groups, inputs, outputs, kernel, sizes, rank, geometry = case
    torch.manual_seed(0)
    x = torch.randn(batch, groups * inputs, *sizes, dtype=torch.float64)
    frozen = torch.randn(groups * outputs, inputs, *kernel, dtype=torch.float64)
    plain = x, frozen  # of some channels-last weights torch's own gradient is an error
    if channels_last and x.dim() == 4:
        x, frozen = (value.contiguous(memory_format=torch.channels_last) for value in (x, frozen))
    bias = torch.randn(groups * outputs, dtype=torch.float64) if with_bias else None
    a = torch.randn(rank, inputs, *kernel, dtype=torch.float64)
    b = torch.randn(groups * outputs, rank, dtype=torch.float64)

    def operation(x, weight):
        return CONVS[len(kernel)](x, weight, bias, *geometry, groups)

    wanted = by_autograd(plain[0], a, b, plain[1], operation, torch.cos)
    held = [value.clone().requires_grad_() for value in (x, a, b)]
    weight = summed(a, b, frozen)
    y = factored(*held, weight, bias, (*geometry, groups))
    y.backward(y.detach().cos())
    assert_agrees(y.detach(), wanted, held)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 7),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_linear_map_equals_autograd(leading, size, inputs, outputs, rank, with_bias):
    torch.manual_seed(1)
    x = torch.randn(*[size] * leading, inputs, dtype=torch.float64)
    frozen = torch.randn(outputs, inputs, dtype=torch.float64)
    bias = torch.randn(outputs, dtype=torch.float64) if with_bias else None
    a, b = (torch.randn(shape, dtype=torch.float64) for shape in ((rank, inputs), (outputs, rank)))
    wanted = by_autograd(x, a, b, frozen, lambda x, weight: F.linear(x, weight, bias), torch.cos)
    held = [value.clone().requires_grad_() for value in (x, a, b)]
    y = factored(*held, summed(a, b, frozen), bias)
    y.backward(y.detach().cos())
    assert_agrees(y.detach(), wanted, held)


def test_no_whole_weight_gradient_is_made(monkeypatch):
    """The gradient of a wide layer's factors takes only weight gradients of ``r`` filters."""
    import sparsetune.sliced.convolution as module

    shapes = []
    real = module._backward

    def watched(grad, x, weight, geometry, wanted):
        if wanted[1]:
            shapes.append(weight.shape[0])
        return real(grad, x, weight, geometry, wanted)

    monkeypatch.setattr(module, "_backward", watched)
    x, grad = torch.randn(2, 32, 8, 8), torch.randn(2, 64, 4, 4)
    a, b, weight = torch.randn(3, 32, 3, 3), torch.randn(64, 3), torch.randn(64, 32, 3, 3)
    factor_gradients(grad, x, a, b, weight, ((2, 2), (1, 1), (1, 1), 1))
    assert shapes == [3]


def test_an_empty_batch_has_zero_gradients():
    x = torch.empty(0, 4, 5, 5)
    a, b = (torch.randn(shape, requires_grad=True) for shape in ((1, 2, 3, 3), (64, 1)))
    geometry = ((1, 1), (1, 1), (1, 1), 2)
    factored(x, a, b, torch.randn(64, 2, 3, 3), None, geometry).sum().backward()
    assert not a.grad.any()
    assert not b.grad.any()


def test_a_zero_product_adds_nothing():
    frozen = torch.randn(6, 5, 3, 3)
    assert torch.equal(summed(torch.randn(2, 5, 3, 3), torch.zeros(6, 2), frozen), frozen)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sum_has_the_layout_of_the_frozen_weight(layout):
    frozen = torch.randn(6, 5, 3, 3).contiguous(memory_format=layout)
    assert summed(torch.randn(2, 5, 3, 3), torch.randn(6, 2), frozen).stride() == frozen.stride()
