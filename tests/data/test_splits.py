from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from sparsetune.data.images import ArrayImages
from sparsetune.data.splits import (
    Split,
    balanced,
    draws,
    shared_pictures,
    shuffled,
    split_by_content,
    split_in_two,
)
from sparsetune.errors import ConfigError

LABELS = some.lists(some.integers(0, 5), min_size=1, max_size=60)


def split_of(labels: list[int]) -> Split:
    """Make a split whose picture ``i`` is filled with the grey value ``i``."""
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    return Split.whole(ArrayImages(pixels), np.array(labels))


def test_an_element_is_a_picture_with_its_label() -> None:
    split = split_of([5, 6, 7, 8]).take(np.array([3, 1]))
    assert [(image.mode, image.getpixel((0, 0)), label) for image, label in split] == [
        ("RGB", (3, 3, 3), 8),
        ("RGB", (1, 1, 1), 6),
    ]
    assert torch.equal(split.labels, torch.tensor([8, 6]))
    assert repr(split) == "Split(2 images)"


@given(labels=LABELS, data=some.data(), seed=some.integers(0, 3))
def test_a_limit_keeps_classes_as_even_as_they_can_be(
    labels: list[int], data: some.DataObject, seed: int
) -> None:
    count = data.draw(some.integers(1, len(labels)))
    kept = balanced(split_of(labels), count, seed, "train_limit")
    assert len(kept) == count
    assert (np.diff(kept.rows) > 0).all()
    assert [labels[row] for row in kept.rows] == kept.labels.tolist()
    have, got = np.bincount(labels, minlength=6), np.bincount(kept.labels, minlength=6)
    not_exhausted = got < have
    assert all(got[c] >= got.max() - 1 for c in np.flatnonzero(not_exhausted))


@given(labels=LABELS, data=some.data())
def test_a_smaller_limit_is_part_of_a_larger_one(labels: list[int], data: some.DataObject) -> None:
    small, large = sorted(data.draw(some.tuples(*[some.integers(1, len(labels))] * 2)))
    split = split_of(labels)
    rows = [set(balanced(split, count, 0, "train_limit").rows.tolist()) for count in (small, large)]
    assert rows[0] <= rows[1]


def test_the_seed_fixes_the_choice() -> None:
    split = split_of([0, 1] * 40)
    first, again, other = (balanced(split, 20, seed, "train_limit").rows for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("count", [0, -3, 5])
def test_an_impossible_limit_names_the_number_available(count: int) -> None:
    with pytest.raises(ConfigError, match=f"^test_limit {count} cannot be met; expected 1 to 4, the images"):
        balanced(split_of([0, 1, 0, 1]), count, 0, "test_limit")


@given(labels=LABELS, seed=some.integers(0, 3))
def test_a_fifth_of_each_class_goes_to_the_test_split(labels: list[int], seed: int) -> None:
    train, test = split_in_two(split_of(labels), 0.2, seed)
    assert sorted([*train.rows, *test.rows]) == list(range(len(labels)))
    for label in set(labels):
        total, here = labels.count(label), (test.labels == label).sum().item()
        assert abs(here - total / 5) <= (0.8 if total in (2, 3, 4) else 0.5)
        assert (here > 0) == (total > 1)


PICTURES = some.lists(some.tuples(some.integers(0, 200), some.integers(0, 2)), min_size=1, max_size=60)
"""Of each picture its content and its class; contents may repeat, in other classes too."""


def sides(pictures: list[tuple[int, int]], seed: int = 0) -> dict[int, bool]:
    """Tell for each content whether it is held out; both sides together must be all pictures, once."""
    contents, labels = (np.array(each) for each in zip(*pictures, strict=True))
    pixels = contents.astype(np.uint8)[:, None, None, None].repeat(3, axis=3)
    train, test = split_by_content(Split.whole(ArrayImages(pixels), labels), 0.2, seed)
    assert sorted([*train.rows, *test.rows]) == list(range(len(pictures)))
    found = [{int(contents[row]) for row in part.rows} for part in (train, test)]
    assert not found[0] & found[1], "identical pictures stand on both sides"
    assert {int(label) for label in train.labels} == set(labels.tolist()), "a class has none to train on"
    return {content: content in found[1] for content in contents.tolist()}


@settings(max_examples=40)
@given(old=PICTURES, new=PICTURES, order=some.randoms(use_true_random=False), seed=some.integers(0, 3))
def test_pictures_that_are_added_move_no_other(
    old: list[tuple[int, int]], new: list[tuple[int, int]], order: Any, seed: int
) -> None:
    enough = [(content, label) for label in range(3) for content in range(201, 256)]
    before = sides([*enough, *old], seed)
    mixed = [*enough, *old, *new]
    order.shuffle(mixed)
    after = sides(mixed, seed)
    assert before == {content: after[content] for content in before}


@given(pictures=PICTURES, seed=some.integers(0, 3))
def test_identical_pictures_stand_on_one_side_and_no_class_is_left_without_training(
    pictures: list[tuple[int, int]], seed: int
) -> None:
    assert sides(pictures, seed).keys() == {content for content, _ in pictures}


@given(contents=some.sets(some.integers(0, 255), min_size=1, max_size=12))
def test_two_that_differ_are_enough_to_hold_one_out(contents: set[int]) -> None:
    assert any(sides([(content, 0) for content in contents]).values()) == (len(contents) > 1)


def test_about_a_fifth_is_held_out() -> None:
    held = [sum(sides([(content, 0) for content in range(256)], seed).values()) for seed in range(20)]
    assert 40 < np.mean(held) < 62  # 51 of 256
    assert len(set(held)) > 5


def test_pictures_that_two_splits_share_are_counted_by_content() -> None:
    first, second = split_of([0] * 20).take(np.arange(9)), split_of([0] * 20).take(np.arange(6, 20))
    assert shared_pictures(first, second, most=10**6) == 3
    assert shared_pictures(first, second, most=10) is None


def test_draws_are_philox_and_do_not_depend_on_their_number() -> None:
    few, many = draws(5, "order", 0, 1), draws(1000, "order", 0, 1)
    assert few.dtype == np.uint64
    assert few.tolist() == many[:5].tolist()
    assert few.tolist() != draws(5, "order", 1, 0).tolist() != draws(5, "augment", 0, 1).tolist()
    assert np.unique(many).size == 1000
    assert sorted(shuffled(1000, "order", 0, 1)) == list(range(1000))


def test_the_stream_stays_the_same_for_ever() -> None:
    assert shuffled(10, "order", 0, 0).tolist() == [0, 8, 1, 6, 7, 3, 4, 2, 5, 9]
    assert draws(2, "order", 0, 0).tolist() == [3066450160827821610, 4535223520269677951]
