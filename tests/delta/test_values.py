from __future__ import annotations

import pytest
import torch
from forge import stirred

import sparsetune as st
from sparsetune.delta.container import compress, read_delta
from sparsetune.delta.values import diff, soup
from sparsetune.errors import ConfigError, DeltaError


@pytest.fixture
def files(tmp_path, tiny) -> list:
    for seed in (1, 2):
        st.save(stirred(tiny(), seed), tmp_path / f"{seed}", training={"data": "digits"})
    return [tmp_path / "1", tmp_path / "2"]


def test_a_compressed_delta_is_the_one_that_save_writes(tmp_path, files):
    st.save(st.load(files[0]), tmp_path / "saved", dtype="int8", training={"data": "digits"})
    compress(files[0], tmp_path / "compressed", "int8")
    assert (tmp_path / "compressed").read_bytes() == (tmp_path / "saved").read_bytes()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_is_counted_tensor_by_tensor(tmp_path, files, tiny, sign):
    net = st.load(files[0])
    with torch.no_grad():
        net.fc.bias[:3] += sign * torch.tensor([0.5, -2.0, 0.25])
    st.save(net, tmp_path / "changed")
    found = {change.name: change for change in diff(files[0], tmp_path / "changed")}
    assert list(found) == list(read_delta(files[0]))
    changed = found.pop("fc.bias")
    assert (changed.values, changed.differing) == (10, 3)
    assert changed.largest == pytest.approx(2.0)
    norm = st.load(files[0]).fc.bias.double().norm().item()
    assert changed.relative == pytest.approx((0.25 + 4 + 0.0625) ** 0.5 / norm, rel=1e-6)
    assert all(change.differing == change.largest == change.relative == 0 for change in found.values())
    st.save(tiny(st.Learn(fraction=0.5)), tmp_path / "wider")
    with pytest.raises(DeltaError, match=r"do not hold the same tensors \(.conv1.weight. is one"):
        diff(files[0], tmp_path / "wider")


@pytest.mark.parametrize(("order", "weights"), [(1, None), (-1, [3, 1])])
def test_a_soup_is_the_weighted_mean_with_the_largest_counts(tmp_path, files, order, weights):
    files = files[::order]
    soup(files, tmp_path / "soup", weights)
    one, other = (read_delta(file) for file in files)
    share = 0.5 if weights is None else 0.75
    for name, value in read_delta(tmp_path / "soup").items():
        if value.is_floating_point():
            expected = share * one[name].double() + (1 - share) * other[name].double()
            assert torch.equal(value, expected.float())
        else:
            assert value == max(one[name], other[name])
    assert st.inspect(tmp_path / "soup").training["weights"] == [share, 1 - share]
    st.verify(tmp_path / "soup")


def test_a_soup_of_one_kind_only(tmp_path, files, tiny):
    st.save(tiny(seed=5), tmp_path / "foreign")
    with pytest.raises(DeltaError, match=r"foreign does not stand on the backbone of .*1 with the same"):
        soup([files[0], tmp_path / "foreign"], tmp_path / "soup")
    with pytest.raises(ConfigError, match="1 delta makes no average; give two or more"):
        soup(files[:1], tmp_path / "soup")
    for weights in ([1.0], [0, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ConfigError, match="are not 2 numbers of 0 or more with a positive sum"):
            soup(files, tmp_path / "soup", weights)
    assert not (tmp_path / "soup").exists()
