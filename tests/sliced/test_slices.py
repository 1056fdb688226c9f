"""``sliced``: the plain operations, differentiated for the learned slice alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convolution import CONVOLVE, Kernels, convolutions
from torch import nn
from torch.nn import functional as F

from sparsetune.sliced.slices import sliced
from sparsetune.sliced.sums import factored

GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def learned_part(whole, dim, k):
    """What is learned of a weight or bias, a leaf of its own; ``None`` for nothing."""
    return nn.Parameter(whole.detach().narrow(dim, 0, k).clone()) if k else None


def check(ours, plain, x, weight, bias, dim, learned, learned_bias, exact=True):
    """Compare outputs, and gradients of input, slice and bias, for the same gradient of the output."""
    grad = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, [x, weight, *([] if bias is None else [bias])], grad)
    assert torch.equal(ours, plain)
    ours.backward(grad)
    close = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(x.grad, wanted[0], **close)
    for part, whole, axis in [(learned, 1, dim), (learned_bias, 2, 0)]:
        if part is not None:
            torch.testing.assert_close(part.grad, wanted[whole].narrow(axis, 0, part.shape[axis]), **close)


@settings(max_examples=200, deadline=None)
@given(convolutions(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_convolution_is_the_plain_one_with_the_slices_gradient(
    case, double, biased, batched, channels_last, data
):
    shape, x_shape, geometry, dim, k = case
    k = data.draw(st.sampled_from([0, k, k, k]))
    dtype = torch.float64 if double else torch.float32
    x = leaf(*(x_shape if batched else x_shape[1:]), dtype=dtype)
    weight = leaf(*shape, dtype=dtype)
    bias = leaf(shape[0], dtype=dtype) if biased else None
    wide = any(p > d * (n - 1) for n, p, d in zip(shape[2:], *geometry[1:3], strict=True))
    if channels_last and len(shape) == 4 and batched and (double or not wide):  # else torch itself crashes
        x, weight = (v.detach().to(memory_format=torch.channels_last).requires_grad_() for v in (x, weight))
    learned = learned_part(weight, dim, k)
    learned_bias = learned_part(bias, 0, data.draw(st.integers(0, shape[0]))) if biased else None
    ours = sliced(x, learned, weight, learned_bias, bias, dim, geometry)
    stride, padding, dilation, groups = geometry
    plain = CONVOLVE[len(stride)](x, weight, bias, stride, padding, dilation, groups)
    check(ours, plain, x, weight, bias, dim, learned, learned_bias, exact=double)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 4), max_size=3), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.data()
)
def test_linear_is_the_plain_one_with_the_slices_gradient(batch, inputs, outputs, biased, data):
    dim = data.draw(st.integers(0, 1))
    x, weight = leaf(*batch, inputs), leaf(outputs, inputs)
    bias = leaf(outputs) if biased else None
    learned = learned_part(weight, dim, data.draw(st.integers(0, (outputs, inputs)[dim])))
    learned_bias = learned_part(bias, 0, data.draw(st.integers(0, outputs))) if biased else None
    ours = sliced(x, learned, weight, learned_bias, bias, dim)
    check(ours, F.linear(x, weight, bias), x, weight, bias, dim, learned, learned_bias)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 3])
def test_autocast_computes_what_plain_autocast_does(half, groups, dim, k):
    torch.manual_seed(0)
    x, bias = leaf(4, 6, 12, 12, dtype=torch.float32), leaf(14, dtype=torch.float32)
    weight = leaf(14, 6 // groups, 3, 3, dtype=torch.float32)
    learned, learned_bias = learned_part(weight, dim, k), learned_part(bias, 0, k)
    flat, learned_flat = leaf(7, 14, dtype=torch.float32), learned_part(weight.flatten(1), 0, k)
    with torch.autocast("cpu", half):
        ours = sliced(x, learned, weight, learned_bias, bias, dim, (*GEOMETRY[:3], groups))
        plain = F.conv2d(x, weight, bias, 1, 1, 1, groups)
        linear = sliced(flat, None, flat, learned_flat, None, 0)
        assert torch.equal(linear, F.linear(flat, flat))
    assert ours.dtype == plain.dtype == linear.dtype == half
    assert torch.equal(ours, plain)
    grad = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, [x, weight, bias], grad)
    ours.backward(grad)
    for found, whole in [
        (x.grad, wanted[0]),
        (learned.grad, wanted[1].narrow(dim, 0, k)),
        (learned_bias.grad, wanted[2][:k]),
    ]:
        assert found.dtype == torch.float32
        assert (found - whole).abs().max() <= 0.02 * whole.abs().max()


def test_autocast_leaves_doubles_alone():
    x, weight = leaf(2, 3), leaf(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert sliced(x, None, weight, None, None, 0).dtype == torch.float64


@pytest.mark.parametrize("size", [(), (2,), (2, 3), (2, 3, 5)])
def test_outputs_may_be_changed_in_place(size):
    """As ``nn.ReLU(inplace=True)`` does."""
    x, weight, bias = torch.randn(*size, 4), leaf(6, 4, dtype=torch.float32), torch.randn(6)
    (wanted,) = torch.autograd.grad(F.linear(x, weight, bias).relu().sum(), weight)
    learned, a, b = learned_part(weight, 0, 2), torch.ones(1, 4), leaf(6, 1, dtype=torch.float32)
    sliced(x, learned, weight, None, bias, 0).relu_().sum().backward()
    torch.testing.assert_close(learned.grad, wanted[:2])
    factored(x, a, b, weight, bias).relu_().sum().backward()
    torch.testing.assert_close(b.grad, wanted.sum(1, keepdim=True))


def test_nothing_is_differentiated_where_nothing_before_or_inside_is_learned():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    assert not sliced(x, None, weight, None, None, 0, GEOMETRY).requires_grad
    assert not sliced(x, None, torch.randn(2, 5), None, None, 0).requires_grad


def test_a_learned_layer_at_the_start_has_no_input_gradient():
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    learned = learned_part(weight, 0, 1)
    y = sliced(x, learned, weight, None, None, 0, GEOMETRY)
    with Kernels() as kernels:
        y.sum().backward()
    assert kernels.way == "shifted"
    assert learned.grad.shape == learned.shape


@pytest.mark.parametrize("operation", ["conv", "linear"])
def test_a_second_derivative_is_refused_rather_than_wrong(operation):
    weight = leaf(4, 3, 1, 1) if operation == "conv" else leaf(4, 3)
    learned = learned_part(weight, 0, 2)
    if operation == "conv":
        y = sliced(leaf(2, 3, 5, 5), learned, weight, None, None, 0, ([1, 1], [0, 0], [1, 1], 1))
    else:
        y = sliced(leaf(2, 3), learned, weight, None, None, 0)
    first = torch.autograd.grad(y.square().sum(), learned, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_shapes_are_found_without_values():
    x, weight = torch.empty(2, 3, 5, 5, device="meta"), torch.empty(4, 3, 3, 3, device="meta")
    assert sliced(x, None, weight, None, None, 0, GEOMETRY).shape == (2, 4, 5, 5)
