"""Values in fewer bits are near the values, and nearest to them of all that the code can say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from forge import X, stirred
from hypothesis import given, settings
from hypothesis import strategies as some

import sparsetune as st
from sparsetune.delta.container import read_delta
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.parts.precision import CODES, decode, encode
from sparsetune.runs.settings import Run
from sparsetune.sliced.adapt import adapted
from sparsetune.spec.config import PRECISIONS, scales, stored_bytes

shapes = some.lists(some.integers(0, 5), max_size=4).map(tuple)


def there_and_back(value: torch.Tensor, precision: str) -> torch.Tensor:
    code, numbers, scale = encode(value, precision)
    assert numbers.dtype == CODES[code]
    assert len(scale) == scales(code, tuple(value.shape))
    return decode(code, numbers, scale, tuple(value.shape))


@settings(deadline=None)
@given(shapes, some.integers(0, 99), some.sampled_from([1e-6, 1.0, 300.0]))
def test_int8_is_within_half_a_step_of_its_filter(shape, seed, size):
    value = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = there_and_back(value, "int8")
    rows = value.reshape(shape[0], -1) if len(shape) > 1 and value.numel() else value.reshape(1, -1)
    if value.numel() and not (value.dim() < 2 and (value >= 0).all()):
        step = rows.abs().amax(1, keepdim=True) / 127
        assert ((found.view_as(rows) - rows).abs() <= 0.501 * step).all()
    assert found.shape == value.shape


@given(shapes, some.sampled_from(PRECISIONS))
def test_the_bytes_told_are_those_of_the_numbers_and_scales(shape, precision):
    """Of ``int6`` numbers have six bits at most, four as a statistic, and scales two bytes."""
    for value in (torch.randn(shape), torch.rand(shape)):
        for role, statistic in (("", False), ("mean", True), ("variance", True)):
            _, numbers, scale = encode(value, precision, role)
            told = stored_bytes(shape, precision, statistic)
            if precision == "int6":
                assert told == math.ceil(numbers.numel() * (4 if statistic else 6) / 8) + 2 * len(scale)
                assert torch.equal(scale.bfloat16().float(), scale)
            else:
                assert told == numbers.nbytes + scale.nbytes
        assert stored_bytes(shape, None) == value.nbytes


def test_an_unknown_precision_is_refused_before_any_work():
    said = "dtype 'int4' is not one of bf16, fp16, int8, int6; leave it out for all bits."
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    data = st.open_data("digits", train_limit=20, test_limit=10)
    for refused in (
        lambda: Run(model="wrn28_4", learn=st.Learn(rank=1), config=st.FitConfig(), dtype="int4"),
        lambda: st.choose(net, data, st.FitConfig(epochs=1), 30_000, dtype="int4"),
        lambda: st.plan(net, st.Learn(rank=1)).bytes_in("int4"),
    ):
        with pytest.raises(ConfigError) as caught:
            refused()
        assert str(caught.value) == said


def errors(values: np.ndarray, relative: bool) -> tuple[float, float]:
    """The sums of squared errors of both codes as docs/format.md has them, by NumPy alone."""
    share = np.where(values == 0, 1, values.astype(np.float64)) if relative else 1.0
    step = np.float32(values.max() / 127) or np.float32(1)
    linear = np.round(values / np.float64(step)).clip(-127, 127).astype(np.float32) * step
    root = np.sqrt(np.sqrt(values.astype(np.float64)))
    step = np.float64(np.float32(root.max() / 255)) or 1.0
    fourth = (np.round(root / step).clip(0, 255) * step) ** 2
    found = (linear, (fourth * fourth).astype(np.float32))
    return tuple(float((((each - values.astype(np.float64)) / share) ** 2).sum()) for each in found)


@settings(deadline=None)
@given(
    some.lists(some.floats(0, 1e4, width=32), min_size=1, max_size=40)
    | some.lists(some.floats(0.5, 1.5, width=32), min_size=1, max_size=40),
    some.booleans(),
)
def test_a_vector_takes_the_code_of_the_smaller_error(values, relative):
    value = torch.tensor(values)
    code, *rest = encode(value, "int8", "variance" if relative else "")
    gap = decode(code, *rest, tuple(value.shape)).double() - value.double()
    gap = gap / torch.where(value == 0, 1.0, value.double()) if relative else gap
    assert gap.square().sum().item() <= min(errors(value.numpy(), relative)) * (1 + 1e-6)


def test_scales_near_one_keep_the_steps_of_int8_and_variances_their_order_of_magnitude(tmp_path):
    net = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=10), st.Learn(filters=1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "bn" in name and name.endswith("weight"):
                value.uniform_(0.5, 1.5, generator=generator)
            if name.endswith("running_var"):
                value.copy_(10 ** (4 * torch.rand(value.shape, generator=generator) - 2))
    st.save(net, tmp_path / "a", dtype="int8")
    again, codes = (
        st.load(tmp_path / "a").state_dict(),
        {e.name: e.dtype for e in st.inspect(tmp_path / "a").entries},
    )
    for name, value in net.state_dict().items():
        if "bn" in name and name.endswith("weight"):
            assert codes[name] == "int8"
            assert (again[name] - value).abs().max() <= value.max() / 253
        if name.endswith("running_var"):
            assert codes[name] == "root8"
            assert ((again[name] - value) / value).abs().max() < 0.2


@settings(deadline=None)
@given(shapes, some.integers(0, 99), some.sampled_from([1e-6, 1.0, 300.0]))
def test_int6_is_within_half_a_step_of_its_filter(shape, seed, size):
    """A step is a 31st of the filter's largest value, or up to a 128th more, as its scale has eight bits."""
    value = size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = there_and_back(value, "int6")
    if value.numel():
        rows = value.reshape(shape[0] if len(shape) > 1 else 1, -1)
        step = rows.abs().amax(1, keepdim=True) / 31 * (1 + 1 / 128)
        assert ((found.view_as(rows) - rows).abs() <= 0.501 * step).all()


