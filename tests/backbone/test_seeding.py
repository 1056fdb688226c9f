import os
import subprocess
import sys
from decimal import localcontext
from hashlib import sha256
from itertools import combinations

import numpy as np
import pytest
import torch
from forge import bare
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsetune.backbone.seeding import Law, draw, normal_quantiles
from sparsetune.errors import ConfigError

MIDPOINTS = (np.arange(65_536) + 0.5) / 65_536
NORMAL, UNIFORM = Law("normal", 0.0, 1.0), Law("uniform", 0.0, 1.0)
LAWS = {
    "uniform": (Law("uniform", -0.3, 0.1), stats.uniform(-0.3, 0.4)),
    "normal": (Law("normal", 1.0, 0.02), stats.norm(1.0, 0.02)),
    "trunc_normal": (Law("trunc_normal", 0.5, 2.0, -1.5, 1.0), stats.truncnorm(-1.0, 0.25, 0.5, 2.0)),
    "tail": (Law("trunc_normal", 0.0, 1.0, 3.0, 5.0), stats.truncnorm(3.0, 5.0)),
}
GOLDEN = {
    "table": "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8",
    "uniform": "a502d65521d72e3a3471d34e525c42240fae912f37f5b7903f4d403f51a3131f",
    "normal": "ec97018bf155d083aeff5934c90fa9f7f46bc5d23eb663acae57024555a1f932",
    "trunc_normal": "7cff4a6f1154f61da4a48abe8f4ce078b1df7d36ed742646671f86d26cfa31ed",
    "tail": "fb92c5bcf45a8735e328afde0cd11d42c899675c5ed3dbe7940f44ed93699d61",
}
PROGRAM = """
from hashlib import sha256
from sparsetune.backbone.seeding import Law, draw
tail = Law("trunc_normal", 0.0, 1.0, 3.0, 5.0)
print(sha256(draw(7, "golden.weight", (300, 333), tail).numpy().tobytes()).hexdigest())
print(sha256(draw(7, "golden.weight", (300, 333), Law("normal", 1.0, 0.02)).numpy().tobytes()).hexdigest())
"""


def digest(values):
    return sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def test_golden_table():
    assert digest(normal_quantiles().astype("<f4")) == GOLDEN["table"]


@pytest.mark.parametrize("kind", LAWS)
def test_golden_draws(kind):
    values = draw(7, "golden.weight", (300, 333), LAWS[kind][0])
    assert values.dtype == torch.float32
    assert values.shape == (300, 333)
    assert digest(values.numpy().astype("<f4")) == GOLDEN[kind]


