"""Where things are, and what the figures share: the built programs, root file systems, a supervisor of our own."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, Optional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))
os.environ.setdefault("PSI_ROOTFS", str(ROOT / "build" / "rootfs"))

import pyisolate as psi  # noqa: E402

RUNTIME = ROOT / "bin" / "psi-runtime"
SHIM = ROOT / "bin" / "psi-shim"
ROOTFS = Path(os.environ["PSI_ROOTFS"])
PYTHON = "/usr/bin/python3.11"
_PACKAGES = Path("/usr/lib/python3/dist-packages")

_numbers = itertools.count(1)


def fresh_name() -> str:
    return f"bench-{os.getpid()}-{next(_numbers)}"


def more_files() -> None:
    """A thousand guests are a thousand sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def numpy_root(work: Path, build: bool) -> Optional[Path]:
    """A root file system with numpy in it, kept from one run to the next; None if it has to be built, and must not."""
    version = hashlib.sha256((ROOTFS / "usr/lib/psi/rootfs.json").read_bytes()).hexdigest()[:16]
    kept = ROOT / "build" / "bench" / f"rootfs-numpy-{version}"
    if not (kept / "usr/lib/psi/rootfs.json").exists():
        if not build:
            return None
        site = work / "site"
        site.mkdir()
        (site / "numpy").symlink_to(_PACKAGES / "numpy")
        command = [str(RUNTIME), "rootfs", "build", "--python", PYTHON, "--site-packages", str(site), "-o", str(kept)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return kept


@contextlib.contextmanager
def supervisor(work: Path, guests: int, *flags: str) -> Iterator[None]:
    """A shared supervisor for so many guests of ours, used by what is spawned meanwhile."""
    path = str(work / f"psi-{next(_numbers)}.sock")
    process = subprocess.Popen(
        [str(SHIM), "serve", "--socket", path, "--group", "root", "--rootfs", str(ROOTFS), "--max-guests", str(guests), "--log-level", "error", *flags]
    )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while not listens(path):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("bench: psi-shim serve did not start")
            time.sleep(0.01)
        psi.connect(path)
        yield
    finally:
        psi.connect(None)
        process.terminate()
        process.wait(60)


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def answer(sandbox: psi.Sandbox) -> None:
    """The first thing that a guest is asked."""
    sandbox.exec("post(1)")
    if sandbox.recv(timeout=60) != 1:
        raise SystemExit("bench: a guest answered something else than 1")
