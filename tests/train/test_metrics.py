from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from sparsetune.train.metrics import diversity, scores


def draw(seed: int, *shape: int, sharpness: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)


def draw_labels(seed: int, count: int, classes: int) -> torch.Tensor:
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed + 1))


def test_two_pictures_by_hand():
    found = scores(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), torch.tensor([0, 1]))
    assert (found.top1, found.top5, found.count) == (0.5, None, 2)
    assert "top5" not in found.to_json()
    assert found.nll == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2, rel=1e-6)
    # (.3² + .2² + .1² + .1² + .7² + .6²) / 2
    assert found.brier == pytest.approx((0.09 + 0.04 + 0.01 + 0.01 + 0.49 + 0.36) / 2, rel=1e-6)
    # bins of a fifteenth: .7 (right) and .6 (wrong) stand alone
    assert found.ece == pytest.approx((0.3 + 0.6) / 2, rel=1e-6)


def test_confidences_of_one_bin_cancel():
    # 0.62 and 0.66 both lie in the tenth bin, (9/15, 10/15]; one right of two: |0.5 - 0.64|
    found = scores(torch.tensor([[0.62, 0.38], [0.66, 0.34]]).double(), torch.tensor([0, 1]))
    assert found.ece == pytest.approx(0.14)


def test_a_bin_holds_its_upper_edge():
    # 3/5 is an edge of the bins: it belongs to (8/15, 9/15], together with 0.55 and not with 0.61
    rows = [[0.6, 0.4], [0.55, 0.45], [0.61, 0.39]]
    found = scores(torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 1, 0]))
    assert found.ece == pytest.approx((abs((0.6 - 1) + 0.55) + (1 - 0.61)) / 3)


def test_certain_and_right_is_perfect_and_certain_and_wrong_is_finite():
    certain = torch.eye(3)
    right, wrong = scores(certain, torch.tensor([0, 1, 2])), scores(certain, torch.tensor([1, 2, 0]))
    assert (right.top1, right.nll, right.brier, right.ece) == (1, 0, 0, 0)
    assert (wrong.top1, wrong.brier, wrong.ece) == (0, 2, 1)
    assert math.isfinite(wrong.nll)
    assert wrong.nll > 100


@pytest.mark.parametrize("classes", [2, 5, 10, 100])
def test_agrees_with_torchmetrics(classes):
    p, y = draw(classes, 500, classes), draw_labels(classes, 500, classes)
    found = scores(p, y)
    accuracy = {"num_classes": classes, "average": "micro"}
    assert found.top1 == pytest.approx(multiclass_accuracy(p, y, **accuracy).item())
    if classes > 5:
        assert found.top5 == pytest.approx(multiclass_accuracy(p, y, top_k=5, **accuracy).item())
    else:
        assert found.top5 is None
    theirs = multiclass_calibration_error(p, y, num_classes=classes, n_bins=15, norm="l1")
    assert found.ece == pytest.approx(theirs.item(), abs=1e-6)
    by_confidence = p.max(1).values.argsort()
    right = (p.argmax(1) == y).double()[by_confidence]
    bins = zip(np.array_split(p.max(1).values[by_confidence], 15), np.array_split(right, 15), strict=True)
    gaps = [abs(confidence.mean() - share.mean()) * len(share) / 500 for confidence, share in bins]
    assert found.adaptive_ece == pytest.approx(sum(gaps))
    onehot = torch.nn.functional.one_hot(y, classes)
    assert found.nll == pytest.approx(torch.nn.functional.nll_loss(p.log(), y).item())
    assert found.brier == pytest.approx(((p - onehot) ** 2).sum(1).mean().item())


def test_two_members_by_hand():
    members = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    found = diversity(members)
    # first picture: they contradict each other, ln 2 nats; second: they are equal, 0
    assert found.mutual_information == pytest.approx(math.log(2) / 2)
    assert found.disagreement == 0.5


def test_disagreement_is_the_mean_over_pairs():
    first, second = torch.eye(2)[0], torch.eye(2)[1]
    members = torch.stack([first, first, second])[:, None]
    assert diversity(members).disagreement == pytest.approx(2 / 3)


def test_equal_members_have_nothing_to_tell_each_other():
    member = draw(0, 50, 10)
    found = diversity(torch.stack([member] * 3))
    assert found.disagreement == 0
    assert f"{found.mutual_information:.4f}" == "0.0000"


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 10**6), some.integers(1, 30), some.integers(2, 12), some.floats(0.01, 50))
def test_scores_stay_in_their_range_and_do_not_depend_on_order(seed, count, classes, sharpness):
    p, y = draw(seed, count, classes, sharpness=sharpness), draw_labels(seed, count, classes)
    found = scores(p, y)
    assert 0 <= found.top1 <= (1 if found.top5 is None else found.top5) <= 1
    assert found.nll >= 0
    assert 0 <= found.brier <= 2
    assert 0 <= found.ece <= 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert scores(p[order], y[order]).to_json() == pytest.approx(found.to_json())
    relabelled = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    moved = scores(p[:, relabelled], relabelled.argsort()[y])
    assert moved.to_json() == pytest.approx(found.to_json())


@settings(max_examples=60, deadline=None)
@given(some.integers(0, 10**6), some.integers(2, 5), some.integers(1, 20), some.integers(2, 10))
def test_diversity_stays_in_its_range_and_does_not_depend_on_order(seed, members, count, classes):
    p = draw(seed, members, count, classes)
    found = diversity(p)
    assert 0 <= found.mutual_information <= math.log(members) + 1e-12
    assert 0 <= found.disagreement <= 1
    assert diversity(p.flip(0)).to_json() == pytest.approx(found.to_json())


@settings(max_examples=40, deadline=None)
@given(some.integers(0, 10**6), some.integers(2, 5), some.integers(1, 20), some.integers(2, 10))
def test_an_ensemble_is_no_worse_than_its_members_on_average(seed, members, count, classes):
    p, y = draw(seed, members, count, classes), draw_labels(seed, count, classes)
    together, alone = scores(p.mean(0), y), [scores(member, y) for member in p]
    assert together.nll <= sum(s.nll for s in alone) / members + 1e-9  # Jensen
    assert together.brier <= sum(s.brier for s in alone) / members + 1e-9
