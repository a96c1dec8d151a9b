"""Guests that podman runs: the same handle, the same outcomes, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import ClassVar, List, Optional, Sequence, Union

import pyisolate as psi

from .guests import GuestTest, run_runtime, wait_for

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = os.environ.get("PSI_RUNTIME") or str(ROOT / "bin" / "psi-runtime")

# The pipe to the host inside a guest, for code that attacks it.
FIND_PIPE = """
import fcntl, os, stat, struct, time
def pipes(mode):
    for fd in range(1024):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode) and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == mode:
                yield os.fstat(fd).st_ino, fd
        except OSError:
            pass
own = {os.fstat(1).st_ino, os.fstat(2).st_ino, *dict(pipes(os.O_RDONLY))}  # captured output, and the agent's pipe to itself
channel = [fd for inode, fd in pipes(os.O_WRONLY) if inode not in own][-1]
os.set_blocking(channel, True)
"""
# A guest that hears neither SIGTERM nor the end of its channel. (In a post, outside a try, it would.)
DEAF = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
said = False
while True:
    try:
        if not said:
            said = True
            post('deaf')
        time.sleep(1)
    except BaseException:
        pass
"""


def tearDownModule() -> None:
    if hasattr(PodmanTest, "podman"):
        end_bridges()
        subprocess.run([*PodmanTest.podman, "system", "reset", "--force"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(PodmanTest.directory, ignore_errors=True)


def end_bridges() -> None:
    """They would live on with this process, and other tests count its supervisors."""
    supervision = psi._supervision
    for place, connection in list(supervision._connections.items()):
        if isinstance(place, tuple):
            connection.close()
    wait_for(lambda: not any("bridge" in each.args and each.poll() is None for each in supervision._processes))
    supervision._reap()


class PodmanTest(GuestTest):
    """They share a podman storage of their own with a guest image in it."""

    directory: ClassVar[str]
    podman: ClassVar[List[str]]

    @classmethod
    def setUpClass(cls) -> None:
        if not shutil.which("podman"):
            if "PSI_TEST_VM" in os.environ:
                raise unittest.SkipTest("the test machine has no podman: engines are tested on the host")
            raise AssertionError("podman is missing: run `make setup`")
        super().setUpClass()
        if not hasattr(PodmanTest, "podman"):
            PodmanTest.make_storage()
        os.environ["PSI_PODMAN"] = " ".join(cls.run_command())

    @classmethod
    def make_storage(cls) -> None:
        cls.directory = tempfile.mkdtemp(prefix="psi-engine-")
        cls.podman = [
            "podman", "--root", cls.directory + "/storage", "--runroot", cls.directory + "/run", "--storage-driver", "vfs",
            "--cgroup-manager", "cgroupfs",
        ]  # fmt: skip
        image = cls.directory + "/image.tar"
        build = [RUNTIME, "rootfs", "build", "--python", "/usr/bin/python3.11", "--format", "oci", "-o", image]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*cls.podman, "load", "-q", "-i", image], check=True, stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls) -> None:
        try:
            super().tearDownClass()
            if not wait_for(lambda: not cls.containers(), 10):
                raise AssertionError(f"containers are left: {cls.containers()}")
        finally:
            del os.environ["PSI_PODMAN"]

    @classmethod
    def run_command(cls, runtime: str = RUNTIME, flags: Sequence[str] = ()) -> List[str]:
        """Hard limits cannot be raised on every test machine; podman would try."""
        return [
            *cls.podman, "--runtime", runtime, "run", "-i", "--rm", "--network", "none", "--ulimit", "nproc=1024:1024",
            *flags, "localhost/psi-python:3.11",
        ]  # fmt: skip

    @classmethod
    def containers(cls) -> List[str]:
        listed = subprocess.run([*cls.podman, "ps", "-aq"], check=True, stdout=subprocess.PIPE, text=True)
        return listed.stdout.split()

    def spawn(
        self,
        policy: "psi._request.PolicyLike" = None,
        allowed_imports: Optional[Sequence[str]] = None,
        name: Optional[str] = None,
        engine: Union[str, Sequence[str], None] = "podman",
    ) -> psi.Sandbox:
        sandbox = psi.spawn(name or f"pod-{time.monotonic_ns()}", policy, allowed_imports, engine=engine)
        self.ids.add(sandbox.id)
        self.addCleanup(sandbox.close)
        return sandbox

    def end_of(self, sandbox: psi.Sandbox, within: float = 10.0) -> psi.SandboxError:
        while True:
            try:
                sandbox.recv(timeout=within)
            except psi.GuestError:
                continue
            except psi.SandboxError as error:
                self.assertNotIsInstance(error, psi.TimeoutError)
                return error

    def event_of(self, sandbox: psi.Sandbox) -> psi.Event:
        async def first() -> psi.Event:
            while True:
                _, who, event = await asyncio.wait_for(psi.events.__anext__(), 10)
                if who is sandbox:
                    return event

        return asyncio.run(first())


