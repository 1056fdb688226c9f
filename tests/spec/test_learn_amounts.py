"""Amounts by layer: what each layer learns, from the spec to the file and back."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from forge import Parts, fresh, moved, same, sealed
from hypothesis import given
from hypothesis import strategies as some
from torch import nn
from torch.nn import functional as F
from zeroed import batch, unsettled

import sparsetune as st
from sparsetune.bench.bench import contestants
from sparsetune.delta.container import read_header
from sparsetune.delta.values import stack
from sparsetune.errors import ConfigError, DeltaError, UnknownNameError
from sparsetune.publish.card import command
from sparsetune.spec.learn import MOST, matches

MIXED = st.Learn(
    filters={"block2.0.conv1": 1, "block2": 3}, rank={"block3": 2}, fraction={"conv1": 0.5}, norm=False
)
# WRN-10-1: block2.0.conv1 is 32x16x3x3, conv2 32x32x3x3, shortcut 32x16x1x1; those of block3 twice as wide
COUNTS = {
    "conv1.weight": 8 * 3 * 9,
    "block2.0.conv1.weight": 16 * 9,
    "block2.0.conv2.weight": 3 * 32 * 9,
    "block2.0.shortcut.weight": 3 * 16,
    "block3.0.conv1.weight": 2 * (64 + 32 * 9),
    "block3.0.conv2.weight": 2 * (64 + 64 * 9),
    "block3.0.shortcut.weight": 2 * (64 + 32),
    "fc.weight": 640,
    "fc.bias": 10,
}


def plain(**kwargs):
    return st.create("wrn28_4", **{"depth": 10, "width": 1, "num_classes": 10, **kwargs})


def test_the_plan_counts_what_each_layer_learns():
    made = st.plan(plain(), MIXED)
    assert {part.name: part.learned_numel for part in made if part.learned_numel} == COUNTS
    assert made.learned_parameters == sum(COUNTS.values())
    adapted = st.adapt_(plain(), MIXED)
    assert sum(value.numel() for value in adapted.parameters()) == sum(COUNTS.values())


def test_the_first_pattern_that_covers_a_layer_counts():
    learn = st.Learn(filters={"block2": 3, "block2.0.conv1": 1})
    counts = {part.name: part.k for part in st.plan(plain(), learn)}
    assert counts["block2.0.conv1.weight"] == 3
    assert counts["block1.0.conv1.weight"] == 0


def test_zero_filters_and_a_whole_fraction_by_layer():
    learn = st.Learn(filters={"block2.0.conv1": 0}, fraction={"block2.0.conv2": 1}, head=False, norm=False)
    made = st.plan(plain(), learn)
    assert [part.name for part in made if part.learned] == ["block2.0.conv2.weight"]
    assert made.learned_parameters == 32 * 32 * 9


@pytest.mark.parametrize("name", ["a", "a.b", "a.b.c", "ab", "x.a"])
@pytest.mark.parametrize("pattern", ["a", "a.b", "a*", "*.a", "[a]", "?"])
def test_a_pattern_covers_what_it_names_and_all_below(name, pattern):
    covered = {
        "a": {"a", "a.b", "a.b.c"},
        "a.b": {"a.b", "a.b.c"},
        "a*": {"a", "a.b", "a.b.c", "ab"},
        "*.a": {"x.a"},
        "[a]": {"a", "a.b", "a.b.c"},
        "?": {"a", "a.b", "a.b.c", "x.a"},
    }
    assert matches(name, pattern) == (name in covered[pattern])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": {"a": 0}}, "rank 0 in 'a' is not a whole number of 1 or more; filters=0 learns no layer."),
        (
            {"fraction": {"a": 1.5}},
            "fraction 1.5 in 'a' is not between 0 and 1; 0.1 learns 10 % of each layer.",
        ),
        ({"filters": {"a": -1}}, "filters -1 in 'a' is not a whole number of 0 or more."),
        ({"filters": {"a": True}}, "filters True in 'a' is not a whole number of 0 or more."),
        (
            {"filters": {"a": 1}, "rank": 2},
            "filters by layer and rank 2 each say how much to learn; keep one.",
        ),
        (
            {"filters": {"a": 1}, "layers": ["a"]},
            "layers ('a',) and amounts by layer both name layers; leave layers out.",
        ),
        (
            {"filters": {}},
            "filters () does not give numbers by module name; write {'block3': 2}, or one number for all "
            "layers.",
        ),
        (
            {"filters": {"": 1}},
            "filters (('', 1),) does not give numbers by module name; write {'block3': 2}, or one number for "
            "all layers.",
        ),
        ({"filters": (("a", 1), ("b", 1), ("a", 2))}, "filters names 'a' twice; keep one."),
        (
            {"rank": {"a": 1}, "dim": "in"},
            "dim 'in' is of slices, and a rank has none; leave dim out.",
        ),
        (
            {"rank": {"a": 1}, "filters": {"b": 1}, "frozen": "zero"},
            "frozen 'zero' leaves nothing that a rank could add to; use fraction or filters.",
        ),
        (
            {"filters": {f"a{i}": 1 for i in range(MOST + 1)}},
            f"filters names {MOST + 1} patterns; {MOST} are the most, so let patterns cover several layers.",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_remedy(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        st.Learn(**settings)
    assert str(caught.value) == sentence


def test_a_layer_has_one_amount():
    with pytest.raises(ConfigError) as caught:
        st.plan(plain(), st.Learn(filters={"block2": 3}, rank={"block2.0.conv2": 1, "block3": 2}))
    assert str(caught.value) == (
        "patterns give layer 'block2.0.conv2' 3 filters and rank 1; let one amount alone cover it."
    )


def test_each_pattern_names_a_layer():
    with pytest.raises(UnknownNameError, match=r"^filters and rank pattern 'blok2' is unknown; did you mean"):
        st.plan(plain(), st.Learn(filters={"block1": 1}, rank={"blok2": 1}))
    with pytest.raises(ConfigError, match=r"^rank pattern 'fc' covers only the classifier"):
        st.plan(plain(), st.Learn(rank={"fc": 1}))


def test_gradients_are_those_of_autograd_through_masks_and_sums():
    """Slices by zeroing the rest of the plain gradient, sums by autograd through ``W + B A``."""
    torch.manual_seed(0)
    net = unsettled(plain()).double()
    twin = copy.deepcopy(net)
    st.adapt_(net, replace(MIXED, norm=True))
    for name, value in net.named_parameters():
        if name.endswith("_B"):
            nn.init.normal_(value, std=0.1)
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    F.cross_entropy(net.train()(x), y).backward()
    held = {name: value.detach().clone().requires_grad_() for name, value in twin.named_parameters()}
    factors = {
        name: value.detach().clone().requires_grad_()
        for name, value in net.named_parameters()
        if name[-2:] in ("_A", "_B")
    }
    values = dict(held)
    for name in [name for name in factors if name.endswith("_A")]:
        base = name.removesuffix("_A")
        values[base] = held[base] + (factors[base + "_B"] @ factors[name].flatten(1)).view_as(held[base])
    F.cross_entropy(torch.func.functional_call(twin.train(), values, (x,)), y).backward()
    seen = 0
    for name, value in net.named_parameters():
        wanted = factors[name].grad if name in factors else held[name].grad[: value.shape[0]]
        assert (value.grad - wanted).abs().max() <= 1e-9 * wanted.abs().max(), name
        seen += value.numel()
    norms = 2 * (16 + 16 + 16 + 32 + 32 + 64 + 64)
    assert seen == sum(COUNTS.values()) + norms


def test_frozen_values_do_not_move_in_training():
    net, start = st.adapt_(plain(), MIXED), plain().state_dict()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        F.cross_entropy(net.train()(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    now = st.merge_(net).state_dict()
    assert list(now) == list(start)
    learned = {"conv1.weight": 8, "block2.0.conv1.weight": 1, "block2.0.conv2.weight": 3}
    for name, k in learned.items():
        assert torch.equal(now[name][k:], start[name][k:])
        assert not torch.equal(now[name][:k], start[name][:k])
    assert torch.equal(now["block1.0.conv1.weight"], start["block1.0.conv1.weight"])
    moves = (now["block3.0.conv2.weight"] - start["block3.0.conv2.weight"]).flatten(1)
    singular = torch.linalg.svdvals(moves.double())
    assert singular[1] > 1e-4 > 1e-4 * singular[1] > singular[2]


SCRIPT = """
import sys, torch, sparsetune as st
net = st.load(sys.argv[1])
torch.save(net(torch.load(sys.argv[2])), sys.argv[3])
print("null")
"""


def test_a_new_process_computes_the_same_from_the_file_alone(tmp_path):
    net, x = moved(st.adapt_(plain(seed=4), MIXED)).eval(), torch.randn(2, 3, 16, 16)
    path = tmp_path / "a.safetensors"
    st.save(net, path)
    torch.save(x, tmp_path / "x")
    fresh(SCRIPT, path, tmp_path / "x", tmp_path / "y")
    assert torch.equal(torch.load(tmp_path / "y"), net(x))
    assert same(st.load(path), net)
    header = st.verify(path)
    assert (header.format, header.learn) == (4, MIXED)
    assert Parts(path).header["learn"]["filters"] == [["block2.0.conv1", 1], ["block2", 3]]


def test_the_order_of_patterns_survives_the_file(tmp_path):
    """The header's keys are sorted, and ``b`` before ``a`` is another spec than ``a`` before ``b``."""
    learn = st.Learn(filters={"block2": 3, "block*": 1})
    st.save(st.adapt_(plain(), learn), tmp_path / "a.safetensors")
    assert st.inspect(tmp_path / "a.safetensors").learn == learn
    assert learn != st.Learn(filters={"block*": 1, "block2": 3})


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_mixed_parts_are_written_in_fewer_bits(tmp_path, dtype):
    net, x = moved(st.adapt_(plain(), MIXED)).eval(), torch.randn(8, 3, 16, 16)
    st.save(net, tmp_path / "a.safetensors", dtype=dtype)
    assert read_header(tmp_path / "a.safetensors").format == 4
    assert torch.allclose(st.load(tmp_path / "a.safetensors")(x), net(x), atol=0.1)


