"""Published weights from a hub that answers, does not, or is not asked; in processes of their own."""

import os
import re
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import timm
import torch
from forge import fresh
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


UNREACHABLE = """
import json, time
import sparsetune as st
from huggingface_hub import constants
started = time.monotonic()
try:
    st.create("test_resnet", pretrained=True)
except st.SparsetuneError as error:
    print(json.dumps([str(error), time.monotonic() - started, constants.HF_HUB_OFFLINE]))
"""


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path):
    message, seconds, offline = fresh(
        UNREACHABLE, HF_HOME=tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE=0
    )
    assert "run `hf download timm/test_resnet.r160_in1k` where there is a network" in message
    assert seconds < 10
    assert not offline


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


FETCH = """
import json, sys
import sparsetune as st
from forge import moved
net = st.create("test_resnet", pretrained=True, num_classes=3)
st.save(moved(st.adapt_(net, st.Learn(fraction=0.2))), sys.argv[1])
backbone = st.inspect(sys.argv[1]).backbone
print(json.dumps([backbone.source, backbone.revision, st.adapted(net).fingerprint]))
"""

LOAD = """
import json, sys
import sparsetune as st
print(json.dumps(st.adapted(st.load(sys.argv[1], allow_network=True)).fingerprint))
"""


def test_weights_come_from_a_hub_at_the_revision_of_then_and_without_it_from_the_cache(hub, tmp_path):
    first, second = (save(timm.create_model("test_resnet").state_dict()) for _ in range(2))
    Hub.commits = {"main": ("a" * 40, first), "a" * 40: ("a" * 40, first)}
    delta, one, two = (tmp_path / name for name in ("delta", "one", "two"))
    source, revision, found = fresh(FETCH, delta, HF_HOME=one, HF_ENDPOINT=hub)
    assert (source, revision) == ("timm/test_resnet.r160_in1k", "a" * 40)
    Hub.commits["main"] = ("b" * 40, second)
    assert fresh(LOAD, delta, HF_HOME=two, HF_ENDPOINT=hub) == found
    assert fresh(LOAD, delta, HF_HOME=one, HF_ENDPOINT="http://127.0.0.1:9") == found


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
