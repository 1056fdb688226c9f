from __future__ import annotations

import json
import multiprocessing
import random
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sparsetune as st
from sparsetune.data.splits import Seen
from sparsetune.errors import ConfigError, DeltaError, SparsetuneError, StorageError
from sparsetune.runs.run import run
from sparsetune.runs.settings import Run
from sparsetune.train import loop as training
from sparsetune.train.loop import Epoch

REPORT = {"report.json", "confusion.png", "mistakes.png"}
FILES = {"delta.safetensors", "metrics.jsonl", "config.json", "curves.png", *REPORT}

SHORT = Run(
    model="test_resnet",
    learn=st.Learn(fraction=0.25),
    config=st.FitConfig(epochs=3, batch_size=32, lr=0.05),
    train_limit=200,
    test_limit=50,
)
"""A run of seven steps an epoch; it takes a second."""


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def changed(**changes) -> Run:
    return replace(SHORT, config=replace(SHORT.config, **changes))


def metrics(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(kind, words, settings=SHORT, folder=None, **kwargs) -> None:
    with pytest.raises(kind, match=words) as caught:
        run(settings, folder, **kwargs)
    assert len(str(caught.value).splitlines()) == 1


FRESH = multiprocessing.get_context("forkserver")
"""Makes processes in which autograd has not run: one forked from a test's own may not use it."""
FRESH.set_forkserver_preload(
    ["pytest", "sparsetune.runs", "sklearn.datasets", "matplotlib.figure", "sklearn.metrics"]
)


def apart(action, *args) -> int:
    """Do ``action``, a function of this module, in a process of its own; return its exit code."""
    process = FRESH.Process(target=action, args=args)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    run(SHORT, folder)
    return folder


def test_writes_a_folder(straight):
    assert names(straight) == FILES
    assert [record["epoch"] for record in metrics(straight)] == [1, 2, 3]
    settings = json.loads((straight / "config.json").read_text())
    assert settings["model"] == "test_resnet"
    assert settings["learn"]["fraction"] == 0.25
    assert settings["config"]["lr"] == 0.05
    assert settings["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_the_delta_says_how_it_came_to_be(straight):
    header = st.inspect(straight / "delta.safetensors")
    assert header.classes == tuple("0123456789")
    assert header.preprocessing.size == (3, 8, 8)
    assert header.training["data"] == "digits"
    assert header.training["train_pictures"] == 200
    assert header.training["config"]["opt"] == "momentum"
    assert header.training["result"]["test_top1"] == metrics(straight)[-1]["test_top1"]


def test_the_delta_is_what_was_measured(straight):
    net = st.load(straight / "delta.safetensors")
    data = st.open_data("digits", test_limit=50)
    x = torch.stack([data.preprocessing.apply(data.test[i][0]) for i in range(50)])
    with torch.no_grad():
        right = (net(x).argmax(1) == data.test.labels).double().mean().item()
    assert right == metrics(straight)[-1]["test_top1"]


@pytest.mark.parametrize(
    "settings",
    [SHORT, changed(opt="adamw", lr=0.003), replace(SHORT, model="test_efficientnet", size=32)],
    ids=["momentum", "adamw", "drop path"],
)
def test_stopped_by_its_time_budget_it_ends_the_same(settings, tmp_path):
    settings = replace(settings, config=replace(settings.config, epochs=2))
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    run(settings, whole)
    calls, finished = 0, False
    while not finished:
        outcome = run(settings, pieces, resume=True, time_budget=0.0)
        finished, calls = outcome.finished, calls + 1
        assert [record["epoch"] for record in metrics(pieces)] == [1, 2][: len(outcome.history)]
        assert (pieces / "delta.safetensors").exists() == finished
        assert (pieces / "checkpoint.safetensors").exists() != finished
    assert calls == 15
    assert (pieces / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()
    assert metrics(pieces) == metrics(whole)
    assert names(pieces) == FILES
    assert all((pieces / name).read_bytes() == (whole / name).read_bytes() for name in REPORT)


def go_on(settings: Run, folder: Path, saves: float) -> None:
    multiprocessing.set_start_method("fork", force=True)  # or workers of the loader import all anew
    training.CHECKPOINT_SECONDS = saves
    run(settings, folder, resume=True)


def killed_often(settings: Run, folder: Path, seed: int, longest: float, saves: float) -> int:
    """Resume a run in process after process, each killed at a random time, until one ends; count them."""
    chance = random.Random(seed)
    for kills in range(200):
        process = FRESH.Process(target=go_on, args=(settings, folder, saves))
        process.start()
        time.sleep(chance.uniform(0, longest * (1 + kills / 5)))  # a slow machine must get past the start
        process.kill()
        process.join()
        if (folder / "config.json").exists():
            json.loads((folder / "config.json").read_text())
        if (folder / "metrics.jsonl").exists():
            epochs = [record["epoch"] for record in metrics(folder)]
            assert epochs == list(range(1, len(epochs) + 1))
        if process.exitcode == 0:
            return kills
    raise AssertionError


def test_killed_at_random_it_ends_the_same(straight, tmp_path):
    folder = tmp_path / "killed"
    kills = killed_often(SHORT, folder, seed=0, longest=0.4, saves=0.0)
    assert kills
    assert (folder / "delta.safetensors").read_bytes() == (straight / "delta.safetensors").read_bytes()
    assert metrics(folder) == metrics(straight)
    assert names(folder) >= FILES


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_many_times_it_ends_the_same(straight, tmp_path, seed, workers):
    folder = tmp_path / "killed"
    killed_often(changed(workers=workers), folder, seed, longest=0.6 + 0.2 * seed, saves=0.05 * (seed % 3))
    assert (folder / "delta.safetensors").read_bytes() == (straight / "delta.safetensors").read_bytes()
    assert metrics(folder) == metrics(straight)


def test_a_kill_between_checkpoint_and_metrics_loses_no_line(straight, tmp_path):
    # the checkpoint knows two epochs, the metrics only one: as if killed between the two writes
    class Killed(BaseException):
        pass

    def kill(event):
        if isinstance(event, Epoch) and event.epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        run(SHORT, tmp_path / "r", watch=kill)
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "r" / "metrics.jsonl").write_text(lines[0] + "\n")
    seen = []
    run(SHORT, tmp_path / "r", resume=True, watch=lambda e: seen.append(e) if isinstance(e, Epoch) else None)
    assert [event.epoch for event in seen] == [3]
    assert metrics(tmp_path / "r") == metrics(straight)


def test_a_finished_run_is_not_trained_again(straight):
    before = {path.name: path.stat().st_mtime_ns for path in straight.iterdir()}
    outcome = run(SHORT, straight, resume=True, watch=lambda event: pytest.fail("trains"))
    assert outcome.finished
    assert [record.epoch for record in outcome.history] == [1, 2, 3]
    assert {path.name: path.stat().st_mtime_ns for path in straight.iterdir()} == before


def test_stopped_before_its_report_it_looks_again(straight, tmp_path):
    (tmp_path / "r" / "report.json").mkdir(parents=True)
    with pytest.raises(
        StorageError, match=r"cannot write .*report\.json: it is there and is not a plain file"
    ):
        run(SHORT, tmp_path / "r")
    (tmp_path / "r" / "report.json").rmdir()
    assert run(SHORT, tmp_path / "r", resume=True).finished
    assert all((tmp_path / "r" / name).read_bytes() == (straight / name).read_bytes() for name in REPORT)


def test_the_report_is_of_the_file_s_own_values(tmp_path):
    """In int8 the model in memory and the one in the file differ."""
    settings = replace(changed(epochs=1), dtype="int8")
    run(settings, tmp_path / "r")
    told = json.loads((tmp_path / "r" / "report.json").read_text())
    data = st.open_data("digits", test_limit=50)
    found = st.evaluate(st.load(tmp_path / "r" / "delta.safetensors"), data, batch_size=32)
    assert told == json.loads(json.dumps(found.to_json()))
    assert told["nll"] != metrics(tmp_path / "r")[-1]["test_loss"]


def test_killed_between_delta_and_end_it_ends(straight, tmp_path):
    outcome = run(SHORT, tmp_path / "r", time_budget=0.0)
    while not outcome.finished:
        kept = (tmp_path / "r" / "checkpoint.safetensors").read_bytes()
        outcome = run(SHORT, tmp_path / "r", resume=True, time_budget=0.0)
    (tmp_path / "r" / "checkpoint.safetensors").write_bytes(kept)
    assert run(SHORT, tmp_path / "r", resume=True).finished
    assert (tmp_path / "r" / "delta.safetensors").read_bytes() == (
        straight / "delta.safetensors"
    ).read_bytes()
    assert names(tmp_path / "r") == FILES


def test_a_folder_that_holds_a_run_is_refused(straight):
    refused(ConfigError, "run holds a run already; add --resume", folder=straight)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (changed(lr=0.1), r"config\.lr = 0\.05, not 0\.1;"),
        (changed(epochs=4), r"config\.epochs = 3, not 4;"),
        (replace(SHORT, learn=st.Learn(fraction=0.5)), r"learn\.fraction = 0\.25, not 0\.5;"),
        (replace(SHORT, model="wrn28_4"), 'model = "test_resnet", not "wrn28_4";'),
        (replace(SHORT, backbone_seed=1), "backbone_seed = 0, not 1;"),
        (replace(SHORT, train_limit=None), "train_limit = 200, not null;"),
    ],
)
def test_other_settings_are_named(straight, settings, words):
    refused(ConfigError, words + " resume with its settings", settings, straight, resume=True)


