"""Another policy for sandboxes that run, and what is told about denials."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import List, Tuple

import pyisolate as psi
from pyisolate import _locate
from pyisolate._events import EventLog

from .guests import GuestTest, run_runtime, runtime, wait_for

LICENSES = "/usr/share/common-licenses"
READ = f"""
def read(name):
    try: return len(open("{LICENSES}/" + name).read()) > 0
    except OSError as error: return type(error).__name__
"""
CONNECT = """
import socket
def connect(address, port):
    try:
        with socket.create_connection((address, port), 5): return "connected"
    except OSError as error: return type(error).__name__
"""
# The name of a process is its own to choose, and may hold what a terminal obeys.
HOSTILE = r"open('/proc/self/comm', 'wb').write(b'\x1b[2J\n\xc2\x9b')"


async def next_events(sandbox: psi.Sandbox, name: str, count: int) -> List[Tuple[float, psi.Event]]:
    found: List[Tuple[float, psi.Event]] = []
    async for ts, whose, event in psi.events:
        if whose is sandbox and event == name:
            found.append((ts, event))
            if len(found) == count:
                break
    return found


def await_events(sandbox: psi.Sandbox, name: str, count: int = 1) -> List[Tuple[float, psi.Event]]:
    """The next events of this name about the sandbox."""
    return asyncio.run(asyncio.wait_for(next_events(sandbox, name, count), 20))


class UpdatePolicy(GuestTest):
    def test_limits_files_and_imports(self) -> None:
        sandbox = self.spawn(psi.Policy(mem="64MiB").allow_import("math").allow_import("json"))
        sandbox.update_policy(psi.Policy(mem="64MiB").allow_import("json"))
        await_events(sandbox, "POLICY_HOTLOAD")
        sandbox.exec(READ)
        self.assertEqual(sandbox.call("read", "GPL-3"), "FileNotFoundError")
        sandbox.exec("import math")
        with self.assertRaises(ImportError):
            sandbox.recv(timeout=10)
        sandbox.update_policy(psi.Policy(mem="300MiB").allow_fs(LICENSES).allow_import("math"))
        self.assertTrue(sandbox.call("read", "GPL-3"))
        sandbox.exec("import math; x = bytearray(150 << 20); post(len(x))")
        self.assertEqual(sandbox.recv(timeout=20), 150 << 20)
        (_, event), *rest = await_events(sandbox, "POLICY_HOTLOAD")
        self.assertEqual((sorted(event.details), rest), (["former_digest", "limits", "policy_digest"], []))
        self.assertNotEqual(event.details["former_digest"], event.details["policy_digest"])

    def test_what_cannot_change_is_named_and_nothing_has_changed(self) -> None:
        sandbox = self.spawn(psi.Policy(mem="64MiB"))
        sandbox.exec(READ)
        wider = psi.Policy(mem="300MiB").allow_fs(LICENSES).to_dict()
        for key, value in (("preload", ["math"]), ("tmp", 0), ("imports", ["math"])):
            with self.assertRaisesRegex(psi.PolicyError, key):
                sandbox.update_policy({**wider, key: value})
        self.assertEqual(sandbox.call("read", "GPL-3"), "FileNotFoundError")
        with self.assertRaisesRegex(psi.PolicyError, "memory"):
            sandbox.update_policy({"memory": 1})
        self.assert_works(sandbox)

    def test_a_file_held_open_is_not_taken_away(self) -> None:
        sandbox = self.spawn(psi.Policy().allow_fs(LICENSES))
        sandbox.exec(READ + f"held = open('{LICENSES}/GPL-3')", timeout=10)
        with self.assertRaisesRegex(psi.PolicyError, "something open there"):
            sandbox.update_policy(psi.Policy())
        self.assertTrue(sandbox.call("read", "GPL-2"))
        sandbox.exec("held.close()", timeout=10)
        sandbox.update_policy(psi.Policy())
        self.assertEqual(sandbox.call("read", "GPL-2"), "FileNotFoundError")

    def test_dry_run(self) -> None:
        sandbox = self.spawn(psi.Policy(mem="64MiB").allow_tcp("10.0.0.1:80"))
        changes = sandbox.update_policy(psi.Policy(mem="32MiB").allow_fs(LICENSES), dry_run=True)
        self.assertEqual(
            [(each["change"], each["key"]) for each in changes], [("permits", "fs"), ("forbids", "mem"), ("forbids", "tcp")]
        )
        sandbox.exec(READ)
        self.assertEqual(sandbox.call("read", "GPL-3"), "FileNotFoundError")


class Refresh(GuestTest):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.path = Path(directory, "policy.yaml")
        self.addCleanup(os.rmdir, directory)
        self.addCleanup(self.path.unlink)

    def test_every_sandbox_of_the_file(self) -> None:
        self.path.write_text("mem: 64MiB\n")
        one, two, other = self.spawn(self.path), self.spawn(str(self.path)), self.spawn()
        self.path.write_text(f"mem: 64MiB\nfs: [{LICENSES}]\n")
        would = psi.policy.refresh(self.path, dry_run=True)
        self.assertEqual({one.name, two.name}, set(would))
        self.assertEqual([each["key"] for each in would[one.name]], ["fs"])
        for sandbox in (one, two, other):
            sandbox.exec(READ)
            self.assertEqual(sandbox.call("read", "GPL-3"), "FileNotFoundError")
        self.assertEqual({one.name, two.name}, set(psi.policy.refresh(str(self.path))))
        for sandbox in (one, two):
            self.assertIs(sandbox.call("read", "GPL-3"), True)
        self.assertEqual(other.call("read", "GPL-3"), "FileNotFoundError")
        # One that cannot follow keeps all from following.
        two.exec(f"held = open('{LICENSES}/GPL-3')", timeout=10)
        self.path.write_text("mem: 64MiB\n")
        with self.assertRaisesRegex(psi.PolicyError, two.id):
            psi.policy.refresh(self.path)
        self.assertIs(one.call("read", "GPL-3"), True)
        two.close()
        self.assertEqual({one.name}, set(psi.policy.refresh(self.path)))
        self.assertEqual(one.call("read", "GPL-3"), "FileNotFoundError")

    def test_a_broken_file_changes_nothing(self) -> None:
        self.path.write_text("mem: 64MiB\n")
        sandbox = self.spawn(self.path)
        self.path.write_text("mem: [\n")
        with self.assertRaises(psi.PolicyError):
            psi.policy.refresh(self.path)
        self.assert_works(sandbox)
        other = self.path.with_name("other.yaml")
        other.write_text("mem: 1GiB\n")
        self.addCleanup(other.unlink)
        self.assertEqual(psi.policy.refresh(other), {})

    def test_tokens(self) -> None:
        # In a process of its own: a token is for good.
        self.path.write_text("mem: 64MiB\n")
        code = f"""
