from __future__ import annotations

import asyncio
import copy
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forge import moved
from PIL import Image
from torch import nn

import sparsetune as st
from sparsetune.sliced.adapt import adapted, frozen_values

EXAMPLES = Path(__file__).parent.parent / "examples"
X = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def frozen(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in frozen_values(net, adapted(net).plan)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_own_loop_learns():
    assert example("own_loop")["main"](2) > 0.5


def test_transformers_vit_learns():
    assert example("transformers_vit")["main"](4) > 0.4


def test_text_learns_more_than_how_common_each_package_is():
    accuracy, chance = example("text")["main"](2)
    assert accuracy > chance + 0.1


def test_timm_loop_learns():
    assert example("timm_loop")["main"](2) > 0.7


def test_tasks_and_members_cost_little_beside_whole_models():
    table = example("many")["main"](epochs=1)
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == [
        *("digit", "parity", "size"),
        *(f"digit, seed {seed}" for seed in (1, 2, 3, 4)),
        *("ensemble of 5", "all"),
    ]
    learned, total = plain_counts(10)
    assert learned * 4 < rows["digit"]["bytes"] < learned * 4 * 1.1
    assert total * 4 < rows["digit"]["full_bytes"] < total * 4 * 1.03
    assert rows["ensemble of 5"]["bytes"] == 5 * rows["digit"]["bytes"]
    assert rows["all"]["bytes"] == sum(rows[name]["bytes"] for name in ("parity", "size", "ensemble of 5"))
    assert all(0 < row["ratio"] < 0.15 for row in rows.values())
    assert rows["parity"]["accuracy"] > 0.6
    assert rows["digit"]["full_accuracy"] > 0.4
    shares = [row[who] for row in rows.values() for who in ("accuracy", "full_accuracy")]
    assert all(359 * share == pytest.approx(round(359 * share)) for share in shares if share is not None)


def plain_counts(classes: int) -> tuple[int, int]:
    """Values in a delta at a tenth, and in the whole, of the example's network; statistics in both."""
    net = st.create("wrn28_4", depth=10, width=2, num_classes=classes)
    statistics = sum(value.numel() for value in net.buffers())
    total = sum(value.numel() for value in net.parameters())
    convs = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    sliced = sum(len(weight) // 10 * weight[0].numel() for weight in convs)
    whole = total - sum(weight.numel() for weight in convs)
    return sliced + whole + statistics, total + statistics


@pytest.fixture(scope="module")
def lightning() -> dict[str, Any]:
    return example("lightning_callback")


def test_lightning_learns(lightning):
    assert lightning["main"](2) > 0.7


def test_lightning_leaves_the_frozen_part_and_frozen_statistics(lightning, digits, tiny, tmp_path):
    net = tiny()
    first = net.block1[0].bn1.eval()
    before, statistics = frozen(net), copy.deepcopy(dict(first.named_buffers()))
    save = lightning["SaveDelta"](tmp_path / "delta", classes=digits.classes)
    module = lightning["Classifier"](net, digits)
    trainer = lightning["trainer"](2, tmp_path, save)
    trainer.fit(module)

    assert same(frozen(net), before)
    assert same(dict(first.named_buffers()), statistics)
    assert net.training
    assert not first.training
    loaded = st.load(tmp_path / "delta")
    assert torch.equal(loaded(X), net.eval()(X))
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    fresh = lightning["Classifier"](tiny(), digits)
    fresh.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(fresh.net.eval()(X), loaded(X))


def test_lightning_resumes_to_the_same_delta(lightning, digits, tiny, tmp_path):
    def go(epochs: int, name: str, resume: str | None = None) -> Any:
        save = lightning["SaveDelta"](tmp_path / name, "accuracy", "max")
        trainer = lightning["trainer"](epochs, tmp_path / f"of {name}", save)
        module = lightning["Classifier"](tiny(), digits)
        trainer.fit(module, ckpt_path=resume)
        return trainer, module, save

    _, straight, kept = go(2, "straight")
    trainer, _, _ = go(1, "stopped")
    _, resumed, again = go(2, "stopped", trainer.checkpoint_callback.best_model_path)
    assert same(resumed.state_dict(), straight.state_dict())
    assert again.best == kept.best < 0
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "straight").read_bytes()


def test_the_lightning_callback_keeps_the_best(lightning, tiny, tmp_path):
    class Trainer:
        is_global_zero = True
        callback_metrics: dict[str, float] = {}  # noqa: RUF012

    module = lightning["Classifier"](tiny(), None)
    for mode, values, best in (("min", (3, 2, 2.5, float("nan")), 2), ("max", (3, 5, 5, 4), 5)):
        save = lightning["SaveDelta"](tmp_path / mode, "metric", mode)
        for number, value in enumerate(values):
            save.about = {"training": {"epoch": number}}
            Trainer.callback_metrics = {"metric": value}
            save.on_train_epoch_end(Trainer(), module)
        assert values[st.inspect(tmp_path / mode).training["epoch"]] == best
        assert st.inspect(tmp_path / mode).training["epoch"] == 1


@pytest.fixture(scope="module")
def transformers() -> dict[str, Any]:
    return example("transformers_trainer")


def test_transformers_trainer_learns(transformers):
    assert transformers["main"](2) > 0.6


def test_transformers_trainer_leaves_the_frozen_part(transformers, digits, tmp_path):
    net = transformers["build"](10)
    st.adapt_(net, st.Learn(fraction=0.25), st.Backbone.from_module(net))
    before, start = frozen(net), copy.deepcopy(net.state_dict())
    transformers["trainer"](net, digits, 1, str(tmp_path)).train()
    assert same(frozen(net), before)
    assert not same(net.state_dict(), start)
    st.save(net, tmp_path / "delta")
    loaded = st.load(tmp_path / "delta", module=transformers["build"](10))
    assert torch.equal(loaded(X).logits, net.eval()(X).logits)


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny, digits) -> Path:
    """Two tasks with other classes, one that is damaged, and one over another backbone."""
    folder = tmp_path_factory.mktemp("served")
    for name, classes in (("digits", digits.classes), ("letters", tuple("abcd"))):
        net = moved(tiny(num_classes=len(classes)), len(classes))
        st.save(net, folder / f"{name}.safetensors", classes=classes, preprocessing=digits.preprocessing)
    (folder / "zdamaged.safetensors").write_bytes((folder / "letters.safetensors").read_bytes()[:-9])
    st.save(tiny(seed=1), folder / "zforeign.safetensors")
    return folder


