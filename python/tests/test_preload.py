"""Preloaded modules that begin something when a guest is forked: it would not be held by the guest's filter."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyisolate as psi
from pyisolate import _locate

from .guests import GuestTest

_MODULES = {
    "threads_at_fork": """
import os, threading
def begin():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
os.register_at_fork(after_in_child=begin)
""",
    "forks_at_fork": """
import os, signal
begun = []
def begin():
    if os.getpid() not in begun:  # it is called again in the child
        begun.append(os.getpid())
        begun.append(os.getpid() + 1)
        os.fork() or signal.pause()
os.register_at_fork(after_in_child=begin)
""",
}
_LOOK = """
import os, sys
def lines(path):
    return [line.split()[1] for line in open(path) if line.startswith(("Seccomp:", "CapEff:", "NoNewPrivs:"))]
post([sys.modules.keys() >= {NAME}, sorted(os.listdir("/proc/self/task")),
      [lines(f"/proc/{pid}/task/{task}/status") for pid in os.listdir("/proc") if pid.isdigit() for task in os.listdir(f"/proc/{pid}/task")]])
"""


class Preload(GuestTest):
    def test_what_begins_at_a_fork(self) -> None:
        """A zygote makes no guest of it; the guest is made in another way, and all that runs in it is held."""
        with tempfile.TemporaryDirectory(prefix="psi-preload-") as directory:
            os.chmod(directory, 0o755)
            site = Path(directory, "site")
            site.mkdir()
            for name, text in _MODULES.items():
                site.joinpath(name + ".py").write_text(text)
            root = Path(directory, "root")
            runtime = Path(_locate.shim(os.environ)).with_name("psi-runtime")
            command = [str(runtime), "rootfs", "build", "--python", sys.executable, "--site-packages", str(site), "-o", str(root)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            before = os.environ.get("PSI_ROOTFS")
            psi._supervision.leave()
            os.environ["PSI_ROOTFS"] = str(root)
            try:
                for name in _MODULES:
                    for number in range(4):  # the first are made by libcontainer, until there is a zygote
                        sandbox = self.spawn({"preload": [name]}, name=f"{name}-{number}")
                        sandbox.exec(_LOOK.replace("NAME", repr(name)))
                        loaded, tasks, held = sandbox.recv(timeout=60)
                        self.assertTrue(loaded)
                        self.assertEqual({tuple(each) for each in held}, {("0000000000000000", "1", "2")}, (name, number, tasks))
                        sandbox.close()
                        time.sleep(0.3)
            finally:
                psi._supervision.leave()
                if before is None:
                    del os.environ["PSI_ROOTFS"]
                else:
                    os.environ["PSI_ROOTFS"] = before