import pyisolate as psi
path = {str(self.path)!r}
with psi.spawn("before", path) as before:
    try: psi.policy.refresh(path, token="0123456789abcdef")
    except psi.PolicyAuthError: pass
    else: raise SystemExit("a token that nobody set was accepted")
    try: psi.policy.protect("short")
    except psi.PolicyError: pass
    else: raise SystemExit("a short token was accepted")
    psi.policy.protect("0123456789abcdef")
    for token in None, "", "0123456789abcdeX", "0123456789abcde":
        for attempt in (lambda: psi.policy.refresh(path, token=token), lambda: before.update_policy(path, token=token)):
            try: attempt()
            except psi.PolicyAuthError: pass
            else: raise SystemExit(f"accepted {{token!r}}")
    try: psi.policy.protect("another, long enough")
    except psi.PolicyAuthError: pass
    else: raise SystemExit("the token was changed")
    assert set(psi.policy.refresh(path, token="0123456789abcdef")) == {{"before"}}
    before.update_policy({{"pids": 9}}, token="0123456789abcdef")
print("done")
"""
        source = os.path.dirname(os.path.dirname(psi.__file__))
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True, timeout=120)
        self.assertEqual((done.stdout, done.returncode), ("done\n", 0), done.stderr)


class Denied(GuestTest):
    def test_a_denial_is_an_event(self) -> None:
        sandbox = self.spawn(psi.Policy().allow_tcp("127.0.0.1:1"))
        sandbox.exec(CONNECT)
        before = time.time()
        self.assertEqual(sandbox.call("connect", "127.0.0.1", 9), "PermissionError")
        ((ts, event),) = await_events(sandbox, "DENIED")
        self.assertTrue(before - 1 <= ts <= time.time() + 1)
        self.assertEqual(
            {key: event.details[key] for key in ("kind", "operation", "address", "errno", "rule", "suppressed")},
            {"kind": "net", "operation": "connect", "address": "127.0.0.1:9", "errno": "EPERM", "rule": None, "suppressed": 0},
        )
        json.dumps(dict(event.details))

    def test_a_flood_drops_denials_first(self) -> None:
        log = EventLog()
        sandbox: psi.Sandbox = object()  # type: ignore[assignment]
        log.publish(0.0, sandbox, psi.Event("MEM_KILL", {}))
        log.publish(0.0, sandbox, psi.Event("CPU_THROTTLE", {}))
        for _ in range(10000):
            log.publish(0.0, sandbox, psi.Event("DENIED", {}))
        names = [str(entry.item[2]) for entry in log._entries]
        self.assertLessEqual(len(names), 4096)
        self.assertEqual(names[:2], ["MEM_KILL", "CPU_THROTTLE"])


class EventsCommand(unittest.TestCase):
    def test_events_of_a_shared_supervisor(self) -> None:
        source = os.path.dirname(os.path.dirname(psi.__file__))
        with tempfile.TemporaryDirectory(dir="/run") as directory:
            os.chmod(directory, 0o711)  # guests walk through
            path = os.path.join(directory, "psi.sock")
            environ = {**os.environ, "PYTHONPATH": source, "PSI_SOCKET": path}
            shim, root = _locate.shim(os.environ), _locate.rootfs(os.environ)
            command = [shim, "serve", "--socket", path, "--group", "nogroup", "--rootfs", root, "--run-dir", directory]
            with subprocess.Popen(command) as supervisor:
                try:
                    self.assertTrue(wait_for(lambda: os.path.exists(path) and os.stat(path).st_mode & 0o777 == 0o660, 20))
                    watching = [sys.executable, "-m", "pyisolate", "events", "--type", "DENIED", "--count", "2", "wanted"]
                    with subprocess.Popen(watching, env=environ, stdout=subprocess.PIPE, text=True) as watcher:
                        self.addCleanup(watcher.kill)
                        time.sleep(1)  # until it watches
                        code = f"""
