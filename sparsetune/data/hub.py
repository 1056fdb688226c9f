"""Parquet files of an image data set on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from sparsetune.errors import ConfigError, DataError

PREFIX = "hf://datasets/"


def download(source: str) -> Path:
    """Bring the Parquet files of a data set into the Hub's own cache.

    Args:
        source: ``hf://datasets/OWNER/NAME``, or ``hf://datasets/OWNER/NAME/FOLDER`` for one folder of it.

    Returns:
        The local folder with the files.

    Raises:
        ConfigError: When ``source`` is not of that form.
        DataError: When the files are neither in the cache nor to be had.
    """
    import huggingface_hub

    owner, name, *folder = source.removeprefix(PREFIX).rstrip("/").split("/") + [""]
    if not (source.startswith(PREFIX) and owner and name) or ".." in folder:
        raise ConfigError(f"data source {source!r} is not valid; expected {PREFIX}OWNER/NAME[/FOLDER].")
    inside = "/".join(folder).rstrip("/")
    try:
        root = huggingface_hub.snapshot_download(
            f"{owner}/{name}", repo_type="dataset", allow_patterns=f"{inside}/*.parquet".lstrip("/")
        )
    except Exception as error:  # the Hub client's own classes differ between its releases
        reason = " ".join(str(error).split())
        raise DataError(
            f"{source} cannot be downloaded ({reason[:200].rstrip('.')}); "
            "check the name, the network and, if the data set is gated, `hf auth login`."
        ) from error
    return Path(root) / inside
