"""Quality of predicted probabilities: accuracy, calibration, and how members of an ensemble differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

ECE_BINS = 15


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
