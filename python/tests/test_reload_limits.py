"""Limits that the channel's two ends and the guest's processes hold, changed while all of them are busy."""

from __future__ import annotations

import fcntl
import json
import sys
import tempfile
import termios
import unittest
from pathlib import Path

import pyisolate as psi

from .guests import GuestTest, run_runtime, wait_for

MIB = 1 << 20
CAP_SYS_RESOURCE = 24
RAISES = bool(int(Path("/proc/self/status").read_text().partition("CapEff:\t")[2].split()[0], 16) >> CAP_SYS_RESOURCE & 1)

TRY = """
def attempt(size):
    try: post(b"x" * size)
    except ValueError as error: return "too large" if "policy key message" in str(error) else str(error)
    return "sent"
def until(size, wanted, times=1 << 30):
    while times:
        got = attempt(size)
        if got == wanted: break
        times -= 1
    post(got)
"""
# What an honest agent holds, taken out of the way.
HOSTILE = """
session = post.__self__
session.reloaded.look = lambda: False
session.reloaded.takers.clear()
"""
OPEN = """
import os, resource, subprocess, sys
SOURCE = '''
import resource
def limits(): return resource.getrlimit(resource.RLIMIT_NOFILE)
def raising(to):
    for soft, hard in (to, to), (to, limits()[1]):
        try: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)); return "raised"
        except (ValueError, OSError) as error: why = type(error).__name__
    return why
'''
WAIT = SOURCE + "import sys\\nfor line in sys.stdin: exec(line); sys.stdout.flush()"
exec(SOURCE)
def opens():
    held = []
    try:
        while len(held) < 2000: held.append(os.open("/dev/null", 0))
    except OSError: pass
    for fd in held: os.close(fd)
    return len(held)
def child():
    return subprocess.run([sys.executable, "-I", "-S", "-c", SOURCE + "print(limits())"], capture_output=True, text=True).stdout.strip()
def ask(line):
    sleeper.stdin.write(line + "\\n"); sleeper.stdin.flush()
    return sleeper.stdout.readline().strip()
"""


