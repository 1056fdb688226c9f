"""The gradient of a slice is the slice of the gradient, whichever kernel computes it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad as gradient
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sparsetune.sliced.convolution import (
    SHIFT_VALUES,
    conv_input_gradient,
    conv_weight_gradient,
    linear_weight_gradient,
)

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Kernels(TorchDispatchMode):
    """Count the operations that run, by their names."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def way(self) -> str:
        if "convolution_backward" in self.count:
            return "library"
        return "shifted" if "unfold" in self.count else "pointwise"


def operands(shape, x_shape, geometry, *, dtype=torch.float64, channels_last=False, seed=0):
    """Random input, weight and gradient of the output; and plain autograd's gradient of the weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if channels_last:
        x, weight = (v.to(memory_format=torch.channels_last) for v in (x, weight))
    stride, padding, dilation, groups = geometry
    weight.requires_grad_()
    y = CONVOLVE[len(stride)](x, weight, None, stride, padding, dilation, groups)
    grad = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, weight.detach(), grad, gradient(y, weight, grad)[0]


@st.composite
def convolutions(draw):
    """Shapes of weight and input, geometry, sliced dimension and ``k`` of any convolution."""
    rank = draw(st.integers(1, 3))
    each = lambda low, high: [draw(st.integers(low, high)) for _ in range(rank)]  # noqa: E731
    kernel, stride, padding, dilation = each(1, 4), each(1, 3), each(0, 3), each(1, 2)
    groups = draw(st.integers(1, 4))
    inputs = draw(st.sampled_from([1, 1, 2, 3]))  # 1 with several groups: depthwise
    filters = draw(st.integers(1, 16 if groups == 1 else 3))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    size = [low + draw(st.integers(0, 6 if rank < 3 else 2)) for low in least]
    shape = (groups * filters, inputs, *kernel)
    dim = draw(st.integers(0, rank + 1))
    k = draw(st.integers(1, shape[dim]))
    batch = draw(st.integers(1, 3))
    return shape, (batch, groups * inputs, *size), (stride, padding, dilation, groups), dim, k


@settings(max_examples=300, deadline=None)
@given(convolutions(), st.booleans(), st.integers(0, 99))
def test_convolution(case, channels_last, seed):
    shape, x_shape, geometry, dim, k = case
    x, weight, grad, whole = operands(
        shape, x_shape, geometry, channels_last=channels_last and len(shape) == 4, seed=seed
    )
    found = conv_weight_gradient(grad, x, weight, dim, k, geometry)
    assert found.shape == whole.narrow(dim, 0, k).shape
    torch.testing.assert_close(found, whole.narrow(dim, 0, k), rtol=1e-10, atol=1e-10)


CASES = {
    # way it is computed: weight, input, stride, padding, groups, k
    "1x1": ("pointwise", (20, 6, 1, 1), (2, 6, 10, 10), 1, 0, 1, 14),
    "1x1, strided": ("pointwise", (20, 6, 1, 1), (2, 6, 21, 19), 2, 0, 1, 3),
    "1x1, one product for each picture": ("pointwise by bmm", (20, 60, 1, 1), (2, 60, 2, 2), 1, 0, 1, 14),
    "1x1, one product for all pictures": ("pointwise by mm", (20, 60, 1, 1), (2, 60, 2, 2), 1, 0, 1, 15),
    "1x1, padded": ("library", (20, 6, 1, 1), (2, 6, 12, 12), 1, 1, 1, 3),
    "3x3, half as many filters as inputs": ("shifted", (20, 6, 3, 3), (2, 6, 7, 9), 1, 1, 1, 3),
    "3x3, more filters": ("library", (20, 6, 3, 3), (2, 6, 7, 9), 1, 1, 1, 4),
    "3x3, one product for each picture": ("shifted by bmm", (20, 32, 3, 3), (2, 32, 5, 5), 1, 1, 1, 8),
    "3x3, one product for all pictures": ("shifted by mm", (20, 32, 3, 3), (2, 32, 5, 5), 1, 1, 1, 9),
    "3x3, few filters, valid": ("shifted", (20, 6, 3, 3), (2, 6, 7, 9), 1, 0, 1, 1),
    "5x5, few filters, wide padding": ("shifted", (20, 6, 5, 5), (2, 6, 7, 9), 1, 4, 1, 3),
    "3x3, padding beyond the kernel": ("library", (20, 6, 3, 3), (2, 6, 7, 9), 1, 3, 1, 3),
    "3x3, strided": ("library", (20, 6, 3, 3), (2, 6, 7, 9), 2, 1, 1, 3),
    "grouped": ("library", (20, 3, 3, 3), (2, 6, 7, 9), 1, 1, 2, 3),
    "depthwise": ("library", (6, 1, 3, 3), (2, 6, 7, 9), 1, 1, 6, 3),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_way_gives_the_same_gradient(name, dtype, channels_last):
    way, shape, x_shape, stride, padding, groups, k = CASES[name]
    geometry = ([stride] * 2, [padding] * 2, [1, 1], groups)
    x, weight, grad, _ = operands(shape, x_shape, geometry, dtype=dtype, channels_last=channels_last)
    with Kernels() as kernels:
        found = conv_weight_gradient(grad, x, weight, 0, k, geometry)
    way, _, product = way.partition(" by ")
    assert kernels.way == way
    assert not product or channels_last or product in kernels.count
    assert found.dtype == dtype
    exact = conv_weight_gradient(grad.double(), x.double(), weight.double(), 0, shape[0], geometry)[:k]
    assert (found.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()


@pytest.mark.parametrize("stride", [[1, 2], [3, 1]])
def test_1x1_kernels_may_stride_along_one_side_alone(stride):
    x, weight = torch.randn(2, 6, 9, 10, dtype=torch.float64, requires_grad=True), torch.randn(20, 6, 1, 1)
    weight, geometry = weight.double().requires_grad_(), (stride, [0, 0], [1, 1], 1)
    y = F.conv2d(x, weight, stride=stride)
    grad = torch.randn_like(y)
    wanted = gradient(y, [x, weight], grad)
    torch.testing.assert_close(conv_input_gradient(grad, x.detach(), weight.detach(), geometry), wanted[0])
    for dim in (0, 1):
        found = conv_weight_gradient(grad, x.detach(), weight.detach(), dim, 3, geometry)
        torch.testing.assert_close(found, wanted[1].narrow(dim, 0, 3))


def test_a_batch_is_shifted_a_few_pictures_at_a_time():
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    k, positions, batch = 10, 30 * 30, 30
    assert 12 * k * 9 * positions < SHIFT_VALUES < 13 * k * 9 * positions  # so 12, 12 and 6 of the 30
    x, weight, grad, whole = operands((21, 40, 3, 3), (batch, 40, 30, 30), geometry)
    with Kernels() as kernels:
        found = conv_weight_gradient(grad, x, weight, 0, k, geometry)
    assert kernels.count["bmm"] == 3
    torch.testing.assert_close(found, whole[:k], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("way", "size", "stride", "groups", "kernel"),
    [
        ("pointwise", (8, 8), 1, 1, 1),
        ("library", (7, 9), 1, 1, 1),
        ("pointwise", (15, 16), 2, 1, 1),
        ("library", (15, 14), 2, 1, 1),
        ("pointwise", (22, 24), 3, 1, 1),
        ("library", (8, 8), 1, 2, 1),
        ("library", (8, 8), 1, 1, 3),
    ],
)
def test_every_way_gives_the_same_gradient_of_the_input(
    way, size, stride, groups, kernel, dtype, channels_last
):
    geometry = ([stride] * 2, [kernel // 2] * 2, [1, 1], groups)
    shape, x_shape = (20, 6 // groups, kernel, kernel), (2, 6, *size)
    x, weight, grad, _ = operands(shape, x_shape, geometry, dtype=dtype, channels_last=channels_last)
    with Kernels() as kernels:
        found = conv_input_gradient(grad, x, weight, geometry)
    assert kernels.way == way
    assert (found.dtype, found.shape) == (dtype, x.shape)
    if dtype.itemsize > 2 or way == "pointwise":
        assert found.stride() == x.stride()
    wide = x.double().requires_grad_()
    y = F.conv2d(wide, weight.double(), None, stride, kernel // 2, 1, groups)
    exact = gradient(y, wide, grad.double())[0]
    assert (found.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max()


@pytest.mark.parametrize(("dim", "groups"), [(0, 1), (0, 4), (1, 1)])
def test_the_library_never_strides_over_1x1_kernels(dim, groups):
    """Its own weight gradient corrupts memory there if channels-last inputs are few, as slices make them."""
    geometry = ([2, 2], [0, 0], [1, 1], groups)
    shape = (32, 16 // groups, 1, 1)
    x, weight, grad, whole = operands(shape, (8, 16, 8, 8), geometry, dtype=torch.float32, channels_last=True)
    strides = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                strides.append(list(args[4]))
            return func(*args, **(kwargs or {}))

    with Watch():
        found = conv_weight_gradient(grad, x, weight, dim, 4, geometry)
    assert strides == ([] if groups == 1 else [[1, 1]])
    torch.testing.assert_close(found, whole.narrow(dim, 0, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 13, 17, 33])
def test_half_precision_is_never_refused(dtype, k):
    for rank, inputs, kernel, groups in [
        (1, 3, 3, 1), (2, 1, 1, 1), (2, 3, 3, 1), (2, 33, 3, 1), (2, 1, 5, 33), (2, 4, 3, 3), (3, 3, 3, 1),
    ]:  # fmt: skip
        geometry = ([2] * rank, [1] * rank, [1] * rank, groups)
        shape, x_shape = (33, inputs, *[kernel] * rank), (1, inputs * groups, *[6] * rank)
        x, weight, grad, _ = operands(shape, x_shape, geometry, dtype=dtype)
        assert conv_weight_gradient(grad, x, weight, 0, k, geometry).isfinite().all()


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_a_batch_of_none_has_a_gradient_of_zero(dim):
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    weight = torch.randn(4, 4, 3, 3)
    found = conv_weight_gradient(
        torch.empty(0, 4, 12, 12), torch.empty(0, 4, 12, 12), weight, dim, 2, geometry
    )
    assert torch.equal(found, torch.zeros_like(weight.narrow(dim, 0, 2)))


@settings(deadline=None)
@given(st.lists(st.integers(1, 3), max_size=2), st.integers(1, 5), st.integers(1, 5), st.data())
def test_linear(batch, inputs, outputs, data):
    dim = data.draw(st.integers(0, 1))
    k = data.draw(st.integers(1, (outputs, inputs)[dim]))
    x, grad = torch.randn(*batch, inputs).double(), torch.randn(*batch, outputs).double()
    weight = torch.randn(outputs, inputs).double().requires_grad_()
    whole = gradient(F.linear(x, weight), weight, grad)[0]
    found = linear_weight_gradient(grad, x, dim, k)
    torch.testing.assert_close(found, whole.narrow(dim, 0, k), rtol=1e-10, atol=1e-10)


def test_a_gradient_lies_in_memory_as_its_weight_does():
    weight, x = torch.randn(16, 16, 1, 1), torch.randn(2, 16, 4, 4)
    found = conv_weight_gradient(x, x, weight, 0, 6, ([1, 1], [0, 0], [1, 1], 1))
    assert found.stride() == weight[:6].stride()


def test_all_inputs_of_a_batch_of_one_keep_their_strides():
    """A view may give a dimension of one another stride, which the backend's grouped kernel trips over."""
    geometry = ([1, 1], [0, 0], [1, 1], 2)
    x, weight, grad, whole = operands((2, 2, 1, 2), (1, 4, 1, 2), geometry, channels_last=True)
    torch.testing.assert_close(conv_weight_gradient(grad, x, weight, 1, 2, geometry), whole)
