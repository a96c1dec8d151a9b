"""The base of tests that run guests: spawns them, ends them, and looks for what they leave."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
import unittest
from pathlib import Path
from typing import Callable, ClassVar, List, Optional, Sequence, Set

import pyisolate as psi
from pyisolate import _locate

_numbers = itertools.count(1)

# The channel inside a guest, for code that attacks it: the one socket among its descriptors.
FIND_CHANNEL = """
import os, stat
channel = next(fd for fd in range(3, 1024) if os.path.exists(f"/proc/self/fd/{fd}")
               and stat.S_ISSOCK(os.stat(fd).st_mode))
import struct
def frame(kind, payload=b"", id=0, flags=0, zero=0, size=None):
    return struct.pack("!IBBHI", len(payload) if size is None else size, kind, flags, zero, id) + payload
def write(data):
    os.set_blocking(channel, True)
    while data:
        data = data[os.write(channel, data):]
"""


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def cgroups_of(ids: Set[str]) -> List[str]:
    """The cgroup directories of these guests: their names begin with the guest's."""
    found: List[str] = []
    for where, directories, _ in os.walk("/sys/fs/cgroup"):
        found.extend(os.path.join(where, each) for each in directories if each.startswith(tuple(ids)))
    return found


def rss() -> int:
    """This process's resident memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def runtime() -> str:
    """psi-runtime, which lies beside the supervisor."""
    return str(Path(_locate.shim(os.environ)).with_name("psi-runtime"))


def run_runtime(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Runs psi-runtime to its end."""
    return subprocess.run([runtime(), *arguments], input=stdin, capture_output=True, text=True, timeout=60)


class GuestTest(unittest.TestCase):
    """Guests made with ``self.spawn`` are closed after the test, and must be gone after the class."""

    ids: ClassVar[Set[str]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.ids = set()

    @classmethod
    def tearDownClass(cls) -> None:
        if not wait_for(lambda: not cgroups_of(cls.ids)):
            raise AssertionError(f"left behind: {cgroups_of(cls.ids)}")
        if psi.list_active():
            raise AssertionError(f"still active: {psi.list_active()}")

    def spawn(
        self,
        policy: "psi._request.PolicyLike" = None,
        allowed_imports: Optional[Sequence[str]] = None,
        name: Optional[str] = None,
    ) -> psi.Sandbox:
        """A guest of this test."""
        sandbox = psi.spawn(name or f"test-{os.getpid()}-{next(_numbers)}", policy, allowed_imports)
        self.ids.add(sandbox.id)
        self.addCleanup(sandbox.close)
        return sandbox

    def assert_works(self, sandbox: psi.Sandbox) -> None:
        """The guest answers."""
        self.assertEqual(sandbox.call("abs", -7), 7)