def test_a_strangers_spec_that_does_not_fit_is_refused(tmp_path):
    st.save(st.adapt_(plain(), MIXED), tmp_path / "a.safetensors")
    parts = Parts(tmp_path / "a.safetensors")
    for wrong in ({"block2": 3}, [["block2", 3, 1]], [["block2", "3"]], [[1, 2]], [], [["a", 1]] * 2):
        parts.header["learn"]["filters"] = wrong
        parts.text = sealed(parts.header)
        with pytest.raises(DeltaError, match="its header has a wrong value"):
            read_header(parts.write(tmp_path / "b.safetensors"))
    parts.header["learn"]["filters"] = [["block2", 3]]
    with pytest.raises(DeltaError):
        st.load(parts.write(tmp_path / "b.safetensors"))


PATTERNS = some.text(min_size=1, max_size=5)
SPECS = some.builds(
    st.Learn,
    fraction=some.none() | some.dictionaries(PATTERNS, some.floats(0, 1), min_size=1, max_size=3),
    filters=some.dictionaries(PATTERNS, some.integers(0, 99), min_size=1, max_size=3),
    rank=some.none() | some.dictionaries(PATTERNS, some.integers(1, 99), min_size=1, max_size=3),
    norm=some.booleans(),
)


@given(SPECS)
def test_json_keeps_every_setting_whatever_sorts_it(learn):
    again = st.Learn.from_json(json.loads(json.dumps(learn.to_json(), sort_keys=True)))
    assert again == learn
    assert hash(again) == hash(learn)
    assert learn.by_layer


