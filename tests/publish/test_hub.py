"""Deltas on the Hugging Face Hub, with the Hub's own client and a server on loopback that speaks as it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import loopback
import pytest
import torch
from forge import Parts, same, small
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

import sparsetune as st
from sparsetune.errors import BackboneError, ConfigError, DeltaError, HubError, StorageError
from sparsetune.host.files import Address, fetch
from sparsetune.publish.hub import pull

FORM = r"is not valid; expected hf://OWNER/NAME\[@REVISION\]\[/FILE\.safetensors\]\."


@pytest.fixture(scope="module")
def delta(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("delta") / "a name of its own.safetensors"
    st.save(small(), path, classes=list("abcdefghij"))
    return path


def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def files(hub: loopback.Hub, name: str = "some/digits", revision: str = "main") -> dict[str, bytes]:
    repo = hub.repos[name]
    return repo.commits[repo.branches[revision]]


def put(hub: loopback.Hub, held: dict[str, bytes], name: str = "some/digits", revision: str = "main") -> str:
    """Commit files as anyone may, without the client."""
    return hub.repos.setdefault(name, loopback.Repo(private=False)).commit(revision, held, "by hand")


def other():
    return st.load("hf://some/other")


def push(source, repo="some/digits", **about):
    return st.push(source, repo, **about)


def refused(kind, words, action) -> str:
    """What ``action`` complains of: one line, without the token."""
    with pytest.raises(kind, match=words) as caught:
        action()
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    assert told.endswith(".")
    assert loopback.TOKEN not in told
    return told


def test_a_new_process_loads_what_was_pushed_bit_for_bit(hub, tmp_path):
    net = small()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    url = st.push(net, "some/digits", classes=list("abcdefghij"))
    assert url == f"{hub.url}/some/digits/commit/{hub.repos['some/digits'].branches['main']}"
    torch.save(x, tmp_path / "x.pt")
    code = """if True:
        import sys, torch, sparsetune as st
        torch.set_num_threads(1)
        net = st.load("hf://some/digits")
        with torch.no_grad():
            torch.save(net(torch.load("x.pt")), "y.pt")
        print(st.inspect("hf://some/digits").classes[1], st.__file__)
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["b", st.__file__]
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "y.pt"), net.eval()(x))


def test_push_makes_a_repository_of_the_file_and_its_card(hub, delta):
    st.push(delta, "some/digits")
    assert set(files(hub)) == {".gitattributes", "delta.safetensors", "README.md"}
    assert files(hub)["delta.safetensors"] == delta.read_bytes()
    card = ModelCard(files(hub)["README.md"].decode())
    assert card.data.library_name == "sparsetune"
    assert 'net = st.load("hf://some/digits")' in card.text
    assert not hub.repos["some/digits"].private
    assert any(request.startswith("PUT /blobs/") for request in hub.asked)


def test_push_of_a_model_uploads_what_save_writes(hub, tmp_path):
    net, about = small(), {"classes": list("klmnopqrst"), "training": {"data": "digits"}}
    st.save(net, tmp_path / "saved.safetensors", **about)
    st.push(net, "some/digits", private=True, message="first words", **about)
    assert files(hub)["delta.safetensors"] == (tmp_path / "saved.safetensors").read_bytes()
    assert hub.repos["some/digits"].private
    assert hub.repos["some/digits"].messages == ["initial", "first words"]
    assert same(st.load("hf://some/digits"), net)


def test_pushing_again_adds_a_commit_that_load_sees(hub, delta):
    st.push(delta, "some/digits")
    assert same(st.load("hf://some/digits"), small())
    st.push(other := small(st.Learn(fraction=0.3)), "some/digits")
    assert len(hub.repos["some/digits"].commits) == 3
    assert same(st.load("hf://some/digits"), other)


@pytest.mark.parametrize("branch", ["v2", "new/idea"])
def test_a_branch_of_its_own(hub, delta, branch):
    st.push(delta, "some/digits")
    st.push(other := small(st.Learn(fraction=0.3)), "some/digits", revision=branch)
    address = f"hf://some/digits@{branch.replace('/', '%2F')}"
    assert f'st.load("{address}")' in files(hub, revision=branch)["README.md"].decode()
    assert files(hub)["delta.safetensors"] == delta.read_bytes()
    assert same(st.load(address), other)
    assert same(st.load("hf://some/digits"), small())
    assert same(st.from_pretrained("some/digits", revision=branch), other)
    commit = hub.repos["some/digits"].branches[branch]
    assert same(st.load(f"hf://some/digits@{commit}"), other)