def test_a_folder_with_a_strange_delta_is_not_a_run(tmp_path):
    (tmp_path / "delta.safetensors").write_text("mine")
    refused(ConfigError, "holds a run already", folder=tmp_path)
    refused(ConfigError, "holds a run without readable config.json", folder=tmp_path, resume=True)
    assert (tmp_path / "delta.safetensors").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 3}'])
def test_damaged_settings_are_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    refused(ConfigError, "choose another --out", folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"', ""),
        ('"epoch": 1', '"epoch": 2'),
        ('"epoch": 1', '"epoch": true'),
        ('"epoch": 1', '"epoch": 1, "kept": 9'),
        ('"train_loss"', '"loss"'),
        ('"seconds": ', '"test_top1": "high", "seconds": '),
        ("{", "[" * 100_000),
    ],
)
def test_damaged_metrics_of_a_finished_run_are_one_sentence(straight, tmp_path, old, new):
    for name in ("config.json", "delta.safetensors"):
        (tmp_path / name).write_bytes((straight / name).read_bytes())
    text = (straight / "metrics.jsonl").read_text()
    assert old in text
    (tmp_path / "metrics.jsonl").write_text(text.replace(old, new, 1))
    refused(ConfigError, "metrics.jsonl of a finished run cannot be read", folder=tmp_path, resume=True)