def environments():
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    plain = {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": " ".join(features)}
    return {
        "plain": {**plain, "OMP_NUM_THREADS": "1"},
        "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "2"},
    }


@pytest.mark.parametrize("environment", ["plain", "avx2"])
def test_same_bytes_at_every_simd_level(environment):
    variables = {**os.environ, **environments()[environment]}
    run = subprocess.run(
        [sys.executable, "-c", bare("backbone") + PROGRAM],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [GOLDEN["tail"], GOLDEN["normal"]]


def test_table_is_the_normal_quantile_function():
    table = normal_quantiles()
    near = table.astype(np.float32)
    exact = stats.norm.ppf(MIDPOINTS).astype(np.float32)
    assert np.all(np.abs(near - exact) <= np.spacing(np.abs(exact)))
    np.testing.assert_allclose(table, stats.norm.ppf(MIDPOINTS), rtol=4e-15)


@pytest.mark.parametrize(
    "bounds", [(-2, 2), (-1, 3), (3, 5), (-7, -6.5), (0, np.inf), (-0.01, 0.02), (9, 11.5)]
)
def test_truncated_tables_match_scipy(bounds):
    table = normal_quantiles(*bounds)
    np.testing.assert_allclose(table, stats.truncnorm.ppf(MIDPOINTS, *bounds), rtol=1e-9, atol=1e-9)
    assert bounds[0] <= table.min() < table.max() <= bounds[1]


@pytest.mark.parametrize("bound", [np.inf, 2.0, 0.3])
def test_tables_are_exactly_antisymmetric(bound):
    table = normal_quantiles(-bound, bound)
    assert np.array_equal(table, -table[::-1])
    assert np.all(np.diff(table) > 0)


def test_bounds_far_out_change_nothing():
    bounded = draw(0, "w", (1000,), Law("trunc_normal", 0.0, 0.02, -2.0, 2.0))
    assert torch.equal(bounded, draw(0, "w", (1000,), Law("normal", 0.0, 0.02)))


def test_a_mirrored_law_gives_mirrored_tables():
    assert np.array_equal(normal_quantiles(-1.0, 3.0), -normal_quantiles(-3.0, 1.0)[::-1])


def test_stream_is_philox_keyed_by_a_hash():
    key = sha256(b"sparsetune\x001\x0042\x00layer1.0.conv1.weight").digest()[:16]
    raw = np.random.Philox(key=np.frombuffer(key, "<u8")).random_raw(25)
    indices = np.frombuffer(raw.astype("<u8").tobytes(), "<u2")
    uniform = draw(42, "layer1.0.conv1.weight", (100,), UNIFORM)
    assert np.array_equal(uniform.numpy(), MIDPOINTS[indices].astype(np.float32))


@pytest.mark.parametrize("kind", LAWS)
def test_values_follow_their_law(kind):
    law, truth = LAWS[kind]
    count = 400_000
    values = draw(3, "w", (count,), law).double().numpy()
    assert stats.kstest(values, truth.cdf).pvalue > 1e-3
    sigma, excess = truth.std(), float(truth.stats("k"))
    assert abs(values.mean() - truth.mean()) < 4 * sigma / count**0.5
    assert abs(values.var() / sigma**2 - 1) < 4 * ((excess + 2) / count) ** 0.5 + 3e-5
    least, most = truth.support()
    assert np.float32(least) <= values.min()
    assert values.max() <= np.float32(most)


def test_names_and_seeds_have_their_own_streams():
    count = 200_000
    keys = [(0, "a"), (0, "b"), (1, "a"), (10, "a"), (1, "0a"), (0, "a.weight")]
    streams = [(draw(*key, (count,), UNIFORM).double() * 65_536).long() for key in keys]
    words = [
        set((stream.view(-1, 4) * torch.tensor([1, 1 << 16, 1 << 32, 1 << 48])).sum(1).tolist())
        for stream in streams
    ]
    assert all(first.isdisjoint(second) for first, second in combinations(words, 2))
    correlation = torch.corrcoef(torch.stack(streams).double()).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / count**0.5


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(
        *[st.one_of(st.integers(0, 70), st.integers(32_760, 32_780), st.integers(65_530, 70_000))] * 2
    ),
    law=st.sampled_from([law for law, _ in LAWS.values()]),
    seed=st.integers(0, 2**80),
    name=st.text(st.characters(codec="utf-8"), max_size=20),
)
def test_a_smaller_tensor_is_the_beginning_of_a_larger_one(sizes, law, seed, name):
    few, many = sorted(sizes)
    assert torch.equal(draw(seed, name, (few,), law), draw(seed, name, (many,), law)[:few])


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3, 4), torch.Size([5])])
def test_any_shape(shape):
    values = draw(0, "w", shape, NORMAL)
    assert values.shape == torch.Size(shape)
    assert torch.equal(values.flatten(), draw(0, "w", (100,), NORMAL)[: values.numel()])


def test_no_spread_is_constant():
    assert torch.equal(draw(0, "w", (9,), Law("normal", 0.25, 0.0)), torch.full((9,), 0.25))
    assert torch.equal(draw(0, "w", (9,), Law("uniform", 0.25, 0.25)), torch.full((9,), 0.25))


def test_settings_of_the_process_do_not_matter():
    expected = draw(0, "w", (70_000,), LAWS["tail"][0])
    state = torch.get_rng_state()
    normal_quantiles.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with localcontext() as context, torch.device("meta"), torch.inference_mode():
            context.prec = 3
            again = draw(0, "w", (70_000,), LAWS["tail"][0])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(expected, again)
    assert torch.equal(state, torch.get_rng_state())


def test_tables_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        normal_quantiles()[0] = 0


@pytest.mark.parametrize("seed", [-1, 1.0, True, "0", None])
def test_wrong_seed(seed):
    with pytest.raises(ConfigError, match=r"seed .* is not a whole number >= 0; give one, such as 0\."):
        draw(seed, "w", (1,), NORMAL)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (("gauss", 0.0, 1.0), "'gauss' is unknown; use uniform, normal or trunc_normal"),
        (("uniform", 1.0, 0.0), "impossible"),
        (("normal", 0.0, -1.0), "impossible"),
        (("normal", 0.0, float("nan")), "impossible"),
        (("normal", float("inf"), 1.0), "impossible"),
        (("normal", 0.0, 1.0, -2.0, 2.0), "wrong bounds"),
        (("trunc_normal", 0.0, 1.0, 2.0, -2.0), "wrong bounds"),
        (("trunc_normal", 0.0, 0.0, -2.0, 2.0), "wrong bounds"),
        (("trunc_normal", 0.0, 1.0, float("nan"), 2.0), "not a number"),
    ],
)
def test_wrong_laws(numbers, words):
    with pytest.raises(ConfigError, match=words):
        Law(*numbers)


def test_bounds_that_hold_nothing():
    with pytest.raises(ConfigError, match=r"holds nothing from 20\.0 to 30\.0 std; widen"):
        draw(0, "w", (1,), Law("trunc_normal", 0.0, 1.0, 20.0, 30.0))
