"""Tests of rootfs/agent/codec.py that need Python itself.

    python3 -m unittest discover -s rootfs/agent_test

That Python and Go accept the same payloads is tested by pkg/channel.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import pathlib
import resource
import struct
import subprocess
import sys
import time
import unittest
import uuid
from typing import Callable
from unittest import mock

ROOTFS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOTFS))

from agent import codec  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]


def send(value: object) -> bytes:
    payload = codec.encode(value)
    return payload if isinstance(payload, bytes) else b"".join(payload)


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


class Colour(enum.Enum):
    RED = 1


class IntColour(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "a b")


class MyInt(int):
    pass


class MyDict(dict):  # type: ignore[type-arg]
    pass


ZONE = dt.timezone(dt.timedelta(hours=-3, microseconds=5), "X")

VALUES = [
    None, True, 1, -5, 2**63 - 1, 2**63, -(2**63) - 1, 2**5000, 1.5, float("inf"), "a", "é\U0001f600", "\ud800x",
    b"", b"abc", bytearray(b"q"), [1, [2]], (1, 2), ((),), {"a": 1}, {"$": 1}, {1: 2, (1, 2): "x"}, {1, 2},
    frozenset([1, (2, 3)]), range(10**30), slice(1, None, -1), dt.date(2024, 2, 29), dt.time(1, 2, 3, 4, ZONE, fold=1),
    dt.datetime(2024, 1, 1, tzinfo=ZONE), dt.datetime.max, dt.timedelta(-1, 5, 6), dt.timezone.utc, ZONE,
    decimal.Decimal("1.230E-5"), decimal.Decimal("-0"), decimal.Decimal("-Infinity"), fractions.Fraction(-3, 2**70),
    uuid.UUID(int=5), pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:\\x"),
    collections.OrderedDict([(1, 2)]), collections.defaultdict(list, {1: [2]}), collections.deque([1, 2], 5),
    collections.Counter("aab"), 1 + 2j, complex(float("inf"), 0), {"a": (1, 2), "b": [{"c": {1}}]},
    {b"x": bytearray(b"yy"), "z": b"1" * 10}, [float("inf")], [2**64], {True: 1, None: 2, 1.5: 3}, [[[()]]],
]  # fmt: skip


class RoundTrip(unittest.TestCase):
    def test_values_keep_type_and_equality(self) -> None:
        for value in VALUES:
            with self.subTest(value=str(value)[:80]):
                found = codec.decode(send(value))
                self.assertIs(type(found), type(value))
                self.assertEqual(found, value)

    def test_values_without_equality(self) -> None:
        for value in (float("nan"), decimal.Decimal("NaN12"), decimal.Decimal("-sNaN"), [float("nan")]):
            self.assertEqual(repr(codec.decode(send(value))), repr(value))

    def test_exceptions(self) -> None:
        for error in (ValueError("x", 1), OSError(2, "no", "/f"), UnicodeDecodeError("utf-8", b"x", 0, 1, "why"),
                      SystemExit(3), StopIteration()):  # fmt: skip
            found = codec.decode(send(error))
            self.assertIs(type(found), type(error))
            self.assertEqual((found.args, str(found)), (error.args, str(error)))

    def test_large_values_are_not_copied(self) -> None:
        data = b"x" * (1 << 20)
        payload = codec.encode(data)
        self.assertIsInstance(payload, list)
        self.assertIs(payload[1], data)
        self.assertEqual(codec.decode(send([data])), [data])
        self.assertEqual(codec.decode(memoryview(send({"a": data}))), {"a": data})

    def test_classes(self) -> None:
        classes = {"Point": Point, "Pair": Pair, "Colour": Colour}
        for value in (Point(1, 2), Pair(1, (2,)), Colour.RED, [Point(3)]):
            self.assertEqual(codec.decode(send(value), classes=classes), value)
            with self.assertRaisesRegex(codec.UnknownClass, "opt in"):
                codec.decode(send(value))

    def test_subclasses_do_not_lose_their_class_silently(self) -> None:
        for value in (MyInt(1), MyDict(a=1), [MyInt(1)], {"a": MyDict()}):
            with self.assertRaises(TypeError):
                codec.encode(value)
        with self.assertRaises(codec.UnknownClass):
            codec.decode(send(IntColour.RED))

    @unittest.skipIf(numpy is None, "numpy is not installed for this interpreter")
    def test_arrays(self) -> None:
        for array in (
            numpy.arange(6).reshape(2, 3), numpy.arange(6.0).reshape(2, 3).T, numpy.array([True, False]),
            numpy.array(["ab", "c"]), numpy.array([b"ab"]), numpy.zeros((0, 5)), numpy.array(5),
            numpy.array("2024", dtype="M8[D]"), numpy.arange(10)[::2], numpy.array([1, 2], dtype=">i2"),
            numpy.ones((3, 4), dtype=complex)[::2, ::2], numpy.zeros((300, 300)),
        ):  # fmt: skip
            for payload in (send(array), bytearray(send(array))):
                found = codec.decode(payload)
                self.assertEqual((found.dtype, found.shape), (array.dtype, array.shape))
                self.assertTrue((found == array).all() and found.flags.aligned and not found.flags.writeable)
        for scalar, plain in ((numpy.float64(2.5), 2.5), (numpy.int32(2), 2), (numpy.bool_(True), True)):
            self.assertIs(type(codec.decode(send(scalar))), type(plain))
            self.assertEqual(codec.decode(send({"a": [scalar]})), {"a": [plain]})
        self.assertEqual(codec.decode(send({numpy.int64(1): 2})), {1: 2})
        for array in (numpy.array([object()]), numpy.zeros(2, "i4,i4"), numpy.zeros(2, numpy.longdouble)):
            with self.assertRaisesRegex(TypeError, "dtype"):
                codec.encode(array)
        payload = send(numpy.arange(2))
        with mock.patch.dict(sys.modules):
            del sys.modules["numpy"]
            with self.assertRaisesRegex(codec.MissingModule, "import numpy"):
                codec.decode(payload)


class Refused(unittest.TestCase):
    def test_what_cannot_be_sent(self) -> None:
        for value in (object(), print, [object()], {"a": {object()}}, iter(()), sys, type, Point,
                      collections.defaultdict(lambda: 1), {range(3): 1}):  # fmt: skip
            with self.subTest(value=str(value)[:40]), self.assertRaisesRegex(TypeError, "cannot"):
                codec.encode(value)

    def test_what_is_too_large_or_deep(self) -> None:
        cycle: list[object] = []
        cycle.append(cycle)
        for value in (cycle, (cycle,), {"a": cycle}, 2 ** (1 << 21), "x" * (65 << 20), b"x" * (65 << 20),
                      decimal.Decimal("1e1000000"), [[["x" * (65 << 20)]]]):  # fmt: skip
            with self.assertRaises(codec.CodecError):
                codec.encode(value)
        with self.assertRaisesRegex(codec.CodecError, "the limit is 10"):
            codec.encode("x" * 10, limit=10)

    def test_what_encode_accepts_decode_accepts(self) -> None:
        nested: object = ()
        for depth in range(120):
            nested = (nested,)
            try:
                payload = send(nested)
            except codec.CodecError:
                self.assertGreater(depth, 60)
                break
            self.assertEqual(codec.decode(payload), nested)


def _killers() -> dict[str, Callable[[], bytes]]:
    """The killers of pickle, as this encoding could say them, at full size."""
    p = 2**61 - 1
    return {
        "huge claimed size": lambda: b"B\xff\xff\xff\xff[[1],1]",
        "huge claimed buffer": lambda: b"B" + struct.pack(">I", 35) + b'[[4294967296],{"$":["bytes",0]}]xxx',
        "range": lambda: b'J[{"$":["range",0,999999999999999999,1]}]',
        "deep key": lambda: b'J{"$":["dict",[[' + b'{"$":["tuple",[' * 70_000 + b"]]}" * 70_000 + b",1]]]}",
        "unclosed": lambda: b"J" + b"[" * (64 << 20),
        "deep": lambda: b"J" + b"[" * (32 << 20) + b"]" * (32 << 20),
        "colliding ints": lambda: b'J{"$":["set",[' + b",".join(b'{"$":["int","%x"]}' % (7 + i * p) for i in range(40_000)) + b"]]}",
        "lists": lambda: b"J[" + b"[]," * (20 << 20) + b"1]",
        "dicts": lambda: b"J[" + b'{"":1},' * (9 << 20) + b"1]",
        "deques": lambda: b"J[" + b'{"$":["deque",[],null]},' * (2 << 20) + b"1]",
        "frozensets": lambda: b"J" + b'{"$":["frozenset",[' * 60 + b"]]}" * 60,
        "digits": lambda: b"J" + b"7" * (60 << 20),
        "hexadecimal digits": lambda: b'J{"$":["int","' + b"f" * (60 << 20) + b'"]}',
        "exponent": lambda: b'J{"$":["Decimal",0,"1",999999999999999999]}',
        "quotes": lambda: b"J[" + b'"' * (60 << 20),
        "backslashes": lambda: b'J"' + b"\\" * (60 << 20),
        "commas in a str": lambda: b'J"' + b",[" * (30 << 20) + b'"',
        "same buffer": lambda: b"B" + struct.pack(">I", 12 + 20 * 500_000 - 1)
        + b"[[1000000],[" + b",".join([b'{"$":["bytes",0]}'] * 500_000) + b"]]" + b"x" * 1_000_000,
    }  # fmt: skip


class Killers(unittest.TestCase):
    """Each is refused or harmless, in bounded time and memory. Runs itself again, per killer."""

    def test_killers(self) -> None:
        for name in _killers():
            with self.subTest(name):
                begin = time.monotonic()
                out = subprocess.run(
                    [sys.executable, __file__, "--killer", name], stdout=subprocess.PIPE, check=True, text=True
                ).stdout
                verdict, grown = out.split()
                self.assertEqual(verdict, "accepted" if name in ("range", "commas in a str") else "refused")
                self.assertLess(int(grown), 1 << 30, "bytes of memory")
                self.assertLess(time.monotonic() - begin, 30)


def _run_killer(name: str) -> None:
    payload = _killers()[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        codec.decode(payload)
        verdict = "accepted"
    except codec.DecodeError:
        verdict = "refused"
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(verdict, (after - before) * 1024)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--killer"]:
        _run_killer(sys.argv[2])
    else:
        unittest.main()
