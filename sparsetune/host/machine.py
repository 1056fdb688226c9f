"""This machine: its devices and memory, and what a measurement was taken on."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sparsetune.errors import ConfigError

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of what ``mallopt`` sets."""
CONTAINERS = ("", "memory")
OLD_NAMES = ("memory.limit_in_bytes", "memory.usage_in_bytes")
"""Where Linux tells the limits of a container, of both versions, and the older one's names of files."""
LIMITS = {"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}
"""Limits that a process may have, and what is measured by them."""
KEPT = 2**30
"""Bytes: blocks up to this size come from memory that is kept, and so much free memory is."""


def pick_device(name: str | None = None) -> torch.device:
    """Return the device of that name; without one CUDA where there is any, else the CPU.

    Raises:
        ConfigError: When this machine has no such device.
    """
    import torch  # late, here and below: a command line is read without it

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(chosen)
    except RuntimeError as error:
        raise ConfigError(f"device '{chosen}' is unknown; say cpu, cuda, cuda:1 or leave it out.") from error
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise ConfigError(
            f"device '{chosen}' cannot be used here ({reason}); say cpu, or leave it out."
        ) from error
    return device


def is_main() -> bool:
    """Whether this process, of several that a launcher started, is the one that writes and speaks."""
    return int(os.environ.get("RANK", 0)) == 0


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device; 0 where nothing tells it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if device.type == "cpu" else 0
    except (AttributeError, ValueError, OSError):
        return 0


def usable_bytes(asked: int | None = None) -> int | None:
    """Return how much memory one model may take here: what was asked for; ``None`` where nothing tells it.

    Where nothing was, that is half of what is free: of the system, below a container's limit, and below the
    process's own. The other half is for what is done with the model.
    """
    if asked is not None:
        return asked
    containers = (_left_in(Path("/sys/fs/cgroup") / folder) for folder in CONTAINERS)
    found = [_told_by_system(), *containers, *(_left_of(*limit) for limit in LIMITS.items())]
    free = min((each for each in found if each is not None), default=None)
    return None if free is None else free // 2


def taken_bytes(what: str) -> int | None:
    """Return a figure of this process in Linux's ``/proc/self/status``, such as ``VmData``."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{what}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else None


def _left_of(limit: str, what: str) -> int | None:
    """What a limit of the process leaves."""
    with suppress(ImportError):
        import resource  # there is none on Windows

        most, taken = resource.getrlimit(getattr(resource, limit))[0], taken_bytes(what)
        if most != resource.RLIM_INFINITY and taken is not None:
            return max(most - taken, 0)
    return None


def _told_by_system() -> int | None:
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _left_in(container: Path) -> int | None:
    """What a container's limit leaves: its files hold numbers, or a word where there is no limit."""
    names = ("memory.max", "memory.current") if container.name == "cgroup" else OLD_NAMES
    try:
        limit, taken = (int((container / name).read_text()) for name in names)
        kept = re.search(
            r"^(?:total_)?inactive_file (\d+)$", (container / "memory.stat").read_text(), re.MULTILINE
        )
    except (OSError, ValueError):
        return None
    return max(limit - taken + (int(kept[1]) if kept else 0), 0)


def describe_machine() -> dict[str, object]:
    """Return processor, threads, accelerator, versions, commit and today's date, as plain JSON values."""
    import torch

    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in ("sparsetune", "torch", "timm")}
        | {"python": platform.python_version()},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; ``None`` for an installed one."""
    folder = Path(__file__).parents[1]
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h", "--", "."]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees, instead of taking each page from the system anew.

    A training step frees what the next one needs, but glibc gives blocks above 32 MiB back to the system at
    once, and zeroing their pages anew was 11 to 16 % of a step of WRN-28-4 at batch 128. The setting lasts as
    long as the process.

    Returns:
        Whether the C library is glibc and took the setting; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)
    return all(library.mallopt(setting, KEPT) for setting in settings)