def test_unnamed_folders_are_numbered_and_resumed(tmp_path):
    other = changed(lr=0.01)
    first = run(SHORT, time_budget=0.0).folder
    second = run(other, time_budget=0.0).folder
    third = run(SHORT, time_budget=0.0).folder
    name = "test_resnet-digits-f0.25-s0"
    assert [str(f) for f in (first, second, third)] == [f"runs/{name}{end}" for end in ("", "-2", "-3")]
    assert run(SHORT, resume=True, time_budget=0.0).folder == third  # the latest of the same settings
    assert run(other, resume=True, time_budget=0.0).folder == second
    refused(ConfigError, r"-3 holds a run with config\.lr = 0\.05, not 0\.2", changed(lr=0.2), resume=True)


def test_resume_without_a_run_starts_one():
    assert str(run(SHORT, resume=True, time_budget=0.0).folder) == "runs/test_resnet-digits-f0.25-s0"


def test_runs_started_at_once_do_not_share_a_folder(tmp_path):
    processes = [FRESH.Process(target=run, args=(changed(lr=lr),)) for lr in (0.01, 0.02, 0.03)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = [json.loads(path.read_text())["config"]["lr"] for path in Path("runs").glob("*/config.json")]
    assert sorted(found) == [0.01, 0.02, 0.03]
    assert all(names(folder) == FILES for folder in Path("runs").iterdir())


@pytest.mark.parametrize(
    ("learn", "name"),
    [
        (st.Learn(fraction=0.1), "wrn28_4-digits-f0.1-s0"),
        (st.Learn(filters=1, dim="in"), "wrn28_4-digits-n1-in-s0"),
        (st.Learn(filters=0, head=False), "wrn28_4-digits-n0-nohead-s0"),
        (st.Learn(rank=4), "wrn28_4-digits-r4-s0"),
        (
            st.Learn(fraction=1.0, layers=("block3", "block*.0"), norm=False, frozen="zero"),
            "wrn28_4-digits-f1-block3-block_.0-nonorm-zero-s0",
        ),
    ],
)
def test_a_name_tells_what_is_learned(learn, name):
    assert Run(model="wrn28_4", learn=learn, config=st.FitConfig()).name == name


@pytest.mark.parametrize("data", ["/", ".", "..", "a b/c d", "x" * 500, "hf://datasets/a/b"])
def test_a_name_is_one_folder(data):
    name = Run(model="hf-hub:timm/x", learn=st.Learn(fraction=0.1), config=st.FitConfig(), data=data).name
    assert name
    assert not {"/", ":", " "} & set(name)
    assert len(name) < 200
    assert Path("runs", name).parent == Path("runs")


def test_a_failed_start_leaves_nothing():
    refused(SparsetuneError, "'nosuch' is unknown", replace(SHORT, model="nosuch"))
    refused(SparsetuneError, "'nosuch' is unknown", replace(SHORT, data="nosuch"))
    refused(
        SparsetuneError, "'nosuch' is unknown", replace(SHORT, learn=st.Learn(filters=1, layers=("nosuch",)))
    )
    refused(SparsetuneError, "device 'nosuch' is unknown", changed(device="nosuch"))
    refused(SparsetuneError, "the loss became", changed(lr=1e30))
    refused(SparsetuneError, "cannot learn from a batch", replace(SHORT, model="test_vit", size=24))
    assert not list(Path().glob("runs/*"))


def test_a_read_only_or_impossible_place_is_one_sentence(tmp_path):
    refused(StorageError, "cannot write /proc/x/config.json", folder=Path("/proc/x"))
    (tmp_path / "file").write_text("")
    refused(StorageError, "cannot write .*file/config.json", folder=tmp_path / "file")
    (tmp_path / "runs").write_text("")
    refused(StorageError, "cannot write to .*runs: .*; choose another place with --out")
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").symlink_to("nowhere/at/all")
    refused(StorageError, "cannot write to .*runs: ")


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def full_at_once(folder: Path) -> None:
    small_files()
    refused(StorageError, "cannot write .*checkpoint.safetensors: File too large", folder=folder)


def full_later(folder: Path) -> None:
    def fill(event):
        if isinstance(event, Epoch) and event.epoch == 2:
            small_files()

    refused(StorageError, "cannot write .*: File too large", folder=folder, watch=fill)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_after(tmp_path, straight):
    assert apart(full_at_once, tmp_path / "r") == 0
    assert not (tmp_path / "r").exists()

    assert apart(full_later, tmp_path / "r") == 0
    assert names(tmp_path / "r") == {"config.json", "metrics.jsonl", "checkpoint.safetensors"}
    run(SHORT, tmp_path / "r", resume=True)
    assert (tmp_path / "r" / "delta.safetensors").read_bytes() == (
        straight / "delta.safetensors"
    ).read_bytes()


def test_starts_from_a_delta(straight, tmp_path):
    start = str(straight / "delta.safetensors")
    outcome = run(replace(changed(epochs=1, lr=0.0), init_from=start), tmp_path / "r")
    assert outcome.history[0].train_top1 > metrics(straight)[0]["train_top1"]
    refused(DeltaError, "start from a delta of the same", replace(SHORT, backbone_seed=1, init_from=start))


def test_stands_on_a_checkpoint_file(tmp_path):
    net = st.create("test_resnet", num_classes=10, seed=7)
    save_file(net.state_dict(), tmp_path / "whole.safetensors")
    settings = replace(changed(epochs=1), init_from=str(tmp_path / "whole.safetensors"))
    run(settings, tmp_path / "r")
    header = st.inspect(tmp_path / "r" / "delta.safetensors")
    assert (header.backbone.kind, header.backbone.source) == ("file", "whole.safetensors")
    loaded = st.load(tmp_path / "r" / "delta.safetensors", backbone=tmp_path / "whole.safetensors")
    frozen = st.merge_(loaded).state_dict()["layer1.0.conv1.weight"][8:]
    assert torch.equal(frozen, net.state_dict()["layer1.0.conv1.weight"][8:])


def test_a_model_of_fixed_size_gets_its_size_and_a_crop_to_match(tmp_path):
    seen = []
    settings = Run(
        model="test_vit",
        learn=st.Learn(fraction=0.1),
        config=st.FitConfig(epochs=1, lr=0.001),
        train_limit=20,
        test_limit=10,
    )
    run(settings, tmp_path / "r", started=lambda start: seen.append(start.data))
    assert seen[0].preprocessing.size == (3, 160, 160)
    assert seen[0].augment.pad == 20  # an eighth of the side, as for any other picture


# Which pictures a run is of

FOLDER = Run(
    model="test_resnet",
    learn=st.Learn(fraction=0.25),
    config=st.FitConfig(epochs=1, batch_size=8, lr=0.05),
    data="a/photos",
)


def photos(folder: Path, seed: int = 0) -> Path:
    """Splits ``train`` and ``test`` of two classes of noise."""
    noise = np.random.default_rng(seed)
    for split, count in (("train", 10), ("test", 4)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.bmp")
    return folder


@pytest.mark.parametrize("finished", [False, True])
def test_changed_pictures_are_refused(tmp_path, finished):
    photos(Path("a/photos"))
    run(FOLDER, tmp_path / "r", time_budget=None if finished else 0.0)
    shutil.move("a/photos/train/cat/3.bmp", "a/photos/train/dog/30.bmp")
    words = "r holds a run on .*/a/photos, whose pictures or labels have changed since; bring"
    refused(StorageError, words, FOLDER, tmp_path / "r", resume=True)
    shutil.move("a/photos/train/dog/30.bmp", "a/photos/train/cat/3.bmp")
    assert run(FOLDER, tmp_path / "r", resume=True).finished


def test_a_moved_folder_goes_on_and_another_one_does_not(tmp_path):
    photos(Path("a/photos"))
    photos(Path("b/photos"), seed=1)
    run(FOLDER, tmp_path / "straight")
    run(FOLDER, tmp_path / "r", time_budget=0.0)
    other = replace(FOLDER, data="b/photos")
    refused(
        StorageError, "r holds a run on .*/a/photos, not .*/b/photos;", other, tmp_path / "r", resume=True
    )
    Path("a/photos").rename("c")
    moved = replace(FOLDER, data=str(Path("c").absolute()))
    assert run(moved, tmp_path / "r", resume=True).finished
    one, two = (st.inspect(tmp_path / name / "delta.safetensors") for name in ("straight", "r"))
    assert one.payload == two.payload
    assert (one.training["data"], two.training["data"]) == ("photos/", "c/")


def test_a_folder_is_not_the_built_in_of_its_name(tmp_path):
    photos(Path("data/digits"))
    built_in = replace(FOLDER, data="digits", train_limit=20, test_limit=10)
    folder = replace(built_in, data="data/digits", test_limit=8)
    first, second = run(built_in, time_budget=0.0).folder, run(folder, time_budget=0.0).folder
    assert first != second
    words = 'data = "digits", not "data/digits"'
    refused(ConfigError, words, replace(folder, test_limit=10), first, resume=True)
    assert run(folder, resume=True).folder == second
    assert run(built_in, resume=True).folder == first
    assert st.inspect(first / "delta.safetensors").training["data"] == "digits"
    assert st.inspect(second / "delta.safetensors").training["data"] == "digits/"


def test_of_two_folders_of_one_name_each_run_is_found_again(tmp_path):
    photos(Path("a/photos"))
    photos(Path("b/photos"), seed=1)
    settings = [FOLDER, replace(FOLDER, data="b/photos")]
    folders = [run(each, time_budget=0.0).folder for each in settings]
    assert len({*folders}) == 2
    for each, folder in zip(settings, folders, strict=True):
        absolute = replace(each, data=str(Path(each.data).absolute()))
        assert run(absolute, resume=True, time_budget=0.0).folder == folder


def test_a_run_of_a_version_without_digest_goes_by_its_place(tmp_path):
    photos(Path("a/photos"))
    photos(Path("b/photos"), seed=1)
    run(FOLDER, tmp_path / "r", time_budget=0.0)
    file = tmp_path / "r" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in settings.items() if k not in ("source", "data_digest")}))
    refused(StorageError, "not .*/b/photos", replace(FOLDER, data="b/photos"), tmp_path / "r", resume=True)
    assert run(replace(FOLDER, data="./a/photos"), tmp_path / "r", resume=True).finished