import pyisolate as psi
for name in "other", "wanted":
    with psi.spawn(name) as sb:
        sb.exec({CONNECT + HOSTILE!r}, timeout=20)
        for port in 9, 10: assert sb.call("connect", "127.0.0.1", port) == "PermissionError"
"""
                        done = subprocess.run([sys.executable, "-c", code], env=environ, timeout=60)
                        if done.returncode:
                            watcher.kill()
                        output, _ = watcher.communicate(timeout=20)
                        self.assertEqual(watcher.returncode, 0)
                finally:
                    supervisor.terminate()
        self.assertTrue(output.isascii() and output.replace("\n", "").isprintable(), output)
        events = [json.loads(line) for line in output.splitlines()]
        self.assertEqual([each["name"] for each in events], ["wanted", "wanted"])
        self.assertEqual([each["details"]["address"] for each in events], ["127.0.0.1:9", "127.0.0.1:10"])
        self.assertEqual(events[0]["details"]["command"], "\x1b[2J\n\x9b")

    def test_without_a_supervisor(self) -> None:
        source = os.path.dirname(os.path.dirname(psi.__file__))
        environ = {**os.environ, "PYTHONPATH": source}
        command = [sys.executable, "-m", "pyisolate", "events", "--socket", "/run/no-such.sock"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("/run/no-such.sock", done.stderr)


class RuntimeCommands(GuestTest):
    """psi-runtime asks the supervisor that this process has embedded, as root."""

    def test_policy_apply(self) -> None:
        sandbox = self.spawn(psi.Policy(mem="64MiB").allow_tcp("10.0.0.1:80"))
        sandbox.exec(READ)
        policy = json.dumps({"mem": "32MiB", "fs": [LICENSES + "/*"]})
        done = run_runtime("policy", "apply", "--dry-run", sandbox.id, "-", stdin=policy)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        rows = [line.split() for line in done.stdout.splitlines()]
        self.assertEqual([row[:3] for row in rows], [["+", "fs", "read"], ["-", "mem", "more"], ["-", "tcp", "connect"]], done.stdout)
        self.assertEqual(sandbox.call("read", "GPL-3"), "FileNotFoundError")
        done = run_runtime("policy", "apply", sandbox.id, "-", stdin=policy)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        self.assertIs(sandbox.call("read", "GPL-3"), True)
        done = run_runtime("policy", "apply", sandbox.id, "-", stdin='{"preload": ["math"]}')
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("preload of a running guest cannot change", done.stderr)
        for guest in "psi-0000000000000000", "../x", "":
            done = run_runtime("policy", "apply", guest, "-", stdin=policy)
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn("no supervisor of this host", done.stderr)

    def test_an_event_is_what_explain_reads(self) -> None:
        """A denial, the line of policy that explain prints for it, and that line in force: the round trip."""
        sandbox = self.spawn()
        sandbox.exec(CONNECT)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with subprocess.Popen([runtime(), "events", sandbox.id], stdout=subprocess.PIPE, text=True) as events:
                self.addCleanup(events.kill)
                time.sleep(0.5)  # until it watches
                self.assertEqual(sandbox.call("connect", "127.0.0.1", port), "PermissionError")
                assert events.stdout is not None
                event = events.stdout.readline()
                done = run_runtime("policy", "explain", "defaults", "-", stdin=event)
                self.assertEqual((done.returncode, done.stdout, done.stderr), (0, f'tcp: ["127.0.0.1:{port}"]\n', ""))
                done = run_runtime("policy", "apply", sandbox.id, "-", stdin=done.stdout)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertEqual(sandbox.call("connect", "127.0.0.1", port), "connected")
                sandbox.close()
                rest = [json.loads(line) for line in events.stdout]
                self.assertEqual(events.wait(20), 0)
        self.assertEqual([each.get("event", "exited") for each in rest], ["POLICY_HOTLOAD", "exited"])

    def test_others_may_not(self) -> None:
        sandbox = self.spawn()
        listeners = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if "@psi/supervisor/" in line]
        self.assertNotEqual(listeners, [])
        code = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for name in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(10)
        try: s.connect("\\0" + name[1:]); s.sendall(b"\\0\\0\\0\\x02{}"); print(s.recv(1))
        except OSError as error: print(b"")
"""
        done = subprocess.run([sys.executable, "-c", code, *listeners], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stdout, "b''\n" * len(listeners), done.stderr)
        self.assert_works(sandbox)


if __name__ == "__main__":
    unittest.main()
