"""The import list in real guests: what is not on it is not in the guest's root, whatever guest code does."""

from __future__ import annotations

import unittest

import pyisolate as psi

from .guests import GuestTest

# Takes the agent's checks away, as any guest can, and says what can be loaded then.
LOAD = """
plain = __builtins__.__import__.__self__._import
__builtins__.__import__ = plain
sys = plain("sys")
sys.meta_path[:] = [each for each in sys.meta_path if type(each) is type]
def load(names):
    found = {}
    for name in names.split():
        try:
            plain(name)
            found[name] = "built in" if name in sys.builtin_module_names else "loaded"
        except ImportError as error:
            found[name] = type(error).__name__
    return found
def is_file(*names):
    os = plain("os")
    return [name for name in names if os.path.lexists(name)]
def listing(directory):
    return plain("os").listdir(directory)
"""
LIBRARY = "/usr/lib/python3.11"

# Every way that was thought of to a file of the root; each must find it in a guest that has it.
WAYS = LOAD + """
os, imp = plain("os"), plain("_imp")
LIBRARY = "/usr/lib/python3.11"
class Spec: pass
def native(path):
    spec = Spec()
    spec.name, spec.origin = "_queue", path
    return bool(imp.create_dynamic(spec))
def by_descriptors(path):
    at = os.open("/", os.O_PATH)
    for part in path.strip("/").split("/"):
        at = os.open(part, os.O_RDONLY, dir_fd=at)
    return len(os.read(at, 10))
def scan(path):
    head, _, tail = path.rpartition("/")
    return [e.name for e in os.scandir(head) if e.name == tail]
def stepped(path):
    os.chdir(os.path.dirname(path))
    try:
        return len(open(os.path.basename(path), "rb").read())
    finally:
        os.chdir("/")
def ways(path, extension):
    found = []
    tries = {
        "open": lambda: open(path, "rb").read(1),
        "/proc/self/root": lambda: open("/proc/self/root" + path, "rb").read(1),
        "/proc/1/root": lambda: open("/proc/1/root" + path, "rb").read(1),
        "/proc/thread-self/cwd": lambda: open("/proc/thread-self/cwd" + path, "rb").read(1),
        "dot dot": lambda: open("/usr/bin/../lib/./python3.11/../" + path[9:], "rb").read(1),
        "descriptors": lambda: by_descriptors(path), "scandir": lambda: scan(path), "chdir": lambda: stepped(path),
        "stat": lambda: os.lstat(path), "getxattr": lambda: os.listxattr(path) == [], "O_PATH": lambda: os.open(path, os.O_PATH),
        "native": lambda: native(extension), "exec": lambda: os.access(extension, os.R_OK),
    }
    for name, attempt in tries.items():
        try:
            if attempt():
                found.append(name)
        except (OSError, ImportError):
            pass
    return found
def changes():
    found = []
    for change in (
        lambda: os.unlink(LIBRARY + "/subprocess.py"), lambda: os.rmdir(LIBRARY + "/ctypes"), lambda: os.rename(LIBRARY + "/os.py", LIBRARY + "/x.py"),
        lambda: os.mkdir(LIBRARY + "/ctypes"), lambda: open(LIBRARY + "/subprocess.py", "w"), lambda: os.mknod(LIBRARY + "/subprocess.py"),
        lambda: os.setxattr(LIBRARY, "trusted.overlay.opaque", b"n"), lambda: os.link("/tmp/x", LIBRARY + "/subprocess.py"),
    ):
        try:
            change()
            found.append("changed")
        except OSError:
            pass
    return found
"""


