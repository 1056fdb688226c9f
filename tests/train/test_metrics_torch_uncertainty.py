"""Scores of an ensemble beside those of torch-uncertainty on the same logits."""

from __future__ import annotations

import pytest
import torch

from sparsetune.train.metrics import detection, diversity, scores

theirs = pytest.importorskip("torch_uncertainty.metrics.classification")

MEMBERS, COUNT, CLASSES = 5, 1000, 7


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    """``(members * COUNT, classes)``: a part that the members share, and one of each."""
    generator = torch.Generator().manual_seed(0)
    shared = 2 * torch.randn(1, COUNT, CLASSES, generator=generator, dtype=torch.float64)
    own = torch.randn(MEMBERS, COUNT, CLASSES, generator=generator, dtype=torch.float64)
    return (shared + own).flatten(0, 1)


@pytest.fixture(scope="module")
def members(logits) -> torch.Tensor:
    return logits.view(MEMBERS, COUNT, CLASSES).softmax(-1)


@pytest.fixture(scope="module")
def labels(members) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.multinomial(members.mean(0), 1, generator=generator).squeeze(1)


def their(metric, *given) -> float:
    metric = metric.set_dtype(torch.float64)
    metric.update(*given)
    return metric.compute().item()


def test_scores_agree(members, labels):
    mean = members.mean(0)
    found = scores(mean, labels)
    assert found.brier == pytest.approx(their(theirs.BrierScore(CLASSES), mean, labels), abs=1e-6)
    assert found.nll == pytest.approx(their(theirs.CategoricalNLL(), mean, labels), abs=1e-6)
    for ours, metric in (
        (found.ece, theirs.CalibrationError),
        (found.adaptive_ece, theirs.AdaptiveCalibrationError),
    ):
        metric = metric(task="multiclass", num_classes=CLASSES, num_bins=15, norm="l1")
        assert ours == pytest.approx(their(metric, mean, labels), abs=1e-6)
        assert ours > 0.005


def test_diversity_agrees(members):
    found, by_row = diversity(members), members.transpose(0, 1)
    assert found.mutual_information == pytest.approx(their(theirs.MutualInformation(), by_row), abs=1e-6)
    assert found.disagreement == pytest.approx(their(theirs.Disagreement(), by_row), abs=1e-6)


def test_false_alarms_agree(members):
    known, other = members.mean(0), members.mean(0).sqrt()[:501]
    other = other / other.sum(1, keepdim=True)
    alarm = 1 - torch.cat([known, other]).amax(1)
    truth = torch.cat([torch.zeros(len(known)), torch.ones(len(other))]).long()
    expected = their(theirs.FPR95(pos_label=1), alarm, truth)
    assert detection(known, other).fpr95 == pytest.approx(expected, abs=1e-6)