@settings(deadline=None)
@given(some.lists(some.floats(-100, 100, width=32), min_size=1, max_size=30))
def test_a_mean_has_sixteen_equal_steps(values):
    value = torch.tensor(values)
    code, numbers, scale = encode(value, "int6", "mean")
    assert (code, numbers.dtype) == ("line4", torch.uint8)
    assert numbers.max() <= 15
    low, step = scale.numpy().astype(np.float64)
    found = decode(code, numbers, scale, (len(values),))
    assert np.array_equal(found.numpy(), (low + numbers.numpy() * step).astype(np.float32))
    span = value.max() - value.min()
    most = (span + 2**-7 * value.abs().max()) / 15 * 0.51 * (1 + 2**-6) + 2**-7 * value.min().abs()
    assert ((found - value).abs() <= most + 1e-30).all()


@settings(deadline=None)
@given(some.lists(some.floats(2**-10, 2**10, width=32), min_size=1, max_size=30))
def test_a_variance_has_sixteen_equal_ratios(values):
    value = torch.tensor(values)
    code, numbers, scale = encode(value, "int6", "variance")
    assert code == "curve4"
    low, ratio = scale.numpy().astype(np.float64)
    found = decode(code, numbers, scale, (len(values),))
    assert np.allclose(found.numpy(), low * ratio ** numbers.numpy().astype(np.float64), rtol=1e-6)
    half = 0.51 * np.log(ratio) + 2**-7
    assert (np.abs(np.log(found.numpy() / value.numpy())) <= half).all()
    assert np.log(ratio) <= np.log(max(values) / min(values)) / 15 + 2**-6


def test_variances_of_which_some_are_zero_have_equal_steps():
    code, *rest = encode(torch.tensor([0.0, 1.5, 3.0]), "int6", "variance")
    assert code == "line4"
    assert decode(code, *rest, (3,)).tolist() == pytest.approx([0, 1.5, 3], abs=0.12)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_two_bytes_are_torchs_own_rounding(precision):
    value = torch.randn(100)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert torch.equal(there_and_back(value, precision), value.to(dtype).float())


def test_what_was_rounded_once_stays():
    for precision in ("bf16", "fp16", "int8"):
        for value in (torch.randn(7, 3, 3), torch.rand(20), torch.zeros(4), torch.zeros(3, 2)):
            once = there_and_back(value, precision)
            assert torch.allclose(there_and_back(once, precision), once, rtol=1e-6, atol=0)


def test_decoding_is_plain_arithmetic():
    # numpy's float32 product and float64 power, each rounded once
    code, numbers, scale = encode(torch.randn(5, 4), "int8")
    expected = numbers.numpy().reshape(5, 4).astype(np.float32) * scale.numpy()[:, None]
    assert np.array_equal(decode(code, numbers, scale, (5, 4)).numpy(), expected)
    code, numbers, scale = encode(torch.logspace(-3, 3, 9), "int8", "variance")
    assert code == "root8"
    root = numbers.numpy().astype(np.float64) * scale.numpy().astype(np.float64)
    square = root * root
    assert np.array_equal(decode(code, numbers, scale, (9,)).numpy(), (square * square).astype(np.float32))


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.52), ("fp16", 0.52), ("int8", 0.27)])
def test_a_file_shrinks_and_loads_near(tmp_path, precision, most):
    net = stirred(st.adapt_(st.create("densenet100_12", num_classes=10), st.Learn(fraction=0.1)), 1).eval()
    st.save(net, tmp_path / "whole")
    st.save(net, tmp_path / "small", dtype=precision)
    sizes = [(tmp_path / name).stat().st_size for name in ("whole", "small")]
    assert sizes[1] <= most * sizes[0]
    assert st.inspect(tmp_path / "whole").format == 1
    header = st.inspect(tmp_path / "small")
    assert header.format == 2
    assert header.learned_bytes <= sizes[1] <= header.learned_bytes + 20_000
    again = st.load(tmp_path / "small")
    assert all(value.dtype == torch.float32 for value in again.parameters())
    values = read_delta(tmp_path / "small")
    assert all(torch.equal(value, values[name]) for name, value in again.state_dict().items())
    with torch.no_grad():
        assert torch.nn.functional.cosine_similarity(again(X), net(X)).min() > 0.99
    assert adapted(again).fingerprint == adapted(net).fingerprint


def test_refuses_what_it_cannot_hold(tmp_path, tiny):
    net = tiny()
    with torch.no_grad():
        next(net.parameters()).fill_(1e6)
    with pytest.raises(DeltaError, match=r"'conv1\.weight' holds values that fp16 cannot hold"):
        st.save(net, tmp_path / "d", dtype="fp16")
    with pytest.raises(ConfigError, match="dtype 'int4' is not one of bf16, fp16, int8"):
        st.save(net, tmp_path / "d", dtype="int4")
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(DeltaError, match="holds values that int8 cannot hold"):
        st.save(net, tmp_path / "d", dtype="int8")
    assert not list(tmp_path.iterdir())
