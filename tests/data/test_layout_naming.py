from __future__ import annotations

import pytest

from sparsetune.data.layout import TEST, TRAIN, VALIDATION, SplitName, says_nothing, split_groups


@pytest.mark.parametrize(
    ("name", "kind", "affix"),
    [
        ("train", TRAIN, ()),
        ("TRAINING", TRAIN, ()),
        ("trainval", TRAIN, ()),
        ("train_val", TRAIN, ()),
        ("Train Set", TRAIN, ()),
        ("testset", TEST, ()),
        ("imagesVal", VALIDATION, ()),
        ("dev-1", VALIDATION, ()),
        ("seg_test", TEST, ("seg",)),
        ("training shoes", TRAIN, ("shoes",)),
    ],
)
def test_names_of_splits(name: str, kind: str, affix: tuple[str, ...]) -> None:
    read = SplitName.read(name)
    assert read is not None
    assert (read.kind, read.affix) == (kind, affix)


@pytest.mark.parametrize(
    "name", ["trainer", "contest", "valley", "images", "2019", "", "test_train", "greatest", "Ève"]
)
def test_other_names(name: str) -> None:
    assert SplitName.read(name) is None


def test_words_in_common_make_a_group() -> None:
    assert split_groups(["seg_train", "seg_pred", "seg_test", "test tube"]) == [
        {"train": ["seg_train"], "test": ["seg_test"]}
    ]
    assert split_groups(["training shoes", "boots"]) == []
    assert len(split_groups(["a_train", "a_test", "b_train", "b_val"])) == 2


def test_names_that_say_nothing() -> None:
    assert all(map(says_nothing, ["2019", "images", "part_2", "Photos (3)"]))
    assert not says_nothing("cat images")