class Podman(PodmanTest):
    def test_the_same_calls(self) -> None:
        with self.spawn({"mem": "128MiB"}) as sb:
            sb.exec("from math import sqrt; post(sqrt(2))")
            self.assertEqual(sb.recv(timeout=5), 2**0.5)
            self.assertEqual(sb.call("math.hypot", 3, 4), 5.0)
            sb.exec("while True: post(recv() * 2)")
            sb.post("x" * 5_000_000)
            self.assertEqual(len(sb.recv(timeout=10)), 10_000_000)
            sb.interrupt()
            with self.assertRaises(psi.GuestError):
                sb.recv(timeout=5)
            sb.exec("print('out'); 1 / 0")
            with self.assertRaises(ZeroDivisionError):
                sb.recv(timeout=5)
            self.assertEqual(sb.stdout, "out\n")
            with self.assertRaises(psi.TimeoutError):
                sb.exec("while True: pass", timeout=0.2)
            stats = sb.stats
            self.assertTrue(50 < stats.cpu_ms < 60_000, stats)
            self.assertTrue(1 << 20 < stats.mem_bytes < 128 << 20, stats)
            self.assertTrue(1 <= stats.pids <= 64, stats)
            self.assertIs(psi.list_active()[sb.name], sb)
            with self.assertRaisesRegex(psi.SandboxError, "active"):
                self.spawn(name=sb.name)
        self.assertFalse(sb.alive)
        self.assertEqual(self.containers(), [])

    def test_what_the_policy_says(self) -> None:
        sb = self.spawn({"open_files": 77, "pids": 20, "tmp": "1MiB", "imports": ["os", "resource", "errno", "math"]})
        self.assertEqual(sb.call("resource.getrlimit", 7), (77, 77))
        sb.exec("import socket")
        with self.assertRaises(ImportError):
            sb.recv(timeout=5)
        sb.exec("open('/tmp/x', 'wb').write(b'x' * (2 << 20))")
        with self.assertRaises(OSError):
            sb.recv(timeout=5)
        for place in ("/usr/x", "/run/x", "/etc/hosts", "/proc/sys/kernel/core_pattern"):
            sb.exec(f"open({place!r}, 'w').write('x')")
            with self.assertRaises(OSError):
                sb.recv(timeout=5)
        self.assertNotEqual(sb.call("os.getuid"), 0)
        self.assertTrue(all(not int(line.split()[1], 16) for line in self.status(sb) if line.startswith("Cap")))

    def status(self, sb: psi.Sandbox) -> List[str]:
        sb.exec("post(open('/proc/self/status').read().splitlines())")
        lines: List[str] = sb.recv(timeout=5)
        return lines

    def test_limits_end_it_with_their_cause(self) -> None:
        sb = self.spawn({"mem": "64MiB"})
        sb.exec("x = bytearray(200 << 20)")
        error = self.end_of(sb)
        self.assertIsInstance(error, psi.MemoryExceeded)
        self.assertEqual(self.event_of(sb), "MEM_KILL")
        sb = self.spawn({"cpu_ms": 1500})
        sb.exec("while True: pass")
        error = self.end_of(sb)
        self.assertIsInstance(error, psi.CPUExceeded)
        self.assertGreaterEqual(error.observed or 0, 1500)
        self.assertEqual(self.event_of(sb), "CPU_THROTTLE")
        self.assertEqual(self.end_of(self.spawn({"wall_ms": 2000})).cause, "wall")

    def test_denials_are_events(self) -> None:
        sb = self.spawn()
        sb.exec("import socket\nwith socket.socket() as s:\n    s.connect(('127.0.0.1', 9))")
        with self.assertRaises(PermissionError):
            sb.recv(timeout=5)
        event = self.event_of(sb)
        self.assertEqual(event, "DENIED")
        self.assertEqual((event.details["address"], event.details["errno"], event.details["rule"]), ("127.0.0.1:9", "EPERM", None))

    def test_a_policy_is_applied_to_the_container(self) -> None:
        """Nobody asks for it here: the client hears of it, and of nothing when it is refused."""
        sb = self.spawn({"mem": "64MiB"})
        listed = subprocess.run([*self.podman, "ps", "-q", "--no-trunc", "--latest"], check=True, stdout=subprocess.PIPE, text=True)
        refused = run_runtime("policy", "apply", listed.stdout.strip(), "-", stdin='{"mem": "48MiB", "message": "1MiB"}')
        self.assertEqual(refused.returncode, 1)
        self.assertIn("message cannot change in a running container", refused.stderr)
        done = run_runtime("policy", "apply", listed.stdout.strip(), "-", stdin='{"mem": "48MiB"}')
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        event = self.event_of(sb)
        self.assertEqual((event, event.details["limits"]["mem"]), ("POLICY_HOTLOAD", 48 << 20))
        sb.exec("x = bytearray(56 << 20)")
        self.assertIsInstance(self.end_of(sb), psi.MemoryExceeded)

    def test_files_that_the_command_mounts(self) -> None:
        """The policy gives nothing, and holds what the engine's command gives."""
        data = Path(self.directory) / "data"
        (data / "open").mkdir(parents=True)
        (data / "open" / "a.csv").write_text("1,2\n")
        (data / "other").mkdir()
        (data / "other" / "b.csv").write_text("3,4\n")
        data.chmod(0o777)
        mounted = self.run_command(flags=["-v", f"{data}:/data"])
        with self.assertRaisesRegex(psi.SandboxError, "no fs rule allows the mount"):
            self.spawn(engine=mounted)
        # Of what an engine mounts, both places have to be allowed: on the host and in the guest.
        sb = self.spawn({"fs": [f"{data}/open/**", "/data/open/**"]}, engine=mounted)
        sb.exec("post(open('/data/open/a.csv').read())")
        self.assertEqual(sb.recv(timeout=5), "1,2\n")
        for attempt in ("open('/data/other/b.csv')", "open('/data/open/new', 'w')", "open('/data/new', 'w')"):
            sb.exec(attempt)
            with self.assertRaises(OSError):
                sb.recv(timeout=5)

    def test_what_an_engine_cannot_hold_is_refused(self) -> None:
        for policy, key in (({"fs": ["/srv/data/*.csv"]}, "fs"), ({"tcp": ["127.0.0.1:80"]}, "tcp")):
            with self.assertRaisesRegex(psi.PolicyError, key):
                self.spawn(policy)
        with self.assertRaisesRegex(psi.PolicyError, "spawn a new guest"):
            self.spawn().update_policy({"mem": "64MiB"})
        with self.assertRaisesRegex(psi.PolicyError, "reads no policy"):
            self.spawn(engine=self.run_command("runc"))
        with self.assertRaisesRegex(psi.PolicyError, "--memory is in the engine's command"):
            self.spawn(engine=self.run_command(flags=["--memory", "1g"]))

    def test_what_cannot_be_started_says_why(self) -> None:
        for engine, says in (
            ("docker", "list of words"),
            ([*self.podman, "run", "image"], "without -i"),
            ([*self.run_command()[:-1], "--pull=never", "localhost/no-such-image"], "no-such-image"),
            ([*self.podman, "start", "-ai", "no-such-container"], "no-such-container"),
        ):
            with self.assertRaisesRegex(psi.SandboxError, says):
                self.spawn(engine=engine)

    def test_any_command_whose_stdio_is_a_guest(self) -> None:
        create = [*self.run_command(flags=["--ulimit", "nofile=1024:1024", "--name", "made-before"])]
        create[create.index("run")] = "create"
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL)
        attach = [*self.podman, "start", "--attach", "--interactive", "made-before"]
        with self.assertRaisesRegex(psi.PolicyError, "cannot be given a policy"):
            self.spawn({"mem": "64MiB"}, engine=attach)
        sb = self.spawn(engine=attach)
        self.assertEqual(sb.call("abs", -7), 7)
        with self.assertRaisesRegex(psi.SandboxError, "ask that engine"):
            sb.stats
        sb.close(timeout=5)
        self.assertTrue(wait_for(lambda: not self.containers(), 10))


