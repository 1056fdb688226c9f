import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from forge import bare
from safetensors.numpy import save

from sparsetune.errors import StorageError
from sparsetune.host.files import metadata, replacing, write_bytes, write_text


def in_child(work):
    """Run ``work`` in a forked child; give its exit status."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = work() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_writes_into_folders_that_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_file_has_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_bytes(tmp_path / "ours", b"x")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_exception_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def work():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        work()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_name_fits(tmp_path):
    path = tmp_path / ("n" * 250)
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("name", ["folder", "device"])
def test_only_a_plain_file_is_replaced(tmp_path, name):
    target = tmp_path / name
    target.mkdir() if name == "folder" else os.mkfifo(target)
    kind = target.stat().st_mode
    with pytest.raises(StorageError, match="not a plain file"):
        write_bytes(target, b"x")
    assert target.stat().st_mode == kind
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_replaced_not_followed(tmp_path):
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "other").read_bytes() == b"other"
    assert (tmp_path / "link").read_bytes() == b"new"


@pytest.mark.parametrize("place", ["file/under", "/proc/sparsetune/file", "/dev/null/file", "n" * 300])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, place):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / place, b"x")
    message = str(caught.value)
    assert str(tmp_path / place) in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_that_grows_too_large_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            write_bytes(path, bytes(1 << 20))
        except StorageError as error:
            return 7 if os.strerror(errno.EFBIG) in str(error) else 1

    assert in_child(work) == 7
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_or_the_new_file_whole(tmp_path):
    path = tmp_path / "file"
    whole = [bytes([i]) * (4 << 20) for i in range(3)]
    write_bytes(path, whole[0])
    for _ in range(8):
        child = os.fork()
        if child == 0:
            i = 0
            while True:
                i += 1
                write_bytes(path, whole[i % 3])
        time.sleep(random.uniform(0.01, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.read_bytes() in whole


MOUNTED = """
mount -t tmpfs -o size=256k none "$1" && cd "$1" && printf old > file && {
    if [ "$2" = readonly ]; then mount -o remount,ro none "$1"; fi
    "$3" -c "$4"
    cat file; echo; ls -A
}
"""


WRITING = """
from sparsetune.host.files import write_bytes
from sparsetune.errors import StorageError
try:
    write_bytes("file", bytes(1 << 20))
except StorageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("how", "reason"), [("full", errno.ENOSPC), ("readonly", errno.EROFS)], ids=["full", "readonly"]
)
def test_a_full_or_read_only_disk_leaves_the_old_file(tmp_path, how, reason):
    code = bare("host") + WRITING
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", MOUNTED, "sh", str(tmp_path), how, sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    if "file" not in done.stdout.split():
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert done.stdout.splitlines() == [
        f"cannot write file: {os.strerror(reason)}; free space or choose another place, then try again.",
        "old",
        "file",
    ]


def test_a_safetensors_file_tells_its_texts_and_any_other_tells_none(tmp_path):
    write_bytes(tmp_path / "told", save({"x": np.ones(2)}, {"key": "text"}))
    write_bytes(tmp_path / "plain", save({"x": np.ones(2)}))
    write_bytes(tmp_path / "other", b"other")
    assert metadata(tmp_path / "told") == {"key": "text"}
    assert not any(metadata(tmp_path / name) for name in ("plain", "other", "none", "."))


def test_what_a_killed_process_left_is_swept(tmp_path):
    """Files of an hour ago, of this target alone; a file that may still be written stays."""
    target = tmp_path / "a[1].safetensors"
    for name in (
        ".a[1].safetensors.0123abcd.part",
        ".a[1].safetensors.4567abcd.part",
        ".b.safetensors.0123abcd.part",
    ):
        (tmp_path / name).write_bytes(b"half")
    for name in (".a[1].safetensors.0123abcd.part", ".b.safetensors.0123abcd.part"):
        os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    write_bytes(target, b"whole")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".a[1].safetensors.4567abcd.part", ".b.safetensors.0123abcd.part", target.name]