def as_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_the_service_answers_as_each_delta_does(served, digits):
    from fastapi.testclient import TestClient

    app = example("serve")["application"](served, 1 << 20)
    with TestClient(app) as client:
        assert client.get("/health").json()["tasks"] == 4
        assert client.get("/tasks").json() == ["digits", "letters", "zdamaged", "zforeign"]
        for task in ("digits", "letters"):
            net, classes = (
                st.load(served / f"{task}.safetensors"),
                st.inspect(served / f"{task}.safetensors").classes,
            )
            for index in range(5):
                picture = digits.test[index][0]
                expected = net(digits.preprocessing.apply(picture)[None]).softmax(-1)[0]
                told = client.post(f"/predict/{task}", content=as_png(picture)).json()
                assert told["class"] == classes[int(expected.argmax())]
                assert told["probability"] == pytest.approx(float(expected.max()), abs=1e-4)
        picture = as_png(digits.test[0][0])
        for task, status in (("nobody", 404), ("zdamaged", 503), ("zforeign", 503)):
            answer = client.post(f"/predict/{task}", content=picture)
            assert answer.status_code == status
            assert answer.json()["detail"]
        assert client.post("/predict/digits", content=b"no picture").status_code == 422
        assert client.post("/predict/digits", content=bytes(21 << 20)).status_code == 413
        shutil.copy(served / "letters.safetensors", served / "later.safetensors")
        assert client.post("/predict/later", content=picture).json()["class"] in "abcd"
        told = dict(line.split() for line in client.get("/metrics").text.splitlines())
        assert float(told["sparsetune_pictures"]) == 11
        assert float(told["sparsetune_failed"]) == 2
    (served / "later.safetensors").unlink()


def test_pictures_of_different_tasks_that_wait_are_one_batch(served, digits):
    names = example("serve")
    tasks = st.Tasks.load(
        {task: served / f"{task}.safetensors" for task in ("digits", "letters")}, cache_bytes=1 << 20
    )
    pictures = [digits.preprocessing.apply(digits.test[index][0]) for index in range(8)]
    rows = ["digits", "letters"] * 4

    async def ask() -> tuple[list[torch.Tensor], float]:
        batches = names["Batches"](tasks)
        asked = [asyncio.create_task(batches.logits(*pair)) for pair in zip(rows, pictures, strict=True)]
        worker = asyncio.create_task(batches.work())
        found = await asyncio.gather(*asked)
        worker.cancel()
        return found, batches.counts["batches"]

    found, batches = asyncio.run(ask())
    assert batches == 1
    for task, picture, logits in zip(rows, pictures, found, strict=True):
        own = st.load(served / f"{task}.safetensors")(picture[None])[0]
        assert torch.allclose(logits[: len(own)], own, atol=1e-4)


@pytest.mark.slow
def test_the_service_on_ray_answers_as_each_delta_does(served, digits, monkeypatch):
    """In a process of its own, as Ray wants it."""
    pytest.importorskip("ray.serve")
    program = """
import sys, json, pathlib, urllib.error, urllib.request
sys.path.insert(0, sys.argv[2])
import ray
from ray import serve
import serve_ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.run(serve_ray.application(pathlib.Path(sys.argv[1]), 1 << 20))
picture = pathlib.Path(sys.argv[3]).read_bytes()
found = {}
for task in ("digits", "letters", "zdamaged", "nobody"):
    headers = {"serve_multiplexed_model_id": task}
    request = urllib.request.Request("http://127.0.0.1:8000/", picture, headers)
    try:
        answer = urllib.request.urlopen(request, timeout=120)
    except urllib.error.HTTPError as error:
        answer = error
    found[task] = [answer.status, json.loads(answer.read())]
print(json.dumps(found))
serve.shutdown()
"""
    picture = served / "picture.png"
    digits.test[0][0].save(picture)
    command = [sys.executable, "-c", program, str(served), str(EXAMPLES), str(picture)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(EXAMPLES), os.environ.get("PYTHONPATH", ""))),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"digits"')]
    found = json.loads(line)
    assert [found[task][0] for task in ("zdamaged", "nobody")] == [503, 404]
    for task in ("digits", "letters"):
        header = st.inspect(served / f"{task}.safetensors")
        x = digits.preprocessing.apply(digits.test[0][0])[None]
        expected = st.load(served / f"{task}.safetensors")(x).argmax()
        assert found[task] == [
            200,
            {"class": header.classes[int(expected)], "probability": found[task][1]["probability"]},
        ]