class Ends(PodmanTest):
    def assert_gone(self) -> None:
        self.assertTrue(wait_for(lambda: not self.containers(), 10), self.containers())

    def test_exit_codes(self) -> None:
        for code in (3, 125, 127):
            sb = self.spawn()
            with self.assertRaisesRegex(psi.SandboxError, f"exit code {code}"):
                sb.call("os._exit", code)
            self.assertEqual(self.end_of(sb).cause, "exit")

    def test_a_deaf_guest_is_killed_after_the_timeout(self) -> None:
        sb = self.spawn()
        sb.exec(DEAF)
        self.assertEqual(sb.recv(timeout=5), "deaf")
        started = time.monotonic()
        sb.close(timeout=0.3)
        self.assertGreater(time.monotonic() - started, 0.3)
        self.assertLess(time.monotonic() - started, 5)
        self.assert_gone()

    def test_a_broken_channel(self) -> None:
        for attack, says in (
            ("os.write(channel, b'not a frame at all' * 100)", "frame of type"),
            ("os.write(channel, struct.pack('!IBBHI', 0xffffffff, 20, 0, 0, 0))", "4294967295 bytes"),
            ("os.write(channel, struct.pack('!IBBHI', 9, 20, 0, 0, 0) + b'\\x80\\x04r\\xff\\xff\\xff\\xff\\x00.')", "first byte"),
        ):
            sb = self.spawn()
            sb.exec(FIND_PIPE + attack + "\ntime.sleep(100)")
            error = self.end_of(sb)
            self.assertEqual(error.cause, "broken", error)
            self.assertRegex(str(error), says)
            self.assertEqual(self.event_of(sb), "BROKER_ERROR")
        self.assert_gone()

    def test_a_guest_that_closes_its_channel_and_goes_on(self) -> None:
        """Podman does not say that it has: to its host this guest is silent."""
        sb = self.spawn()
        sb.exec(FIND_PIPE + "os.close(channel)\n" + DEAF.replace("post('deaf')", "pass"))
        with self.assertRaises(psi.TimeoutError):
            sb.recv(timeout=1)
        sb.close()
        self.assert_gone()

    def test_podman_is_killed(self) -> None:
        sb = self.spawn()
        sb.exec(DEAF)
        self.assertEqual(sb.recv(timeout=5), "deaf")
        os.kill(self.pid_of("podman", "run"), signal.SIGKILL)
        error = self.end_of(sb)
        self.assertEqual(error.cause, "supervisor", error)
        self.assertIn("podman ended before its container", str(error))
        self.assert_gone()

    def test_the_bridge_is_killed(self) -> None:
        sb = self.spawn()
        sb.exec(DEAF)
        self.assertEqual(sb.recv(timeout=5), "deaf")
        os.kill(self.pid_of("psi-shim", "bridge"), signal.SIGKILL)
        self.assertEqual(self.end_of(sb).cause, "supervisor")
        self.assert_gone()
        self.assert_works(self.spawn())  # by another bridge

    def test_the_client_is_killed(self) -> None:
        code = f"import pyisolate as psi\nsb = psi.spawn('orphan', engine='podman')\nsb.exec({DEAF!r})\n" \
            "print(sb.recv(), flush=True)\nsb.recv()"
        client = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "python")})
        with client:
            assert client.stdout is not None
            self.assertEqual(client.stdout.readline(), b"deaf\n")
            client.kill()
        self.assert_gone()

    def test_several_at_once(self) -> None:
        made: List[psi.Sandbox] = []
        threads = [threading.Thread(target=lambda: made.append(self.spawn())) for _ in range(3)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        self.assertEqual([sb.call("abs", -n) for n, sb in enumerate(made)], [0, 1, 2])

    def pid_of(self, *words: str) -> int:
        """The child (of this process or of its bridge) whose command line has these words."""
        for place in Path("/proc").glob("[0-9]*"):
            try:
                line = (place / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if line[0].endswith(words[0]) and all(each in line for each in (*words[1:], self.directory + "/storage")):
                return int(place.name)
        raise AssertionError(f"no process with {words}")
