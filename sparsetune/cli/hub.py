"""``sparsetune push`` and ``pull``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.utils.tqdm import disable_progress_bars

from sparsetune.cli import console, options
from sparsetune.hub import pull as download
from sparsetune.hub import push as upload


def push(
    delta: options.Delta,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME; made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch; made if missing; the main one if left out.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="What to call the commit.")] = None,
    as_json: options.Json = False,
) -> None:
    """Upload a delta and a model card to the Hugging Face Hub; log in with `hf auth login` or HF_TOKEN.

    Example: sparsetune push runs/NAME/delta.safetensors OWNER/NAME
    """
    if not console.err.is_terminal:
        disable_progress_bars()
    url = upload(delta, repo, private=private, revision=revision, message=message)
    if as_json:
        console.print_json({"delta": delta, "repo": repo, "commit": url})
    else:
        console.out.print(url)


def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME, or hf://OWNER/NAME/FILE.safetensors.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Copy it to this file; else it stays in the cache.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    as_json: options.Json = False,
) -> None:
    """Download a delta from the Hugging Face Hub, check it, and say where it is.

    Example: sparsetune pull OWNER/NAME -o cats.safetensors
    """
    path = download(repo, out, revision=revision)
    if as_json:
        console.print_json({"repo": repo, "delta": str(path), "file_bytes": path.stat().st_size})
    else:
        console.out.print(str(path))
