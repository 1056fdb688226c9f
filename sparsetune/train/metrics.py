"""Predictions and their quality: accuracy, calibration, doubt, and how members of an ensemble differ."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from sparsetune.backbone import device_of, evaluating, logits_of

ECE_BINS = 15
HALVINGS = 60
"""Steps of bisection, enough for float64."""
COLDEST, HOTTEST = 1e-3, 1e3
"""Temperatures between which the best one is looked for."""


@dataclass(frozen=True)
class Scores:
    """Quality of one classifier on one set.

    Attributes:
        top1: Share of pictures whose class has the largest probability.
        top5: Share whose class is among the five largest (all classes, where there are fewer).
        nll: Mean negative log-likelihood, in nats.
        brier: Mean squared distance between probabilities and the one-hot class, summed over classes.
        ece: Expected calibration error over 15 equal-width bins of confidence.
        adaptive_ece: Likewise over 15 bins of equally many pictures.
        count: Number of pictures.
    """

    top1: float
    top5: float
    nll: float
    brier: float
    ece: float
    adaptive_ece: float
    count: int

    def to_json(self) -> dict[str, float]:
        """Return the scores as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Diversity:
    """How much members of an ensemble differ.

    Attributes:
        mutual_information: Entropy of the mean probabilities minus the members' mean entropy, in nats.
        disagreement: Share of pairs of members, over pictures, whose top classes differ.
    """

    mutual_information: float
    disagreement: float

    def to_json(self) -> dict[str, float]:
        """Return the figures as plain JSON values."""
        return asdict(self)


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


def scores(probabilities: Tensor, labels: Tensor) -> Scores:
    """Score predicted probabilities.

    Args:
        probabilities: ``(N, classes)``, each row summing to 1.
        labels: True classes, ``(N,)`` int64.
    """
    probabilities = probabilities.double()
    truth = probabilities.gather(1, labels[:, None]).squeeze(1)
    ranked = probabilities.topk(min(5, probabilities.shape[1]), dim=1).indices == labels[:, None]
    confidence, predicted = probabilities.max(1)
    onehot = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return Scores(
        top1=(predicted == labels).double().mean().item(),
        top5=ranked.any(1).double().mean().item(),
        nll=-truth.clamp_min(torch.finfo(torch.float64).tiny).log().mean().item(),
        brier=(probabilities - onehot).square().sum(1).mean().item(),
        ece=_calibration_error(confidence, predicted == labels),
        adaptive_ece=_adaptive_calibration_error(confidence, predicted == labels),
        count=len(labels),
    )


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Score a classifier's outputs.

    Args:
        logits: ``(N, classes)``, of any floating dtype.
        labels: True classes, ``(N,)`` int64.
    """
    return scores(logits.double().softmax(1), labels)


def diversity(members: Tensor) -> Diversity:
    """Measure how much members differ.

    Args:
        members: Probabilities, ``(members, N, classes)`` with at least two members.
    """
    members = members.double()
    count = members.shape[0]
    information = _entropy(members.mean(0)).mean() - _entropy(members).mean()
    top = members.argmax(2)
    differing = [(top[i] != top[j]).double().mean() for i in range(count) for j in range(i)]
    return Diversity(max(information.item(), 0.0), torch.stack(differing).mean().item())


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Mean over bins, weighted by size, of the gap between accuracy and mean confidence."""
    bins = (confidence * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    zeros = torch.zeros(ECE_BINS, dtype=torch.float64)
    gaps = zeros.index_add(0, bins, correct.double() - confidence)
    return (gaps.abs().sum() / len(confidence)).item()


def _adaptive_calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """As above, with bins that split the pictures, in order of confidence, as evenly as may be."""
    order = confidence.argsort(stable=True)
    gaps = (correct.double() - confidence)[order].tensor_split(ECE_BINS)
    return torch.stack([gap.sum().abs() for gap in gaps]).sum().item() / len(confidence)


def _entropy(probabilities: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return entropy


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


def predict_logits(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return a classifier's outputs over all batches, in evaluation mode; modes are restored after.

    Args:
        net: A classifier.
        batches: Pairs of pictures ``(B, C, H, W)`` and labels ``(B,)``.

    Returns:
        Logits ``(N, classes)`` in float32 and labels ``(N,)``, on the CPU; without batches both are empty.

    Raises:
        ConfigError: When it gives no logits.
    """
    device = device_of(net)
    logits, labels = [torch.empty(0, 0)], [torch.empty(0, dtype=torch.int64)]
    with evaluating(net), torch.inference_mode():
        for x, y in batches:
            logits.append(logits_of(net(x.to(device, non_blocking=True))).float().cpu())
            labels.append(y)
    return joined_rows(logits), torch.cat(labels)


def joined_rows(pieces: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension; pieces without rows need not have the others' columns."""
    return torch.cat([piece for piece in pieces if len(piece)] or pieces[:1])