def test_a_file_of_another_name_and_every_function_that_takes_a_delta(hub, delta, tmp_path):
    put(hub, {"many/cats.safetensors": delta.read_bytes()})
    address = "hf://some/digits/many/cats.safetensors"
    assert st.inspect(address) == st.inspect(delta)
    assert st.verify(address) == st.inspect(delta)
    assert same(st.load(address), small())
    assert pull(address, tmp_path / "out" / "cats.safetensors").read_bytes() == delta.read_bytes()
    st.push(address, "some/copy")
    assert files(hub, "some/copy")["delta.safetensors"] == delta.read_bytes()


def test_what_the_cache_holds_needs_no_network(hub, delta, monkeypatch):
    put(hub, {"delta.safetensors": delta.read_bytes()})
    net = st.load("hf://some/digits")
    before = len(hub.asked)
    offline(monkeypatch)
    assert same(st.load("hf://some/digits"), net)
    assert len(hub.asked) == before
    refused(HubError, r"hf://some/other cannot be fetched \(.*offline.*\); unset HF_HUB_OFFLINE where", other)
    refused(HubError, r"hf://some/digits cannot be pushed to \(.*offline.*\); unset HF", lambda: push(delta))


@pytest.fixture
def down(monkeypatch) -> Callable[[], None]:
    """Let the client look for the Hub where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"

    def leave() -> None:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, nowhere)
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return leave


REFUSED = r"\(\[Errno \d+\] Connection refused\); check the network and try again\.$"


def test_the_cache_serves_while_the_hub_is_down(hub, delta, down):
    put(hub, {"delta.safetensors": delta.read_bytes()})
    st.inspect("hf://some/digits")
    down()
    assert st.inspect("hf://some/digits") == st.inspect(delta)
    refused(HubError, rf"^hf://some/digits cannot be pushed to {REFUSED}", lambda: push(delta))


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_a_hub_that_nothing_answers_for(down):
    """The client asks six times, in half a minute."""
    down()
    refused(HubError, rf"^hf://some/other cannot be fetched {REFUSED}", other)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "hf://some/nothing",
            r"\(no such repository, or a private one\); check the name, or log in with `hf",
        ),
        ("hf://some/digits@v3", r"\(no such revision\); name a branch, tag or commit"),
        ("hf://some/digits/cats.safetensors", r"\(no such file\); name a delta that is there, as hf://OWNER"),
        ("hf://some/di--gits", r"\(Cannot have -- or \.\. in repo_id: 'some/di--gits'\); check the name\."),
    ],
)
def test_what_is_not_there(hub, delta, address, words):
    put(hub, {"delta.safetensors": delta.read_bytes()})
    refused(HubError, rf"^{re.escape(address)} cannot be fetched {words}", lambda: st.load(address))


def test_a_private_repository_without_a_token(hub, delta, monkeypatch):
    st.push(delta, "some/digits", private=True)
    assert same(st.load("hf://some/digits"), small())
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "2")
    refused(HubError, r"\(no such repository, or a private one\)", lambda: st.load("hf://some/digits"))


def test_pushing_without_a_token_or_the_right_to(hub, delta, monkeypatch):
    words = r"cannot be pushed to \(your token does not allow it\); use one with the right to"
    refused(HubError, words, lambda: push(delta, "others/digits"))
    monkeypatch.delenv("HF_TOKEN")
    words = r"^hf://some/digits cannot be pushed to \(the Hub asks who you are\); log in with `hf auth login`"
    refused(HubError, words, lambda: push(delta))
    assert not hub.repos
    assert push(delta, token=loopback.TOKEN).startswith(hub.url)


@pytest.mark.parametrize("step", ["repos/create", "validate-yaml", "commit/main", "batch", "PUT /blobs"])
def test_a_hub_that_is_busy_while_pushing(hub, delta, step):
    hub.answer[step] = 503
    words = r"^hf://some/digits cannot be pushed to \(the Hub answered 503: .+\); try again later\.$"
    if step in ("batch", "PUT /blobs"):
        hub.answer[step] = 507  # which the client does not try again for half a minute
        words = words.replace("503", "507")
    refused(HubError, words, lambda: push(delta))
    assert set(files(hub)) == {".gitattributes"} if hub.repos else step == "repos/create"
    hub.answer.clear()
    push(delta)
    assert files(hub)["delta.safetensors"] == delta.read_bytes()


def test_a_hub_that_is_busy_while_fetching(hub, delta):
    put(hub, {"delta.safetensors": delta.read_bytes()})
    hub.answer["GET /blobs"] = 503
    words = r"^hf://some/digits cannot be fetched \(the Hub answered 503: .+\); try again later\.$"
    refused(HubError, words, lambda: st.load("hf://some/digits"))
    hub.answer.clear()
    assert same(st.load("hf://some/digits"), small())


@pytest.mark.slow
def test_a_hub_that_is_down_for_longer(hub, delta):
    """Likewise."""
    put(hub, {"delta.safetensors": delta.read_bytes()})
    hub.answer["HEAD"] = 503
    words = r"cannot be fetched \(the Hub answered 503: Service Unavailable\); try again later\.$"
    refused(HubError, words, lambda: st.load("hf://some/digits"))


@pytest.mark.parametrize("length", [0, 1000, -1])
def test_a_download_that_breaks_off(hub, delta, tmp_path, length):
    put(hub, {"delta.safetensors": delta.read_bytes()})
    hub.cut = length
    words = r"cannot be fetched \(Consistency check failed: .*\); check the network and try again\.$"
    refused(HubError, words, lambda: st.load("hf://some/digits"))
    refused(HubError, words, lambda: pull("some/digits", tmp_path / "d.safetensors"))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.cut = None
    assert same(st.load("hf://some/digits"), small())


def test_a_cache_that_cannot_be_written(hub, delta, monkeypatch):
    put(hub, {"delta.safetensors": delta.read_bytes()})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/nowhere")
    words = r"cannot be fetched \(/proc/nowhere.*\); free space, or set HF_HOME to another folder\.$"
    refused(HubError, words, lambda: st.load("hf://some/digits"))


def test_what_is_no_intact_delta_is_refused_and_written_nowhere(hub, delta, tmp_path):
    damaged = bytearray(delta.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    put(hub, {"delta.safetensors": bytes(damaged), "evil.safetensors": b"\x80\x04." * 99})
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(b"before")
    words = r"^hf://some/digits is not an intact delta \(its values do not match"
    refused(DeltaError, words, lambda: st.load("hf://some/digits"))
    refused(DeltaError, "is not an intact delta", lambda: pull("some/digits"))
    refused(DeltaError, "is not an intact delta", lambda: pull("some/digits", kept))
    refused(DeltaError, "is not an intact delta", lambda: pull("hf://some/digits/evil.safetensors", kept))
    assert kept.read_bytes() == b"before"
    assert list(tmp_path.glob("*")) == [kept, tmp_path / "hf"]


def test_only_intact_deltas_are_pushed(hub, delta, tmp_path):
    whole, damaged = tmp_path / "whole.safetensors", tmp_path / "damaged.safetensors"
    save_file({"a": torch.zeros(3)}, whole)
    damaged.write_bytes(delta.read_bytes()[:-1])
    refused(DeltaError, "so no delta; pass a file that sparsetune saved", lambda: push(whole))
    refused(DeltaError, "is not an intact delta", lambda: push(damaged))
    refused(DeltaError, "is not a file; pass a delta", lambda: push(tmp_path / "nothing"))
    refused(ConfigError, "is not adapted", lambda: push(st.create("wrn28_4", depth=10, width=1)))
    assert not hub.asked


@pytest.mark.parametrize(
    "address",
    [
        "hf://digits",
        "hf://some/digits/model.bin",
        "hf://some/digits/delta.pkl",
        "hf://some/digits/../x.safetensors",
        "hf://some/digits/a//x.safetensors",
        "hf://datasets/some/digits",
        "hf://some/digits@",
        "hf://some/dig its",
        "hf://",
    ],
)
def test_other_addresses_are_refused_unasked(hub, address):
    refused(ConfigError, rf"^'{re.escape(address)}' {FORM}$", lambda: st.load(address))
    assert not hub.asked


def test_an_address_as_text_and_back():
    for address in (
        Address("some/digits"),
        Address("some/digits", "refs/pr/1"),
        Address("some/digits", "50% @home", "a/b.safetensors"),
    ):
        assert Address.parse(str(address)) == address
        assert Address.parse(str(address).removeprefix("hf://")) == address
    assert str(Address("some/digits", "refs/pr/1")) == "hf://some/digits@refs%2Fpr%2F1"
    assert Address.parse("some/digits", "v2") == Address("some/digits", "v2")
    refused(ConfigError, "names a revision and so does revision 'v2'", lambda: Address.parse("a/b@v1", "v2"))


def test_a_path_stays_a_path(tmp_path):
    assert fetch(tmp_path / "x") == tmp_path / "x"
    assert fetch("some/digits") == Path("some/digits")


@pytest.mark.parametrize("repo", ["some/digits@v2", "hf://some/digits/cats.safetensors"])
def test_a_place_to_push_to_is_a_repository(hub, delta, repo):
    refused(ConfigError, "is not a repository to push to; expected OWNER/NAME", lambda: push(delta, repo))
    assert not hub.asked


def test_a_file_says_of_itself_what_it_says(hub, delta):
    refused(
        ConfigError, "^classes cannot be changed in .*; push the model", lambda: push(delta, classes=["a"])
    )
    assert not hub.asked


def test_an_address_is_no_leave_to_fetch_a_backbone(hub, delta, tmp_path):
    parts = Parts(delta)
    parts.header["model"] = {"library": "timm", "name": "resnet18", "kwargs": {}, "num_classes": 10}
    source = {"source": "some/weights", "kind": "pretrained", "revision": "v1"}
    parts.header["backbone"] |= source
    put(hub, {"delta.safetensors": Path(parts.write(tmp_path / "forged.safetensors")).read_bytes()})
    words = r"^hf://some/digits stands on the pretrained weights some/weights; pass allow_network=True"
    refused(BackboneError, words, lambda: st.load("hf://some/digits"))
    assert not any("some/weights" in request or "resnet18" in request for request in hub.asked)


def test_the_token_is_neither_told_nor_kept(hub, delta, tmp_path, capfd):
    secret = "hf_secret\nof mine"
    told = refused(HubError, "; check the token", lambda: push(delta, token=secret))
    assert "secret" not in told
    assert "mine" not in told
    push(delta)
    st.load("hf://some/digits")
    held = [*files(hub).values(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    assert not any(loopback.TOKEN.encode() in data for data in held)
    out, err = capfd.readouterr()
    assert loopback.TOKEN not in out + err


def test_pull_keeps_the_cache_or_writes_a_file(hub, delta, tmp_path):
    put(hub, {"delta.safetensors": delta.read_bytes()}, revision="v2")
    put(hub, {"delta.safetensors": b"another"})
    cached = pull("some/digits", revision="v2")
    assert cached.is_relative_to(constants.HF_HUB_CACHE)
    assert cached.read_bytes() == delta.read_bytes()
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    assert pull("hf://some/digits@v2", out) == out
    assert out.read_bytes() == delta.read_bytes()
    assert not out.is_symlink()
    place = "/proc/x/d.safetensors"
    refused(StorageError, f"cannot write {place}", lambda: pull("some/digits@v2", place))


def test_a_folder_as_the_hub_holds_it(tmp_path, hub):
    net, folder = small(), tmp_path / "new" / "folder"
    st.save_pretrained(net, folder, classes=list("abcdefghij"))
    assert {path.name for path in folder.iterdir()} == {"delta.safetensors", "README.md"}
    assert st.inspect(folder / "delta.safetensors").classes == tuple("abcdefghij")
    card = (folder / "README.md").read_text()
    assert 'net = st.load("delta.safetensors")' in card
    assert same(st.from_pretrained(folder), net)
    assert not hub.asked
    st.push(folder / "delta.safetensors", "some/digits")
    assert same(st.from_pretrained("some/digits"), net)
    refused(ConfigError, FORM, lambda: st.from_pretrained(tmp_path / "nothing"))


def test_a_users_own_model(hub, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    plain = {name: value.clone() for name, value in module.state_dict().items()}
    net = st.adapt_(module, st.Learn(fraction=0.5))
    st.push(net, "some/own")
    card = files(hub, "some/own")["README.md"].decode()
    assert 'net = st.load("hf://some/own", module=net)' in card
    fresh = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    fresh.load_state_dict(plain)
    assert same(st.from_pretrained("some/own", fresh), net)


def test_errors_keep_their_cause(hub):
    with pytest.raises(HubError) as caught:
        st.load("hf://some/nothing")
    assert "RepositoryNotFoundError" in "".join(traceback.format_exception(caught.value))
