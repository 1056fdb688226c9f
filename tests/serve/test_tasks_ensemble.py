from __future__ import annotations

import pytest
import torch
from forge import X, stirred

import sparsetune as st
from sparsetune.errors import ConfigError, DeltaError


@pytest.fixture
def files(tmp_path, tiny) -> list:
    for seed in range(3):
        st.save(stirred(tiny(), seed), tmp_path / f"{seed}.safetensors", classes=list("abcdefghij"))
    return [tmp_path / f"{seed}.safetensors" for seed in range(3)]


def test_logits_are_the_members_one_after_the_other(files):
    ensemble = st.Ensemble.load(files)
    expected = [st.load(file)(X) for file in files]
    assert len(ensemble) == 3
    assert torch.equal(ensemble(X), torch.cat(expected))
    mean = sum(logits.softmax(1) for logits in expected) / 3
    torch.testing.assert_close(ensemble.probabilities(X), mean)


def test_a_member_alone_is_an_ensemble(files):
    assert torch.equal(st.Ensemble.load(files[:1])(X), st.load(files[0])(X))


def test_members_must_know_the_same_classes(tmp_path, files, tiny):
    st.save(stirred(tiny(num_classes=4), 1), tmp_path / "four")
    with pytest.raises(DeltaError, match="four knows 4 classes that are not those of the first member"):
        st.Ensemble.load([*files, tmp_path / "four"])
    st.save(stirred(tiny(), 1), tmp_path / "other", classes=list("ABCDEFGHIJ"))
    with pytest.raises(DeltaError, match="other knows 10 classes that are not"):
        st.Ensemble.load([*files, tmp_path / "other"])
    with pytest.raises(ConfigError, match="no deltas were given"):
        st.Ensemble.load([])


def test_no_rows_wrong_arguments_and_channels_last(files):
    ensemble = st.Ensemble.load(files)
    assert ensemble(X[:0]).shape == ensemble.probabilities(X[:0]).shape == (0, 10)
    with pytest.raises(ConfigError, match="the pictures are a list, not a tensor"):
        ensemble(X.tolist())
    with pytest.raises(ConfigError, match="a mapping was given; pass a list of files"):
        st.Ensemble.load({"a": files[0]})
    with pytest.raises(ConfigError, match="shared by several deltas, for evaluation"):
        ensemble.net.train()
    expected = ensemble(X)
    found = ensemble.to(memory_format=torch.channels_last)(X.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)
