"""What predicted probabilities are worth: made right by a temperature, and on pictures of other things."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import sqrt

import torch
from torch import Tensor

HALVINGS = 60
"""Steps of bisection, enough for float64."""
COLDEST, HOTTEST = 1e-3, 1e3


@dataclass(frozen=True)
class Detection:
    """How well low confidence tells pictures of other things from those of the known classes.

    Attributes:
        auroc: Area under the curve of true against false alarms; 0.5 is chance.
        aupr: Area under the curve of precision against recall, other things being the positives.
        fpr95: Share of known pictures that are alarmed when 95 % of the other things are.
    """

    auroc: float
    aupr: float
    fpr95: float

    def to_json(self) -> dict[str, float]:
        """Return the figures as plain JSON values."""
        return asdict(self)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that logits are best divided by: that of the least negative log-likelihood.

    The slope of the loss in ``1 / T`` grows with it, so its zero is found by bisection (Guo et al., 2017, who
    take a general optimiser).

    Args:
        logits: ``(N, classes)``; log-probabilities are logits too.
        labels: ``(N,)`` int64.
    """
    logits = logits.double()
    true = logits.gather(1, labels[:, None]).mean()

    def slope(scale: float) -> float:
        mean = ((logits * scale).softmax(1) * logits).sum(1).mean()
        return float(mean - true)

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(HALVINGS):
        middle = sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / sqrt(low * high)


def calibrated(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Rescale each half of the pictures by the temperature that fits the other half.

    No picture's own label has a part in its probabilities, so scores of the result are honest ones.

    Args:
        probabilities: ``(N, classes)``.
        labels: ``(N,)`` int64.

    Returns:
        Probabilities ``(N, classes)`` in float64; as given where there are fewer than two pictures.
    """
    logits = probabilities.double().clamp_min(torch.finfo(torch.float64).tiny).log()
    if len(labels) < 2:
        return logits.exp()
    halves = torch.arange(len(labels)) % 2 == 0
    result = torch.empty_like(logits)
    for half in (halves, ~halves):
        result[half] = (logits[half] / temperature(logits[~half], labels[~half])).softmax(1)
    return result


def detection(known: Tensor, other: Tensor) -> Detection:
    """Measure how well the largest probability, if low, tells other things from known ones.

    Args:
        known: Probabilities ``(N, classes)`` of pictures of the known classes.
        other: Probabilities ``(M, classes)`` of pictures of other things.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    alarm = torch.cat([1 - p.double().amax(1) for p in (known, other)])
    truth = torch.cat([torch.zeros(len(known)), torch.ones(len(other))])
    return Detection(
        auroc=float(roc_auc_score(truth, alarm)),
        aupr=float(average_precision_score(truth, alarm)),
        fpr95=_false_alarms(alarm, truth.bool(), 0.95),
    )


def _false_alarms(alarm: Tensor, truth: Tensor, recall: float) -> float:
    """Share of negatives at or above the highest threshold that catches ``recall`` of the positives."""
    caught = alarm[truth].sort(descending=True).values
    threshold = caught[-(-round(recall * 1000) * len(caught) // 1000) - 1]
    return (alarm[~truth] >= threshold).double().mean().item()
