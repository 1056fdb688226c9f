"""Deltas on the Hugging Face Hub: push and pull, and a folder as the Hub holds it."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from torch import nn

from sparsetune.backbone import HUB, skeleton
from sparsetune.delta import Header, load, read_delta, read_header, save
from sparsetune.errors import ConfigError, HubError
from sparsetune.host import DELTA, Address, explain, fetch, replacing, write_text
from sparsetune.parts import Plan, plan
from sparsetune.publish.card import card
from sparsetune.sliced import adapted

CARD = "README.md"


def push(
    net_or_path: nn.Module | str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    **about: Any,
) -> str:
    """Upload a delta and its model card to a repository, which is made if missing, in one commit.

    Args:
        net_or_path: An adapted model, or a delta.
        repo: ``OWNER/NAME``.
        private: Make a new repository private.
        revision: The branch, made if missing; the main one by default.
        message: What to call the commit.
        token: By default that of ``hf auth login`` or of ``HF_TOKEN``.
        **about: For a model: ``classes``, ``preprocessing`` and ``training`` as for :func:`sparsetune.save`.

    Returns:
        The URL of the commit.

    Raises:
        ConfigError: When ``repo`` is no repository, or ``about`` is given for a file.
        DeltaError: When the file is not intact.
        HubError: When the Hub refuses, or cannot be reached.
        SparsetuneError: As ``save`` raises.
    """
    address = Address.parse(repo, revision)
    if Address(address.repo, revision) != address:
        raise ConfigError(f"{repo!r} is not a repository to push to; expected OWNER/NAME.")
    if about and not isinstance(net_or_path, nn.Module):
        raise ConfigError(f"{', '.join(about)} cannot be changed in {net_or_path}; push the model itself.")
    with TemporaryDirectory() as folder:
        if isinstance(net_or_path, nn.Module):
            path = Path(folder, DELTA)
            save(net_or_path, path, **about)
        else:
            path = fetch(net_or_path)
        text = _card(path, net_or_path, str(address))
        files = [CommitOperationAdd(CARD, text.encode()), CommitOperationAdd(DELTA, path)]
        api = HfApi(token=token, library_name="sparsetune", library_version=version("sparsetune"))
        try:
            api.create_repo(address.repo, private=private, exist_ok=True)
            if revision and not revision.startswith("refs/"):
                api.create_branch(address.repo, branch=revision, exist_ok=True)
            commit = api.create_commit(
                address.repo, files, commit_message=message or "Upload a delta", revision=revision
            )
        except Exception as error:  # the Hub's client lets those of its HTTP library through
            raise HubError(f"{address} cannot be pushed to {explain(error)}") from error
    return str(commit.commit_url)


def pull(repo: str, out: str | Path | None = None, *, revision: str | None = None) -> Path:
    """Download a delta and check it.

    Args:
        repo: ``OWNER/NAME``, or an ``hf://`` address.
        out: A file to copy it to, which appears whole or not at all; by default it stays in the Hub's cache.
        revision: A branch, tag or commit.

    Returns:
        Where it is.

    Raises:
        ConfigError: When ``repo`` is no address.
        DeltaError: When what was downloaded is no intact delta.
        HubError: When it cannot be had.
        StorageError: When ``out`` cannot be written.
    """
    path = fetch(str(Address.parse(repo, revision)))
    _checked(path)
    if out is None:
        return path
    with replacing(out) as temporary:
        shutil.copyfile(path, temporary)
    return Path(out)


def save_pretrained(net: nn.Module, folder: str | Path, **about: Any) -> None:
    """Save what an adapted model has learned, with a model card, to a folder as the Hub holds it.

    Args:
        net: An adapted model.
        folder: Gets ``delta.safetensors`` and ``README.md``; made if missing.
        **about: ``classes``, ``preprocessing`` and ``training`` as for :func:`sparsetune.save`.

    Raises:
        SparsetuneError: As ``save`` raises.
    """
    path = Path(folder, DELTA)
    save(net, path, **about)
    write_text(Path(folder, CARD), _card(path, net, DELTA))


def from_pretrained(
    repo_or_folder: str | Path,
    module: nn.Module | None = None,
    *,
    revision: str | None = None,
    backbone: str | Path | None = None,
    allow_network: bool = False,
    max_bytes: int | None = None,
) -> nn.Module:
    """Load from a folder that :func:`save_pretrained` wrote, or from a repository.

    Args:
        repo_or_folder: A folder, or else ``OWNER/NAME``.
        module: As for :func:`sparsetune.load`.
        revision: A branch, tag or commit of the repository.
        backbone: As for :func:`sparsetune.load`.
        allow_network: Likewise, for the backbone; the delta itself is fetched anyway.
        max_bytes: As for :func:`sparsetune.load`.

    Raises:
        SparsetuneError: As ``load`` raises.
    """
    folder = Path(repo_or_folder)
    path = folder / DELTA if folder.is_dir() else str(Address.parse(str(repo_or_folder), revision))
    given: dict[str, Any] = {"allow_network": allow_network, "max_bytes": max_bytes}
    return load(path, module, backbone=backbone, **given)


def _checked(path: Path) -> Header:
    """Read a whole delta, so that a damaged one is refused."""
    header = read_header(path)
    read_delta(path, header)
    return header


def _card(path: Path, source: nn.Module | str | Path, address: str) -> str:
    header = _checked(path)
    made = adapted(source).plan if isinstance(source, nn.Module) else _plan(header)
    return card(header, path.stat().st_size, made, address)


def _plan(header: Header) -> Plan | None:
    """The plan of a header's model, which takes no memory; ``None`` where it cannot be built without more."""
    if header.backbone.root.kind == "module" or header.model.startswith(HUB):
        return None
    return plan(skeleton(header.origin), header.learn)
