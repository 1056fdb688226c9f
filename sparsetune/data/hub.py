"""Parquet files of an image data set on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from sparsetune.errors import ConfigError, DataError
from sparsetune.fetch import explain

PREFIX = "hf://datasets/"


def download(source: str) -> Path:
    """Bring the Parquet files of a data set into the Hub's own cache.

    Args:
        source: ``hf://datasets/OWNER/NAME``, or ``hf://datasets/OWNER/NAME/FOLDER`` for one folder of it.

    Returns:
        The local folder with the files.

    Raises:
        ConfigError: When ``source`` is not of that form.
        DataError: When there are no such files, or they are neither in the cache nor to be had.
    """
    import huggingface_hub

    words = source.removeprefix(PREFIX).rstrip("/").split("/")
    if not source.startswith(PREFIX) or {"", ".", ".."} & set(words):
        raise ConfigError(f"data source {source!r} is not valid; expected {PREFIX}OWNER/NAME[/FOLDER].")
    name, inside = "/".join(words[:2]), "/".join(words[2:])
    try:
        root = huggingface_hub.snapshot_download(
            name, repo_type="dataset", allow_patterns=f"{inside}/*.parquet".lstrip("/")
        )
    except Exception as error:  # the Hub client's own classes differ between its releases
        raise DataError(f"{source} cannot be downloaded {explain(error)}") from error
    folder = Path(root, inside)
    if not any(folder.glob("**/*.parquet")):
        raise DataError(
            f"{source} holds no Parquet files; choose a data set, or a folder of it, that has some."
        )
    return folder
