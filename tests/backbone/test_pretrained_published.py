"""Published weights from a hub that answers, does not, or is not asked."""

import os
import re
import threading
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import timm
import torch
from forge import moved
from huggingface_hub import constants
from safetensors.torch import save

import sparsetune as st
from sparsetune.backbone.pretrained import how_to_fetch
from sparsetune.errors import BackboneError


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (("timm/a", None, "https://b/c.pth"), "`hf download timm/a` where there is a network"),
        (("timm/a", "d", None), "`hf download timm/a --revision d`"),
        ((None, None, "https://b/c.pth"), "download https://b/c.pth where .* it into .*/hub/checkpoints"),
        ((None, None, None), "leave pretrained out"),
    ],
)
def test_the_remedy_says_what_to_fetch_and_where_it_goes(where, words):
    assert re.search(words, how_to_fetch(*where))


@pytest.fixture
def move_to(monkeypatch):
    """Let the Hub's client know one home folder and one endpoint, as its variables would at its start."""
    own = {
        name: value for name, value in vars(constants).items() if isinstance(value, str) and name.isupper()
    }
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def move(home, endpoint):
        for name, value in own.items():
            value = value.replace(own["ENDPOINT"], endpoint).replace(own["HF_HOME"], str(home))
            monkeypatch.setattr(constants, name, value)

    return move


NOWHERE = "http://127.0.0.1:9"


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path, move_to):
    move_to(tmp_path, NOWHERE)
    started = time.monotonic()
    with pytest.raises(
        BackboneError, match=r"run `hf download timm/test_resnet\.r160_in1k` where there is a network"
    ):
        st.create("test_resnet", pretrained=True)
    assert time.monotonic() - started < 10
    assert not constants.HF_HUB_OFFLINE


class Hub(BaseHTTPRequestHandler):
    """A hub of one repository: ``commits`` maps a revision to commit and file."""

    commits: ClassVar[dict] = {}

    def do_HEAD(self):
        revision = self.path.split("/")[-2]
        commit, data = self.commits.get(revision, (None, b""))
        found = commit and self.path == f"/timm/test_resnet.r160_in1k/resolve/{revision}/model.safetensors"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(data) if found else 0))
        if found:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
        self.end_headers()
        return data if found else b""

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_come_from_a_hub_at_the_revision_of_then_and_without_it_from_the_cache(
    hub, tmp_path, move_to
):
    first, second = (save(timm.create_model("test_resnet").state_dict()) for _ in range(2))
    Hub.commits = {"main": ("a" * 40, first), "a" * 40: ("a" * 40, first)}
    delta, one, two = (tmp_path / name for name in ("delta", "one", "two"))
    move_to(one, hub)
    net = st.create("test_resnet", pretrained=True, num_classes=3)
    st.save(moved(st.adapt_(net, st.Learn(fraction=0.2))), delta)
    backbone = st.inspect(delta).backbone
    assert (backbone.source, backbone.revision) == ("timm/test_resnet.r160_in1k", "a" * 40)
    Hub.commits["main"] = ("b" * 40, second)
    for home, endpoint in ((two, hub), (one, NOWHERE)):
        move_to(home, endpoint)
        loaded = st.load(delta, allow_network=True)
        assert st.adapted(loaded).fingerprint == st.adapted(net).fingerprint


def test_what_the_cache_has_is_loaded_without_leave_and_nothing_is_asked(hub, tmp_path, move_to, monkeypatch):
    first, second = (save(timm.create_model("test_resnet").state_dict()) for _ in range(2))
    Hub.commits = {"main": ("a" * 40, first), "a" * 40: ("a" * 40, first)}
    delta, again = tmp_path / "delta", tmp_path / "again"
    move_to(tmp_path / "one", hub)
    net = st.create("test_resnet", pretrained=True, num_classes=3)
    st.save(moved(st.adapt_(net, st.Learn(fraction=0.2))), delta)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    loaded = st.load(delta)
    assert st.adapted(loaded).fingerprint == st.adapted(net).fingerprint
    st.save(loaded, again)
    assert again.read_bytes() == delta.read_bytes()
    (cached,) = (tmp_path / "one").rglob("snapshots/*/model.safetensors")
    cached.unlink()
    cached.write_bytes(second)
    with pytest.raises(BackboneError, match="fingerprint"):
        st.load(delta)
    move_to(tmp_path / "empty", hub)
    with pytest.raises(BackboneError, match="pass allow_network=True"):
        st.load(delta)


@pytest.mark.parametrize(
    ("source", "revision"),
    [
        ("timm/test_resnet.r160_in1k", "main"),
        ("timm/test_resnet.r160_in1k", "../../../elsewhere"),
        ("../../elsewhere", "a" * 40),
        ("a/b/c", "a" * 40),
        ("", "a" * 40),
        (None, None),
    ],
)
def test_a_stranger_names_nothing_but_a_commit_in_the_cache(source, revision, tmp_path, move_to):
    from sparsetune.backbone import cached_weights

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.safetensors").touch()
    move_to(tmp_path / "home", NOWHERE)
    assert cached_weights(source, revision) is None


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


def test_a_published_pickle_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"conv1.weight": Payload()}, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    with pytest.raises(BackboneError, match="pretrained weights of resnet18 cannot be had"):
        st.create("torchvision/resnet18", pretrained=True, num_classes=1000)
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
