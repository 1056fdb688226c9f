from __future__ import annotations

import json

import pytest
import timm.optim  # noqa: F401  (once, not in the first example)
from hypothesis import given
from hypothesis import strategies as some

import sparsetune as st
from sparsetune.errors import ConfigError, SparsetuneError, UnknownNameError


def test_defaults_are_those_of_the_contract():
    config = st.FitConfig()
    assert (config.epochs, config.batch_size, config.opt, config.lr) == (10, 64, "momentum", 0.1)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("epochs", 0, "epochs 0 is not a whole number of 1 or more."),
        ("epochs", 2.0, "epochs 2.0 is not a whole number of 1 or more."),
        ("epochs", True, "epochs True is not a whole number of 1 or more."),
        ("batch_size", -1, "batch_size -1 is not a whole number of 1 or more."),
        ("seed", -1, "seed -1 is not a whole number of 0 or more."),
        ("workers", -2, "workers -2 is not a whole number of 0 or more."),
        ("lr", float("nan"), "lr nan is not a number of 0 or more, or auto."),
        ("lr", "0.1", "lr '0.1' is not a number of 0 or more, or auto."),
        ("lr", None, "lr None is not a number of 0 or more, or auto."),
        ("weight_decay", float("inf"), "weight_decay inf is not a number of 0 or more."),
        ("momentum", -0.1, "momentum -0.1 is not a number of 0 or more."),
        ("sched", "cosin", "sched 'cosin' is not one of cosine, tanh, poly, multistep, none."),
        ("decay_rate", -1, "decay_rate -1 is not a number of 0 or more."),
        ("decay_milestones", (3, 2), "decay_milestones (3, 2) is not a list of epochs in rising order."),
        ("decay_milestones", 3, "decay_milestones 3 is not a list of epochs in rising order."),
        ("sched", "multistep", "sched 'multistep' lowers lr at decay_milestones; give some."),
        ("amp", "int4", "amp 'int4' is not one of bf16, fp16."),
        ("amp", "", "amp '' is not one of bf16, fp16."),
        ("mixup", -1, "mixup -1 is not a number of 0 or more."),
        ("reprob", 1.5, "reprob 1.5 is not between 0 and 1."),
        ("grad_accum_steps", 0, "grad_accum_steps 0 is not a whole number of 1 or more."),
        ("layer_decay", 0, "layer_decay 0 is not between 0.01 and 1."),
        ("model_ema_decay", 2, "model_ema_decay 2 is not between 0 and 1."),
        *(
            (
                "aa",
                policy,
                f"aa '{policy}' is not one of timm's policies, "
                "such as rand-m9-mstd0.5-inc1, augmix-m3-w3 or v0.",
            )
            for policy in ("", "randm9", "rand-m9-x1", "rand-m", "rand-n0", "v1", "augmix-tweights", 9)
        ),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(setting, value, words):
    with pytest.raises(ConfigError) as caught:
        st.FitConfig(**{setting: value})
    assert str(caught.value) == words


def test_an_unknown_optimiser_has_near_names():
    with pytest.raises(UnknownNameError, match="'adamww' is unknown; did you mean adamw or "):
        st.FitConfig(opt="adamww")


def test_all_problems_are_told_together():
    with pytest.raises(ConfigError) as caught:
        st.FitConfig(epochs=0, lr=-1.0, sched="x", amp="y", opt="z")  # type: ignore[arg-type]
    told = str(caught.value).splitlines()
    assert [line.split()[0] for line in told] == ["epochs", "lr", "sched", "amp", "optimiser"]


@pytest.mark.parametrize(
    "policy", ["rand", "rand-m9-n3-mstd0.5-inc1", "rand-t3aw", "augmix-m5-w4-d2", "v0r-mstd0.5", "3a"]
)
def test_policies_are_what_timm_takes(policy):
    assert st.FitConfig(aa=policy).describe().endswith(policy)


def test_settings_that_contradict_each_other_are_told_together():
    with pytest.raises(ConfigError) as caught:
        st.FitConfig(aug=False, views=2, aa="rand", reprob=0.25, mixup=0.2, cutmix=1.0)
    told = str(caught.value).splitlines()
    assert [line.split()[0] for line in told] == ["aa", "reprob", "mixup", "cutmix"]
    assert told[0] == "aa changes training pictures, which aug=False (--no-aug) keeps; leave one out."
    assert told[2] == "mixup makes new pictures in each step, and views keeps a few; leave one out."


@given(
    some.dictionaries(
        some.sampled_from(list(st.FitConfig().to_json())),
        some.one_of(some.none(), some.booleans(), some.integers(), some.floats(), some.text()),
    )
)
def test_any_settings_are_taken_or_refused_with_a_sentence(settings):
    try:
        value = st.FitConfig(**settings).to_json()
    except SparsetuneError as error:
        told = str(error)
    else:
        assert json.loads(json.dumps(value, allow_nan=False)) == value
        return
    assert told.endswith((".", "?"))
