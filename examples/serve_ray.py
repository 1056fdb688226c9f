"""The same service on Ray Serve: replicas on many machines, each with the tasks that it is asked for.

Run: pip install 'ray[serve]' 'sparsetune[serve]' && python examples/serve_ray.py deltas/ --replicas 2

Ray sends the requests of a task to a replica that has it already (model multiplexing), and a replica
computes pictures that wait at the same time together. ``curl -H 'serve_multiplexed_model_id: cats'
--data-binary @cat.jpg localhost:8000/`` asks for ``deltas/cats.safetensors``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from ray import serve
from serve import answer, read
from starlette.requests import Request
from starlette.responses import JSONResponse
from torch import Tensor

import sparsetune as st
from sparsetune.errors import DataError, SparsetuneError
from sparsetune.host import bytes_from

TASKS = 100
"""Tasks that a replica is known to have; it may keep more, or fewer, as its memory for them goes."""


@serve.deployment
class Served:
    """A replica.

    Args:
        folder: The deltas, ``TASK.safetensors`` each.
        cache_bytes: Most bytes of their values in memory.
        options: As for ``Tasks.load``.
    """

    def __init__(self, folder: str, cache_bytes: int, options: dict[str, Any]) -> None:
        found = {path.stem: path for path in sorted(Path(folder).glob("*.safetensors"))}
        self.tasks = st.Tasks.load(found, cache_bytes=cache_bytes, **options)

    @serve.multiplexed(max_num_models_per_replica=TASKS)
    async def task(self, name: str) -> str:
        """Note that this replica has a task from now on."""
        self.tasks.header(name)
        return name

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.002)
    async def logits(self, asked: list[tuple[str, Tensor]]) -> list[Tensor]:
        """Compute the pictures that wait, whatever their tasks; those of one size together."""
        found: dict[int, Tensor] = {}
        for size in {picture.shape for _, picture in asked}:
            own = [index for index, (_, picture) in enumerate(asked) if picture.shape == size]
            with torch.inference_mode():
                rows = self.tasks(torch.stack([asked[i][1] for i in own]), task=[asked[i][0] for i in own])
            found.update(zip(own, rows, strict=True))
        return [found[index] for index in range(len(asked))]

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request."""
        name = serve.get_multiplexed_model_id()
        if name not in self.tasks.files:
            return JSONResponse({"detail": f"there is no task '{name[:100]}'."}, 404)
        try:
            picture, classes = read(self.tasks, await self.task(name), await request.body())
            return JSONResponse(answer(await self.logits((name, picture)), classes))
        except DataError as error:
            return JSONResponse({"detail": str(error)}, 422)
        except SparsetuneError as error:
            return JSONResponse({"detail": str(error)}, 503)


def application(folder: Path, cache_bytes: int, replicas: int = 1, **options: Any) -> serve.Application:
    """Return the service of a folder of deltas, for ``serve.run``."""
    served = Served.options(num_replicas=replicas)
    return served.bind(str(folder.resolve()), cache_bytes, options)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("deltas", type=Path, help="folder of deltas over one backbone")
    parser.add_argument("--cache", default="1GB", help="most memory of the deltas' values in a replica")
    parser.add_argument("--backbone", help="the checkpoint that the deltas stand on")
    parser.add_argument("--replicas", type=int, default=1)
    given = parser.parse_args()
    app = application(given.deltas, bytes_from(given.cache), given.replicas, backbone=given.backbone)
    serve.run(app, blocking=True)


if __name__ == "__main__":
    main()