class Imports(GuestTest):
    def test_math_and_nothing_else(self) -> None:
        sandbox = self.spawn({"imports": ["math"]})
        sandbox.exec("import math\npost(math.sqrt(4))\nimport ctypes")
        self.assertEqual(sandbox.recv(timeout=30), 2.0)
        with self.assertRaisesRegex(ImportError, "import of 'ctypes' is not allowed.*list allows math; add 'ctypes'"):
            sandbox.recv(timeout=30)
        sandbox.exec(LOAD)
        out = "ctypes _ctypes subprocess socket ssl _ssl mmap threading asyncio json.tool multiprocessing pickle _hashlib"
        self.assertEqual(sandbox.call("load", out), dict.fromkeys(out.split(), "ModuleNotFoundError"))
        self.assertEqual(
            sandbox.call(
                "is_file",
                f"{LIBRARY}/subprocess.py", f"{LIBRARY}/__pycache__/subprocess.cpython-311.pyc", f"{LIBRARY}/ctypes",
                "/usr/lib/x86_64-linux-gnu/libffi.so.8", "/usr/lib/x86_64-linux-gnu/libssl.so.3", f"{LIBRARY}/os.py",
            ),
            [f"{LIBRARY}/os.py"],
        )  # fmt: skip
        self.assertFalse([each for each in sandbox.call("listing", f"{LIBRARY}/lib-dynload") if "ctypes" in each])
        # What is part of the interpreter stays: SECURITY.md says so.
        self.assertEqual(set(sandbox.call("load", "posix marshal _io _thread").values()), {"built in"})

    def test_guests_beside_it_have_everything(self) -> None:
        self.spawn({"imports": ["math"]})
        sandbox = self.spawn()
        sandbox.exec("import ctypes, subprocess, socket, ssl, multiprocessing, asyncio")
        sandbox.exec("post('here')")
        self.assertEqual(sandbox.recv(timeout=30), "here")

    def test_other_ways_to_the_files(self) -> None:
        source, extension = f"{LIBRARY}/subprocess.py", f"{LIBRARY}/lib-dynload/_queue.cpython-311-x86_64-linux-gnu.so"
        sandbox, control = self.spawn({"imports": ["math"]}), self.spawn({"imports": ["subprocess", "queue"]})
        for each in (sandbox, control):
            each.exec(WAYS)
        self.assertEqual(sandbox.call("ways", source, extension), [])
        self.assertEqual(len(control.call("ways", source, extension)), 13)
        self.assertEqual(sandbox.call("changes"), [])
        self.assertEqual(sandbox.call("ways", source, extension), [])

    def test_a_reload_changes_the_files(self) -> None:
        sandbox = self.spawn({"imports": ["math"]})
        sandbox.exec(LOAD)
        self.assertEqual(sandbox.call("load", "csv"), {"csv": "ModuleNotFoundError"})
        sandbox.update_policy({"imports": ["csv"]})
        sandbox.exec("import csv\npost(csv.Sniffer is not None)")
        self.assertIs(sandbox.recv(timeout=30), True)
        names = "sqlite3 _sqlite3 ctypes"
        self.assertEqual(sandbox.call("load", names), dict.fromkeys(names.split(), "ModuleNotFoundError"))
        sandbox.update_policy({"imports": ["sqlite3"]})
        self.assertEqual(sandbox.call("load", names), {"sqlite3": "loaded", "_sqlite3": "loaded", "ctypes": "ModuleNotFoundError"})

    def test_what_allowed_modules_need_is_there(self) -> None:
        for names, code in (
            (["json"], "import json; post(json.loads(json.dumps([1])) == [1])"),
            (["datetime"], "import datetime; post(datetime.datetime.strptime('2024', '%Y').year == 2024)"),
            (["logging", "io"], "import logging; logging.error('text'); post(True)"),
            (["hashlib", "random"], "import hashlib, random; random.random(); post(len(hashlib.sha256(b'').digest()) == 32)"),
            (["sqlite3"], "import sqlite3; post(sqlite3.connect(':memory:').execute('select 1').fetchone() == (1,))"),
            (["concurrent.futures"],
             "import concurrent.futures as f\nwith f.ThreadPoolExecutor() as p: post(list(p.map(abs, [-1])) == [1])"),
            (["asyncio"], "import asyncio; asyncio.run(asyncio.sleep(0)); post(True)"),
            (["zoneinfo"], "import zoneinfo; post(str(zoneinfo.ZoneInfo('Europe/Berlin')) == 'Europe/Berlin')"),
            (["xml.etree"], "import xml.etree.ElementTree as e; post(e.fromstring('<a><b/></a>').find('b') is not None)"),
            (["subprocess", "sys"], "import subprocess, sys; subprocess.run([sys.executable, '-c', '1'], check=True); post(True)"),
            (["ctypes"], "import ctypes; post(ctypes.CDLL('libz.so.1').zlibVersion() != 0)"),
            ([], "post('ä'.encode('cp1252').decode('iso8859-15') == 'ä')"),
        ):  # fmt: skip
            with self.subTest(imports=names):
                sandbox = self.spawn({"imports": names})
                sandbox.exec(code)
                self.assertIs(sandbox.recv(timeout=60), True)
                sandbox.close()

    def test_values_and_tracebacks_need_no_import(self) -> None:
        import datetime
        import decimal
        import fractions
        import pathlib
        import uuid

        sandbox = self.spawn({"imports": []})
        values = [
            datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc), decimal.Decimal("1.5"), uuid.UUID(int=1),
            fractions.Fraction(1, 3), pathlib.PurePosixPath("/a"), {1, 2}, b"x" * 100, 1e300, complex(1, 2),
        ]  # fmt: skip
        sandbox.exec("while True: post(recv())")
        for value in values:
            sandbox.post(value)
            self.assertEqual(sandbox.recv(timeout=30), value)
        sandbox = self.spawn({"imports": []})
        sandbox.exec("def deep():\n    return 1 / 0\ndeep()")
        with self.assertRaises(ZeroDivisionError) as caught:
            sandbox.recv(timeout=30)
        assert isinstance(caught.exception, psi.GuestError)
        self.assertIn("return 1 / 0", caught.exception.traceback)


if __name__ == "__main__":
    unittest.main()
