"""Predictions and their quality: accuracy, calibration, doubt, and how members of an ensemble differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from sparsetune.backbone import device_of, evaluating, logits_of
from sparsetune.errors import ConfigError

ECE_BINS = 15
HALVINGS = 60
"""Steps of bisection, enough for float64."""
COLDEST, HOTTEST = 1e-3, 1e3
"""Temperatures between which the best one is looked for."""
CROP = 7 / 8
"""Share of a picture's sides that crops of it have, where predictions are averaged over views."""
CORNERS = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Where they lie, down and across, in their order."""


@dataclass(frozen=True)
class Scores:
    """Quality of one classifier on one set.

    Attributes:
        top1: Share of pictures whose class has the largest probability.
        top5: Share whose class is among the five largest; ``None`` where there are no more classes than that.
        nll: Mean negative log-likelihood, in nats.
        brier: Mean squared distance between probabilities and the one-hot class, summed over classes.
        ece: Expected calibration error over 15 equal-width bins of confidence.
        adaptive_ece: Likewise over 15 bins of equally many pictures.
        count: Number of pictures.
    """

    top1: float
    top5: float | None
    nll: float
    brier: float
    ece: float
    adaptive_ece: float
    count: int

    def to_json(self) -> dict[str, float]:
        """Return the scores as plain JSON values, those that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


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
    classes = probabilities.shape[1]
    top5 = probabilities.topk(5).indices == labels[:, None] if classes > 5 else None
    confidence, predicted = probabilities.max(1)
    onehot = torch.nn.functional.one_hot(labels, classes)
    return Scores(
        top1=(predicted == labels).double().mean().item(),
        top5=None if top5 is None else top5.any(1).double().mean().item(),
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


@dataclass(frozen=True)
class Views:
    """The views of a picture over which predictions are averaged (test-time augmentation).

    First comes the picture itself, then its mirror image, then crops of 7/8 of its sides at the four corners,
    enlarged to the old size: every second one mirrored, then the same four the other way round.

    Args:
        count: How many; 0 or 1 for the picture alone.
        mirrored: Whether mirror images are among them; digits have other meanings in a mirror.

    Raises:
        ConfigError: When there are not so many.
    """

    count: int = 0
    mirrored: bool = True

    def __post_init__(self) -> None:
        most = 2 + 2 * len(CORNERS) if self.mirrored else 1 + len(CORNERS)
        if not 0 <= self.count <= most:
            why = "" if self.mirrored else ", none of them mirrored: in a mirror it may be of another class"
            raise ConfigError(f"tta {self.count} cannot be met; a picture has 0 to {most} views{why}.")

    def of(self, x: Tensor) -> Iterator[Tensor]:
        """Yield so many views of pictures ``(B, C, H, W)``, each of that shape."""
        yield x
        crops = [(corner, (index + index // 4) % 2 == 1) for index, corner in enumerate(2 * CORNERS)]
        if not self.mirrored:
            crops = [(corner, False) for corner in CORNERS]
        elif self.count > 1:
            yield x.flip(3)
        for corner, flipped in crops[: max(0, self.count - 1 - self.mirrored)]:
            view = _cropped(x, corner)
            yield view.flip(3) if flipped else view


def _cropped(x: Tensor, corner: tuple[int, int]) -> Tensor:
    """Cut out a corner, and enlarge it to the old size."""
    sides = [max(1, round(CROP * side)) for side in x.shape[2:]]
    top, left = (at * (side - kept) for at, side, kept in zip(corner, x.shape[2:], sides, strict=True))
    window = x[:, :, top : top + sides[0], left : left + sides[1]]
    return torch.nn.functional.interpolate(window, x.shape[2:], mode="bilinear", align_corners=False)


def probabilities_of(net: nn.Module, x: Tensor, views: Views | None = None) -> Tensor:
    """Return a classifier's probabilities, averaged over views of each picture.

    Args:
        net: A classifier, in the mode in which it is to answer.
        x: Pictures ``(B, C, H, W)``, on any device.
        views: Which; by default the pictures alone.

    Returns:
        ``(B, classes)`` in float64, on the CPU.
    """
    x = x.to(device_of(net), non_blocking=True)
    with torch.inference_mode():
        found = [logits_of(net(view)).float().cpu().double().softmax(1) for view in (views or Views()).of(x)]
    return torch.stack(found).mean(0)


def predict(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], views: Views | None = None
) -> tuple[Tensor, Tensor]:
    """Return a classifier's probabilities over all batches, in evaluation mode; modes are restored after.

    Args:
        net: A classifier.
        batches: Pairs of pictures ``(B, C, H, W)`` and labels ``(B,)``.
        views: Over which the probabilities of each picture are averaged; by default it alone.

    Returns:
        Probabilities ``(N, classes)`` in float64 and labels ``(N,)``, on the CPU.
    """
    found, labels = _answers(net, batches, lambda x: probabilities_of(net, x, views))
    return found.double(), labels


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
    return _answers(net, batches, lambda x: logits_of(net(x.to(device, non_blocking=True))).float().cpu())


def _answers(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], answer: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """What a model in evaluation mode answers to all batches, and their labels."""
    rows, labels = [torch.empty(0, 0)], [torch.empty(0, dtype=torch.int64)]
    with evaluating(net), torch.inference_mode():
        for x, y in batches:
            rows.append(answer(x))
            labels.append(y)
    return joined_rows(rows), torch.cat(labels)


def joined_rows(pieces: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension; pieces without rows need not have the others' columns."""
    return torch.cat([piece for piece in pieces if len(piece)] or pieces[:1])
