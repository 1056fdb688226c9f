"""Hundreds of tasks over one backbone, behind HTTP: pictures of different tasks are computed together.

Run: pip install 'sparsetune[serve]' && python examples/serve.py deltas/ --cache 200MB

``deltas/`` holds a delta for each task, over one backbone, saved by ``fit``: ``cats.safetensors`` answers
``curl --data-binary @cat.jpg localhost:8000/predict/cats``. Deltas are read when they are first asked for,
and forgotten when they were not asked for longest. ``/tasks``, ``/health`` and ``/metrics`` say how it goes.
A delta that is put into the folder later is served too, and one that is replaced once it is read again.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from torch import Tensor

import sparsetune as st
from sparsetune.data import decode
from sparsetune.errors import DataError, SparsetuneError
from sparsetune.host import bytes_from

MOST = 20 << 20
"""Most bytes of a picture."""


@dataclass
class Waiting:
    """A picture that waits for its answer."""

    task: str
    picture: Tensor
    answer: asyncio.Future[Tensor]


@dataclass
class Batches:
    """Takes pictures of any task and computes those together that wait at the same time.

    Attributes:
        tasks: The tasks.
        size: Most pictures of a batch.
        waiting: Those that are not in a batch yet.
        counts: How often what happened, for ``/metrics``.
    """

    tasks: st.Tasks
    size: int = 32
    waiting: asyncio.Queue[Waiting] = field(default_factory=asyncio.Queue)
    counts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    async def logits(self, task: str, picture: Tensor) -> Tensor:
        """Return the logits of a picture ``(C, H, W)``, one for each class of its task."""
        one = Waiting(task, picture, asyncio.get_running_loop().create_future())
        await self.waiting.put(one)
        return await one.answer

    async def work(self) -> None:
        """Compute batch after batch: whatever has come while the one before was computed."""
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.size and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            by_size: dict[torch.Size, list[Waiting]] = defaultdict(list)
            for one in batch:
                by_size[one.picture.shape].append(one)
            for group in by_size.values():
                self.counts["batches"] += 1
                self.counts["pictures"] += len(group)
                try:
                    rows = await asyncio.to_thread(self._compute, group)
                except Exception as error:  # goes to those who wait
                    rows = [error] * len(group)
                for one, row in zip(group, rows, strict=True):
                    if one.answer.done():  # who asked has gone
                        continue
                    if isinstance(row, Exception):
                        one.answer.set_exception(row)
                    else:
                        one.answer.set_result(row)

    @torch.inference_mode()
    def _compute(self, group: list[Waiting]) -> list[Tensor | Exception]:
        pictures = torch.stack([one.picture for one in group])
        return [*self.tasks(pictures, task=[one.task for one in group])]


def read(tasks: st.Tasks, task: str, content: bytes) -> tuple[Tensor, Sequence[str]]:
    """Return a picture as the task's network takes it, ``(C, H, W)``, and the names of its classes."""
    header = tasks.header(task)
    if header.preprocessing is None:
        raise SparsetuneError(f"the delta of '{task}' does not say how pictures are prepared.")
    picture = header.preprocessing.apply(decode(BytesIO(content), "the picture"))
    return picture, header.classes or [str(number) for number in range(header.num_classes)]


def answer(logits: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return the likeliest class and its probability; logits beyond the task's classes are other tasks'."""
    scores = logits[: len(classes)].softmax(-1)
    best = int(scores.argmax())
    return {"class": classes[best], "probability": float(scores[best])}


def application(folder: Path, cache_bytes: int, size: int = 32, **options: Any) -> FastAPI:
    """Return the service of a folder of deltas.

    Args:
        folder: The deltas, ``TASK.safetensors`` each.
        cache_bytes: Most bytes of their values in memory.
        size: Most pictures of a batch.
        **options: As for ``Tasks.load``.
    """
    found = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    tasks = st.Tasks.load(found, cache_bytes=cache_bytes, **options)
    batches = Batches(tasks, size)
    began = time.monotonic()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batches.work())
        yield
        worker.cancel()

    app = FastAPI(title="sparsetune", lifespan=life)
    app.state.tasks = tasks

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"ok": True, "tasks": len(tasks.files), "seconds": time.monotonic() - began}

    @app.get("/tasks")
    async def names() -> list[str]:
        return [*tasks.names]

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        now = {"tasks": len(tasks.files), "cached_bytes": tasks.cached_bytes, **batches.counts}
        return PlainTextResponse("".join(f"sparsetune_{name} {value:g}\n" for name, value in now.items()))

    @app.post("/predict/{task}")
    async def predict(task: str, request: Request) -> dict[str, Any]:
        start = time.perf_counter()
        content = b""
        async for piece in request.stream():
            content += piece
            if len(content) > MOST:
                raise HTTPException(413, f"the picture has more than {MOST >> 20} MiB.")
        path = folder / f"{task}.safetensors"
        if task not in tasks.files and path.parent == folder and path.is_file():
            tasks.add(task, path)
        if task not in tasks.files:
            raise HTTPException(404, f"there is no task '{task[:100]}'; GET /tasks names them.")
        try:
            picture, classes = await asyncio.to_thread(read, tasks, task, content)
            logits = await batches.logits(task, picture)
        except DataError as error:
            raise HTTPException(422, str(error)) from error
        except SparsetuneError as error:
            batches.counts["failed"] += 1
            raise HTTPException(503, str(error)) from error
        batches.counts["seconds"] += time.perf_counter() - start
        return answer(logits, classes)

    return app


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("deltas", type=Path, help="folder of deltas over one backbone")
    parser.add_argument("--cache", default="1GB", help="most memory of the deltas' values")
    parser.add_argument("--backbone", help="the checkpoint that the deltas stand on")
    parser.add_argument("--batch-size", type=int, default=32, help="most pictures that are computed together")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    app = application(given.deltas, bytes_from(given.cache), given.batch_size, backbone=given.backbone)
    uvicorn.run(app, host=given.host, port=given.port)


if __name__ == "__main__":
    main()