def unread(sandbox: psi.Sandbox) -> int:
    """What the guest has sent and nobody has read, in bytes."""
    return int.from_bytes(fcntl.ioctl(sandbox._channel.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


class Message(GuestTest):
    def test_raised_and_lowered(self) -> None:
        sandbox = self.spawn({"message": "1MiB"})
        sandbox.exec(TRY)
        self.assertEqual(sandbox.call("attempt", 2 * MIB), "too large")
        with self.assertRaisesRegex(psi.SandboxError, "policy key message"):
            sandbox.call("len", b"x" * 2 * MIB)
        sandbox.update_policy({"message": "4MiB"})
        self.assertEqual(sandbox.limits["message"], 4 * MIB)
        self.assertEqual(sandbox.call("attempt", 2 * MIB), "sent")
        self.assertEqual(len(sandbox.recv(10)), 2 * MIB)
        self.assertEqual(sandbox.call("len", b"x" * 2 * MIB), 2 * MIB)
        self.assertEqual(len(sandbox.call("bytes", 3 * MIB)), 3 * MIB)
        sandbox.update_policy({"message": "2KiB"})
        self.assertEqual(sandbox.call("attempt", 4096), "too large")
        self.assertEqual(sandbox.call("attempt", 2 * MIB), "too large")
        with self.assertRaisesRegex(psi.SandboxError, "policy key message"):
            sandbox.call("bytes", 3 * MIB)
        with self.assertRaisesRegex(psi.SandboxError, "policy key message"):
            sandbox.call("len", b"x" * 4096)

    def test_a_guest_that_sends_all_the_time(self) -> None:
        # Every value is as large as the guest is allowed, in the moment in which it begins; none may be held against it.
        sandbox = self.spawn({"message": "2MiB", "mem": "1GiB"})
        sandbox.exec(
            "import threading, time\nsent = 0\nending = False\ndef send():\n global sent\n while not ending:\n"
            "  try: post(b'x' * (2 << 20) if sent % 2 else 'y' * (1 << 20))\n  except ValueError: time.sleep(0.001)\n  sent += 1\n"
            "for _ in range(2): threading.Thread(target=send, daemon=True).start()\n"
        )
        for size in ("300KiB", "2MiB", "100KiB", "50KiB", "2MiB") * 4:
            sandbox.update_policy({"message": size, "mem": "1GiB"})
            for _ in range(9):
                try:
                    sandbox.recv(0.02)
                except psi.TimeoutError:
                    break
        sandbox.exec("ending = True")
        self.assertTrue(sandbox.alive)

    def test_what_was_under_way_is_received(self) -> None:
        sandbox = self.spawn({"message": "1MiB"})
        sandbox.exec("from threading import Thread\npost.__self__.channel.memfds = False\n"
                     "Thread(target=lambda: [post('x' * 900000) for _ in range(3)], daemon=True).start()")
        self.assertTrue(wait_for(lambda: unread(sandbox) > 60000, 60))
        sandbox.update_policy({"message": "100KiB"})
        self.assertEqual(len(sandbox.recv(10)), 900000)
        with self.assertRaises(psi.TimeoutError):
            sandbox.recv(0.3)
        self.assertTrue(sandbox.alive)

    def test_a_guest_that_goes_on_with_the_old_limit(self) -> None:
        for memfds in ("False", "True"):  # in the channel, and beside it
            sandbox = self.spawn({"message": "1MiB"})
            sandbox.exec(HOSTILE, timeout=10)
            sandbox.update_policy({"message": "100KiB"})
            sandbox.exec(f"session.channel.memfds = {memfds}\nfor _ in range(9): post('x' * 900000)")
            received = 0
            with self.assertRaisesRegex(psi.SandboxError, "was killed.*(at most 167936|to 167936) are allowed"):
                while True:
                    self.assertEqual(len(sandbox.recv(10)), 900000)
                    received += 1
            self.assertLess(received, 4)  # what was about to be sent, and what fits into the socket
            self.assertFalse(sandbox.alive)

    def test_a_guest_that_raises_its_own_limit(self) -> None:
        sandbox = self.spawn({"message": "100KiB"})
        sandbox.exec(HOSTILE + "session.message = 1 << 30\npost('x' * 900000)")
        with self.assertRaisesRegex(psi.SandboxError, "was killed.* 167936 are allowed"):
            sandbox.recv(10)

    def test_changed_by_another_connection(self) -> None:
        sandbox = self.spawn({"message": "100KiB"})
        sandbox.exec(TRY)
        for size, wanted in (("2MiB", "sent"), ("100KiB", "too large"), ("3MiB", "sent")):
            sandbox.exec(f"until({MIB}, {wanted!r})")
            applied = run_runtime("policy", "apply", sandbox.id, "-", stdin=json.dumps({"message": size}))
            self.assertEqual((applied.returncode, applied.stderr), (0, ""))
            while (found := sandbox.recv(10)) != wanted:
                self.assertEqual(len(found), MIB)
        self.assertTrue(wait_for(lambda: bool(sandbox.limits["message"] == 3 * MIB)))


class Output(GuestTest):
    def test_raised_and_lowered(self) -> None:
        sandbox = self.spawn({"output": "2KiB"})
        sandbox.exec("def say(n): print('x' * (n - 1))", timeout=10)
        sandbox.call("say", 3000)
        self.assertEqual(len(sandbox.stdout), 2048)
        sandbox.update_policy({"output": "4KiB"})
        sandbox.call("say", 1024)
        self.assertEqual(len(sandbox.stdout), 3072)
        sandbox.update_policy({"output": "1KiB"})
        sandbox.call("say", 100)
        self.assertEqual(len(sandbox.stdout), 3072)
        sandbox.update_policy({"output": "8KiB"})
        sandbox.call("say", 9000)
        self.assertEqual(len(sandbox.stdout), 8192)


class OpenFiles(GuestTest):
    def test_lowered_for_every_process_and_not_to_be_raised(self) -> None:
        sandbox = self.spawn({"open_files": 256})
        sandbox.exec(OPEN + "sleeper = subprocess.Popen([sys.executable, '-I', '-S', '-c', WAIT], stdin=-1, stdout=-1, text=True)", timeout=20)
        self.assertEqual(sandbox.call("limits"), (256, 256))
        most = sandbox.call("opens")
        sandbox.update_policy({"open_files": 64})
        self.assertEqual(sandbox.call("limits"), (64, 64))
        self.assertLess(sandbox.call("opens"), 65)
        self.assertEqual(sandbox.call("child"), "(64, 64)")
        self.assertEqual(sandbox.call("ask", "print(limits())"), "(64, 64)")  # of a process that was there before
        for to in (65, 256, 1 << 20):
            self.assertIn(sandbox.call("raising", to), ("ValueError", "PermissionError"))
            self.assertEqual(sandbox.call("ask", f"print(raising({to}))"), "ValueError")
        self.assertEqual(sandbox.call("limits"), (64, 64))
        if RAISES:
            sandbox.update_policy({"open_files": 256})
            self.assertEqual(sandbox.call("opens"), most)
            self.assertEqual(sandbox.call("ask", "print(limits())"), "(256, 256)")
        else:
            with self.assertRaisesRegex(psi.PolicyError, "open_files cannot rise from 64 to 256: .*CAP_SYS_RESOURCE"):
                sandbox.update_policy({"open_files": 256, "mem": "99MiB"})
            self.assertEqual((sandbox.limits["open_files"], sandbox.call("limits")), (64, (64, 64)))

    def test_a_reload_that_fails_lowers_nothing(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "both.yml")
            path.write_text("message: 1MiB\n")
            sandboxes = [self.spawn(path), self.spawn(path)]
            for each in sandboxes:
                each.exec(TRY + OPEN)
                before = each.call("limits")
            sandboxes[0].exec("hog = bytearray(60 << 20)", timeout=20)
            for each in sandboxes:
                each.exec(f"until({MIB // 2}, 'too large', 300)")
            for _ in range(3):
                path.write_text("message: 100KiB\noutput: 1KiB\nopen_files: 32\nmem: 16MiB\n")
                with self.assertRaisesRegex(psi.SandboxError, "memory"):
                    psi.policy.refresh(path)
            for each in sandboxes:
                for _ in range(300):
                    self.assertEqual(len(each.recv(20)), MIB // 2)
                self.assertEqual(each.recv(20), "sent")
                self.assertEqual((each.call("limits"), each.limits["message"]), (before, MIB))
                each.exec("print('y' * 5000)", timeout=10)
                self.assertGreater(len(each.stdout), 5000)


if __name__ == "__main__":
    unittest.main()
