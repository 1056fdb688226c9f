from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from sparsetune.train.metrics import calibrated, detection, scores, temperature


def sample(seed: int, count: int = 4000, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: calibrated as they are."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("factor", [0.2, 1.0, 7.0])
def test_temperature_has_the_least_loss(factor):
    logits, labels = sample(0)
    found = temperature(logits * factor, labels)

    def loss(log_t: float) -> float:
        return torch.nn.functional.cross_entropy(logits * factor / math.exp(log_t), labels).item()

    best = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(math.exp(best.x), rel=1e-4)
    assert found == pytest.approx(factor, rel=0.1)


def test_a_sure_classifier_has_a_cold_temperature_and_no_crash():
    logits = torch.eye(3).double()
    assert temperature(logits, torch.arange(3)) < 0.05
    assert temperature(-logits, torch.arange(3)) > 100


def test_overconfident_probabilities_are_calibrated_by_the_other_half():
    logits, labels = sample(1)
    sharp = (logits * 5).softmax(1)
    before, after, true = scores(sharp, labels), scores(calibrated(sharp, labels), labels), logits.softmax(1)
    assert before.ece > 0.1
    assert after.ece < 0.03
    assert after.top1 == before.top1
    assert after.nll == pytest.approx(scores(true, labels).nll, rel=0.01)


def test_a_pictures_own_label_has_no_part_in_its_probabilities():
    logits, labels = sample(2, 40)
    changed = labels.clone()
    changed[6] = (changed[6] + 1) % 5
    one, other = calibrated(logits.softmax(1), labels), calibrated(logits.softmax(1), changed)
    assert torch.equal(one[::2], other[::2])
    assert not torch.equal(one[1::2], other[1::2])
    assert torch.equal(calibrated(logits[:1].softmax(1), labels[:1]).argmax(1), logits[:1].argmax(1))


def test_detection_agrees_with_torchmetrics():
    known, _ = sample(3, 500)
    other, _ = sample(4, 300)
    p, q = (known * 2).softmax(1), (other * 0.7).softmax(1)
    found = detection(p, q)
    alarm = torch.cat([1 - p.amax(1), 1 - q.amax(1)])
    truth = torch.cat([torch.zeros(500), torch.ones(300)]).int()
    assert found.auroc == pytest.approx(binary_auroc(alarm, truth).item(), abs=1e-6)
    assert found.aupr == pytest.approx(binary_average_precision(alarm, truth).item(), abs=1e-6)
    threshold = max(t for t in alarm.tolist() if (1 - q.amax(1) >= t).double().mean() >= 0.95)
    assert found.fpr95 == (1 - p.amax(1) >= threshold).double().mean().item()


def test_detection_of_the_clearly_other_is_perfect_and_of_the_same_is_chance():
    sure, unsure = torch.tensor([[1.0, 0.0]] * 40), torch.tensor([[0.5, 0.5]] * 20)
    best, none = detection(sure, unsure), detection(sure, sure)
    assert (best.auroc, best.aupr, best.fpr95) == (1, 1, 0)
    assert (none.auroc, none.fpr95) == (0.5, 1)