def test_a_start_is_the_same_by_any_path_to_it(tmp_path):
    save_file(st.create("test_resnet", num_classes=10, seed=7).state_dict(), "whole.safetensors")
    settings = replace(changed(epochs=1), init_from="whole.safetensors")
    run(settings, tmp_path / "r", time_budget=0.0)
    absolute = replace(settings, init_from=str(Path("whole.safetensors").absolute()))
    assert run(absolute, tmp_path / "r", resume=True).finished
    another = replace(settings, init_from="other/whole.safetensors")
    refused(ConfigError, "init_from = ", another, tmp_path / "r", resume=True)


def test_a_start_from_a_delta_remembers_its_pictures(straight, tmp_path):
    start = str(straight / "delta.safetensors")
    run(replace(changed(epochs=1), init_from=start, train_limit=20), tmp_path / "r")
    data = st.open_data("digits", train_limit=200)
    seen = Seen.from_json(st.inspect(tmp_path / "r" / "delta.safetensors").training)
    assert seen.overlap(data.train.keys()).pictures == 200


def test_class_names_that_no_file_holds_are_refused_before_the_training(tmp_path):
    for name in ("good", "reversed \u202e"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            picture = Image.new("RGB", (32, 32), (40 * number, len(name), 0))
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    began = time.monotonic()
    settings = replace(
        changed(epochs=10_000), data=str(tmp_path / "photos"), train_limit=None, test_limit=None
    )
    refused(ConfigError, "does not print on one line; use printable characters", settings, tmp_path / "run")
    assert time.monotonic() - began < 30
    assert not (tmp_path / "run").exists()