def test_a_spec_tells_itself_in_a_few_words():
    said = MIXED.describe()
    assert said == (
        "fraction 0.5 in conv1; 1 filters in block2.0.conv1, 3 in block2; rank 2 in block3; slices along "
        "out, no norm, head"
    )
    many = st.Learn(rank={f"layer{i}": i + 1 for i in range(30)})
    assert many.amount == "rank 1 in layer0, 2 in layer1, 3 in layer2, and so on for 27 more patterns"


def test_zeroed_layers_by_amount_are_made_slim():
    learn = st.Learn(fraction={"block1": 0.5, "block2": 0.25, "block3": 0.125, "conv1": 1}, frozen="zero")
    net = unsettled(st.adapt_(plain(), learn).double())
    small = st.slim(net, batch())
    assert small.block1[0].conv1.weight.shape[0] < 16
    x = batch()
    assert torch.allclose(small(x), net.eval()(x), rtol=1e-9, atol=1e-12)


def test_tasks_and_ensembles_of_amounts_by_layer(tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    nets = [moved(st.adapt_(plain(), MIXED), seed).eval() for seed in (1, 2)]
    for net, path in zip(nets, paths, strict=True):
        st.save(net, path)
    x = torch.randn(2, 3, 16, 16)
    tasks, ensemble = st.Tasks.load(dict(zip("ab", paths, strict=True))), st.Ensemble.load(paths)
    with torch.no_grad():
        wanted = [net(x) for net in nets]
        assert torch.equal(tasks("b", x), wanted[1])
        assert torch.equal(ensemble(x), torch.cat(wanted))
    with pytest.raises(DeltaError, match="low-rank sums"):
        stack(paths, tmp_path / "c.safetensors")


def test_commands_and_masks_are_only_where_there_are_such(tmp_path):
    slices = st.Learn(filters={"block2": 3})
    models, missing = contestants(plain(), slices)
    assert "masked" in models
    assert "masked" in contestants(plain(), MIXED)[1]
    assert "masked" not in missing
    st.save(st.adapt_(plain(), slices), tmp_path / "a.safetensors")
    assert command(read_header(tmp_path / "a.safetensors")) is None


@pytest.mark.parametrize("field", ["dim", "frozen", "fraction", "filters"])
def test_what_a_stranger_wrote_is_told_in_one_printable_line(field):
    for wrong in ("\x1b[0m", "a\nb", "x" * 10_000):
        for value in (wrong, [[wrong, wrong]]):
            with pytest.raises(ConfigError) as caught:
                st.Learn.from_json({"rank": 1, field: value})
            assert all(line.isprintable() and len(line) < 300 for line in str(caught.value).splitlines())
