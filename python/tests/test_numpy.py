"""numpy and pandas through a real channel: arrays both ways, what is refused, and a client without numpy.

The guests' root holds Debian's own packages (python3-numpy, python3-pandas), and so does this process.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, ClassVar, List, Optional

import pyisolate as psi
from pyisolate import _locate

from .guests import GuestTest, wait_for

_PACKAGES = Path("/usr/lib/python3/dist-packages")
_TREES = ("numpy", "pandas", "dateutil", "pytz", "six.py")

numpy: Any = None  # imported by the tests alone: the others' process does without

_WITHOUT_NUMPY = """
import sys
import pyisolate as psi
with psi.spawn("arrays") as sandbox:
    sandbox.exec("import numpy; post(numpy.arange(3)); post([1, numpy.eye(2)]); post('after')")
    for _ in range(2):
        try:
            sandbox.recv(timeout=60)
        except psi.SandboxError as error:
            print(type(error).__name__, error.cause, error)
    print(sandbox.recv(timeout=60), sandbox.alive)
    try:
        sandbox.call("numpy.arange", 3)
    except psi.SandboxError as error:
        print(type(error).__name__, error.cause, error)
    print(sandbox.call("numpy.sum", [1, 2]), sandbox.alive)
print("numpy" in sys.modules)
"""


def build_root(directory: Path) -> str:
    """A root file system with numpy and pandas in it."""
    site = directory / "site"
    site.mkdir()
    for name in _TREES:
        (site / name).symlink_to(_PACKAGES / name)
    runtime = Path(_locate.shim(os.environ)).with_name("psi-runtime")
    command = [str(runtime), "rootfs", "build", "--python", sys.executable, "--site-packages", str(site)]
    subprocess.run([*command, "-o", str(directory / "root")], check=True, stdout=subprocess.DEVNULL)
    return str(directory / "root")


@unittest.skipIf(os.environ.get("PSI_TEST_VM"), "the machine's disk has no numpy, which takes a minute to import there")
class Numpy(GuestTest):
    root: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        global numpy
        numpy = importlib.import_module("numpy")
        directory = tempfile.TemporaryDirectory(prefix="psi-numpy-")
        cls.addClassCleanup(directory.cleanup)
        os.chmod(directory.name, 0o755)
        cls.root = build_root(Path(directory.name))
        cls.addClassCleanup(cls.use_root, os.environ.get("PSI_ROOTFS"))
        cls.use_root(cls.root)

    @classmethod
    def use_root(cls, root: Optional[str]) -> None:
        """The supervisor that the next spawn starts gives its guests this root."""
        psi._supervision.leave()
        os.environ.pop("PSI_ROOTFS", None)
        if root is not None:
            os.environ["PSI_ROOTFS"] = root

    def arrays(self) -> List[Any]:
        """One array of every kind that may cross, in several shapes and orders."""
        kinds = "?bBhHiIlLefdFD"
        found = [numpy.array([0, 1, 0, 1, 1, 0]).astype(kind).reshape(2, 3) for kind in kinds]
        found += [each.astype(each.dtype.newbyteorder(">")) for each in found[3:8]]
        base = numpy.arange(24.0).reshape(2, 3, 4)
        found += [base.T, base[:, ::2, 1:], base[::-1], numpy.asfortranarray(base[0]), numpy.array(2.5)]
        found += [numpy.zeros((0, 5)), numpy.zeros((3, 0, 2), "i4"), numpy.zeros((1,) * 32)]
        found += [numpy.array(["ab", "ä€𝄞"]), numpy.array([b"ab", b"\0x"]), numpy.array([["", "x"]])]
        found += [numpy.array(["2024-02-29", "NaT"], "M8[ns]"), numpy.array([1, -5], "m8[D]")]
        found += [numpy.array([numpy.nan, numpy.inf, -0.0]), numpy.arange(1 << 20)]
        return found

    def assert_same(self, got: Any, sent: Any) -> None:
        self.assertIs(type(got), numpy.ndarray)
        self.assertEqual((got.dtype, got.shape), (sent.dtype, sent.shape))
        self.assertEqual(got.tobytes(), sent.tobytes())
        self.assertFalse(got.flags.writeable)

    def test_preloaded(self) -> None:
        """Guests of one warm interpreter have numpy loaded, and none of each other's random numbers."""
        policy = {"mem": "512MiB", "preload": ["numpy"]}
        drawn = set()
        for index in range(6):  # the first are made by libcontainer, until there is a zygote
            sandbox = self.spawn(policy, name=f"preloaded-{index}")
            sandbox.exec(
                "import random, sys\n"
                "loaded = 'numpy' in sys.modules\n"
                "import numpy\n"
                "post([loaded, float(numpy.random.rand()), random.random(), numpy.arange(5).sum().item()])"
            )
            loaded, first, second, total = sandbox.recv(timeout=60)
            self.assertEqual((loaded, total), (True, 10))
            drawn |= {first, second}
            sandbox.close()
            time.sleep(0.5)
        self.assertEqual(len(drawn), 12)

    def test_arrays_both_ways(self) -> None:
        sandbox = self.spawn({"mem": "512MiB"})
        sandbox.exec(
            "import numpy\n"
            "def back(a):\n"
            "    assert type(a) is numpy.ndarray and not a.flags.writeable, a\n"
            "    return a, a.dtype.str, list(a.shape), a.tobytes()\n"
            "def serve():\n"
            "    while True:\n"
            "        post(recv())\n"
        )
        arrays = self.arrays()
        for array in arrays:
            with self.subTest(dtype=array.dtype.str, shape=array.shape):
                got, dtype, shape, data = sandbox.call("back", array)
                self.assert_same(got, array)
                self.assertEqual((dtype, shape, data), (array.dtype.str, list(array.shape), array.tobytes()))
        sandbox.exec("serve()")
        for array in arrays:
            sandbox.post(array)
            self.assert_same(sandbox.recv(timeout=60), array)
        sandbox.post({"many": arrays[:5], "of": (arrays[3], [arrays[-1]])})
        got = sandbox.recv(timeout=60)
        for each, sent in zip([*got["many"], got["of"][0], got["of"][1][0]], [*arrays[:5], arrays[3], arrays[-1]]):
            self.assert_same(each, sent)

    def test_scalars_are_plain_numbers(self) -> None:
        sandbox = self.spawn({"mem": "512MiB"})
        sandbox.exec("import numpy; post([numpy.float32(0.5), numpy.int64(-3), numpy.bool_(True), numpy.str_('s')])")
        got = sandbox.recv(timeout=60)
        self.assertEqual(got, [0.5, -3, True, "s"])
        self.assertEqual([type(each) for each in got], [float, int, bool, str])

    def test_what_is_refused(self) -> None:
        sandbox = self.spawn({"mem": "512MiB"})
        sandbox.exec("import numpy")
        for array in (
            "numpy.array([object()])", "numpy.array([[1], [2, 3]], dtype=object)", "numpy.zeros(2, 'i4,i4')",
            "numpy.zeros(2, numpy.longdouble)", "numpy.zeros(2, 'V4')", "numpy.matrix([[1]])",
        ):  # fmt: skip
            with self.subTest(array=array):
                sandbox.exec(f"post({array})")
                with self.assertRaisesRegex(TypeError, "cannot cross the channel") as caught:
                    sandbox.recv(timeout=60)
                self.assertIsInstance(caught.exception, psi.GuestError)
        with self.assertRaisesRegex(psi.SandboxError, "dtype object cannot cross"):
            sandbox.post(numpy.array([object()]))
        self.assert_works(sandbox)

    def test_pandas(self) -> None:
        sandbox = self.spawn({"mem": "512MiB"})
        sandbox.exec(
            "import pandas\n"
            "frame = pandas.DataFrame({'g': ['a', 'b', 'a'], 'x': [1, 2, 3]})\n"
            "sums = frame.groupby('g').x.sum()\n"
            "post({'index': list(sums.index), 'values': sums.to_numpy()})\n"
            "post(frame.to_dict('list'))\n"
            "post(frame)\n"
        )
        got = sandbox.recv(timeout=60)
        self.assertEqual(got["index"], ["a", "b"])
        self.assert_same(got["values"], numpy.array([4, 2]))
        self.assertEqual(sandbox.recv(timeout=60), {"g": ["a", "b", "a"], "x": [1, 2, 3]})
        with self.assertRaisesRegex(psi.GuestError, "DataFrame cannot cross"):
            sandbox.recv(timeout=60)

    def test_an_import_list_with_numpy(self) -> None:
        sandbox = self.spawn({"mem": "512MiB", "imports": ["numpy"]})
        sandbox.exec(
            "import numpy\n"
            "a = numpy.arange(9.0).reshape(3, 3) + numpy.eye(3)\n"
            "post(bool(numpy.allclose(numpy.linalg.inv(a) @ a, numpy.eye(3))))\n"
            "post(numpy.random.default_rng(1).normal(size=3).shape)\n"
            "post(numpy.fft.fft(numpy.ones(4)))\n"
            "post(str(numpy.array(['2024-01-01'], 'M8[D]')[0]))\n"
            "import numpy.polynomial, numpy.ma\n"
            "post(float(numpy.polynomial.Polynomial([1, 2])(3)))\n"
            "import pandas\n"
        )
        got = [sandbox.recv(timeout=60) for _ in range(5)]
        self.assert_same(got.pop(2), numpy.array([4, 0, 0, 0], complex))
        self.assertEqual(got, [True, (3,), "2024-01-01", 7.0])
        with self.assertRaisesRegex(ImportError, "import of 'pandas' is not allowed.*list allows numpy"):
            sandbox.recv(timeout=60)
        sandbox = self.spawn({"mem": "512MiB", "imports": ["pandas"]})
        sandbox.exec(
            "import pandas\n"
            "days = pandas.date_range('2024-01-01', periods=3, tz='Europe/Berlin')\n"
            "frame = pandas.DataFrame({'at': days, 'x': [1.5, 2, None]})\n"
            "post([str(frame['at'].dt.tz), frame.x.mean(), pandas.to_datetime('2024-03-01').month])\n"
            "post(pandas.read_csv(__builtins__.open('/etc/passwd'), sep=':', header=None).shape[1])\n"
            "post(frame.to_csv().count(','), )\n"
            "post(frame.groupby(frame['at'].dt.day).x.sum().to_dict())\n"
        )
        got = [sandbox.recv(timeout=60) for _ in range(4)]
        self.assertEqual(got, [["Europe/Berlin", 1.75, 3], 7, 8, {1: 1.5, 2: 2.0, 3: 0.0}])

    def test_a_lying_array_ends_the_guest(self) -> None:
        sandbox = self.spawn({"mem": "512MiB"})
        sandbox.exec("import sys; sys.modules['_psi.codec']._Writer.array = lambda s, n, a: ('<f8', [9], 'C', s.buffer(b''))")
        sandbox.exec("import numpy; post(numpy.arange(3))")
        with self.assertRaisesRegex(psi.SandboxError, "does not fit its 0 bytes"):
            sandbox.recv(timeout=60)
        self.assertTrue(wait_for(lambda: not sandbox.alive))

    def test_a_client_without_numpy(self) -> None:
        environ = {**os.environ, "PSI_ROOTFS": self.root, "PYTHONPATH": str(_locate.package().parent)}
        done = subprocess.run(
            [sys.executable, "-c", _WITHOUT_NUMPY], env=environ, stdout=subprocess.PIPE, universal_newlines=True, timeout=120
        )
        lines = done.stdout.splitlines()
        self.assertEqual(done.returncode, 0, done.stdout)
        refused = "SandboxError None guest 'arrays' sent a numpy array: import numpy before receiving it"
        self.assertEqual(lines, [refused, refused, "after True", refused, "3 True", "False"])


if __name__ == "__main__":
    unittest.main()
