"""Writes corpus/: payloads that both decoders must accept or refuse alike.

    python3 corpus.py

Names begin with accept- or reject-. Run it after a change of the encoding and
commit what it writes; the same input gives the same files.
"""

from __future__ import annotations

import json
import pathlib
import struct
import typing

P = 2**61 - 1  # the modulus of Python's numeric hash

FILES: dict[str, bytes] = {}


def add(verdict: str, name: str, payload: bytes) -> None:
    FILES[f"{verdict}-{name}"] = payload


def text(verdict: str, name: str, document: str) -> None:
    add(verdict, name, b"J" + document.encode("utf-8", "surrogatepass"))


def tag(verdict: str, name: str, *body: object) -> None:
    text(verdict, name, json.dumps({"$": list(body)}))


def t(*body: object) -> dict[str, object]:
    return {"$": list(body)}


def buffers(verdict: str, name: str, value: object, parts: typing.Sequence[bytes], sizes: object = None) -> None:
    sizes = [len(part) for part in parts] if sizes is None else sizes
    document = json.dumps([sizes, value], separators=(",", ":")).encode()
    add(verdict, name, b"B" + struct.pack(">I", len(document)) + document + b"".join(parts))


def array(verdict: str, name: str, dtype: object, shape: object, order: object, data: bytes) -> None:
    buffers(verdict, "ndarray-" + name, t("ndarray", dtype, shape, order, 0), [data])


def nest(levels: int, inner: object, wrap: typing.Callable[[object], object]) -> object:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


def tuple_of(inner: object) -> object:
    return t("tuple", [inner])


def plain() -> None:
    add("accept", "str", "Sgrüße \U0001f600".encode())
    add("accept", "str-empty", b"S")
    add("reject", "str-not-utf8", b"S\xff")
    add("reject", "str-raw-surrogate", b"S\xed\xa0\x80")
    add("accept", "bytes", b"Y\x00\xff")
    add("reject", "empty", b"")
    add("reject", "unknown-kind", b"Pabc")
    add("reject", "pickle", b"\x80\x04K\x01.")
    for name, document in {
        "null": "null", "true": "true", "false": "false", "zero": "0", "minus-zero": "-0", "float": "-1.5e-3",
        "float-huge-is-inf": "1e400", "float-long": "1." + "0" * 5000 + "1", "list": '[1,[2,"x"],{}]',
        "dict": '{"a":{"b":[null]}}', "spaces-inside": "[ 1 ,\t2\r\n]", "duplicate-key": '{"a":1,"a":2}',
        "escapes": r'"\"\\\/\b\f\n\r\té"', "surrogate-pair": r'"\ud83d\ude00"', "surrogate-lone": r'"\ud800"',
        "surrogate-low-first": r'"\ude00\ud83d"', "surrogate-then-letter": r'"\ud83d\u0041"', "del": '"\x7f"',
        "dollar-value": '["$"]', "dollar-in-key": '{"a$":1}', "empty-key": '{"":""}', "int-63": str(2**63),
        "int-4300-digits": "9" * 4300, "int-minus-4300-digits": "-" + "9" * 4300, "brackets-in-str": json.dumps("[" * 500),
        "depth-200": "[" * 200 + "]" * 200, "quotes": json.dumps(['"' * 50, "\\" * 51, '\\"' * 30] * 20 + ["[{"] * 300),
    }.items():  # fmt: skip
        text("accept", "json-" + name, document)
    for name, document in {
        "nothing": "", "space-before": " 1", "space-after": "1 ", "two": "1 2", "nan": "NaN", "inf": "Infinity",
        "minus-inf": "[-Infinity]", "word": "nul", "python": "None", "leading-zero": "01", "plus": "+1", "minus": "-",
        "point": "1.", "point-first": ".5", "exponent": "1e", "hex": "0x1", "comma": "[1,]", "no-comma": "[1 2]",
        "open": "[1", "open-dict": '{"a":1', "bare-key": "{a:1}", "int-key": "{1:1}", "comma-dict": '{"a":1,}',
        "no-colon": '{"a" 1}', "open-str": '"a', "control": '"\n"', "bad-escape": r'"\x41"', "short-u": r'"\u12"',
        "bad-u": r'"\u12g4"', "bad-second-u": r'"\ud83d\u12g4"', "bom": "﻿1", "comment": "[1/**/]", "quote": "'a'",
        "nbsp": "[\xa01]", "arabic-digit": "٣", "underscore": "1_0", "close": "]", "mixed": "[}", "nul": "\0",
        "int-4301-digits": "9" * 4301, "int-huge": "[" + "7" * 100_000 + "]", "raw-surrogate": '"\ud800"',
        "depth-201": "[" * 201 + "]" * 201, "depth-dict": '{"a":' * 300 + "1" + "}" * 300,
        "depth-100000": "[" * 100_000, "depth-100000-closed": "[" * 100_000 + "]" * 100_000,
    }.items():  # fmt: skip
        text("reject", "json-" + name, document)
    add("reject", "json-not-utf8", b'J"\xff"')
    add("reject", "json-utf16", b"J" + "[1]".encode("utf-16"))


def tags() -> None:
    text("reject", "tag-extra-key", '{"$":["tuple",[]],"a":1}')
    text("reject", "tag-escaped-key", r'{"\u0024":1}')
    text("accept", "tag-escaped-key-tuple", r'{"\u0024":["tuple",[1]]}')
    text("reject", "tag-not-list", '{"$":"tuple"}')
    text("reject", "tag-dict", '{"$":{}}')
    text("reject", "tag-empty", '{"$":[]}')
    text("reject", "tag-in-tag", '{"$":{"$":["tuple",[]]}}')
    text("accept", "tag-twice-last-wins", '{"$":1,"$":["tuple",[]]}')
    tag("reject", "tag-unknown", "object", [])
    tag("reject", "tag-name-int", 1)
    tag("reject", "tag-name-tagged", t("float", "nan"))
    tag("accept", "tuple", "tuple", [1, [2], t("tuple", [])])
    for name, body in {
        "arity": [], "arity-2": [[], []], "dict": [{}], "str": ["ab"], "null": [None], "tuple": [t("tuple", [])],
    }.items():  # fmt: skip
        tag("reject", "tuple-" + name, "tuple", *body)
    tag("accept", "float-nan", "float", "nan")
    tag("accept", "float-minus-inf", "float", "-inf")
    tag("reject", "float-text", "float", "1.5")
    tag("reject", "float-number", "float", 1.5)
    tag("accept", "complex", "complex", 1.0, t("float", "inf"))
    tag("reject", "complex-int", "complex", 1, 2)
    for verdict, name, digits in (
        ("accept", "64", "8000000000000000"), ("accept", "minus", "-ff"), ("accept", "zeros", "000"),
        ("accept", "long", "f" * 10_000), ("accept", "limit", "1" * (1 << 18)), ("reject", "over-limit", "1" * ((1 << 18) + 1)),
        ("reject", "empty", ""), ("reject", "only-minus", "-"), ("reject", "two-minus", "--1"), ("reject", "upper", "FF"),
        ("reject", "prefix", "0xff"), ("reject", "underscore", "f_f"), ("reject", "space", " f"), ("reject", "newline", "f\n"),
        ("reject", "digit-of-another-script", "٣"), ("reject", "inner-minus", "f-f"),
    ):  # fmt: skip
        tag(verdict, "int-" + name, "int", digits)
    tag("accept", "range", "range", 0, 10**18, 1)
    tag("accept", "range-bomb", "range", 0, t("int", "f" * 100), 1)
    tag("reject", "range-step-0", "range", 0, 1, 0)
    tag("reject", "range-float", "range", 0, 1.0, 1)
    tag("reject", "range-bool", "range", 0, True, 1)
    tag("accept", "slice", "slice", None, -1, t("int", "f" * 20))
    tag("reject", "slice-str", "slice", "a", None, None)
    tag("accept", "uuid", "UUID", "0123456789abcdef" * 2)
    tag("reject", "uuid-short", "UUID", "0" * 31)
    tag("reject", "uuid-dashes", "UUID", "01234567-89ab-cdef-0123-456789abcdef")
    tag("accept", "path", "PurePosixPath", "/a/../b\0")
    tag("accept", "path-windows", "PureWindowsPath", "C:\\x")
    tag("reject", "path-list", "PurePosixPath", ["a"])
    tag("reject", "path-concrete", "PosixPath", "/")
    tag("accept", "exception", "exception", "ValueError", ["x", 1])
    tag("accept", "exception-odd-args", "exception", "UnicodeDecodeError", [1])
    tag("accept", "exception-blocking", "exception", "BlockingIOError", [1, "x", 10**30])
    tag("accept", "exception-syntax", "exception", "SyntaxError", ["x", 5])
    tag("reject", "exception-object", "exception", "object", [])
    tag("reject", "exception-eval", "exception", "eval", ["1"])
    tag("reject", "exception-dotted", "exception", "os.error", [])
    tag("reject", "exception-args", "exception", "ValueError", {})
    tag("reject", "exception-group", "exception", "ExceptionGroup", ["x", []])
    tag("reject", "class-not-opted-in", "class", "Point", [1, 2])
    tag("reject", "class-args", "class", "Point", {})


def numbers() -> None:
    for verdict, name, body in (
        ("accept", "number", (0, "123", -2)), ("accept", "zero", (1, "0", 0)), ("accept", "inf", (1, "0", "F")),
        ("accept", "nan", (0, "", "n")), ("accept", "nan-payload", (0, "12", "n")), ("accept", "snan", (1, "", "N")),
        ("accept", "digits", (0, "9" * 4300, 0)), ("accept", "exponent", (0, "1", 999_999)),
        ("accept", "leading-zeros", (0, "001", 0)), ("reject", "digits-4301", (0, "9" * 4301, 0)),
        ("reject", "exponent-huge", (0, "1", 10**18)), ("reject", "exponent-1000000", (0, "1", -1_000_000)),
        ("reject", "exponent-bignum", (0, "1", t("int", "f" * 1000))), ("reject", "sign", (2, "1", 0)),
        ("reject", "sign-bool", (True, "1", 0)), ("reject", "no-digits", (0, "", 0)), ("reject", "letters", (0, "1a", 0)),
        ("reject", "special", (0, "0", "X")), ("reject", "inf-digits", (0, "1", "F")), ("reject", "nan-zero", (0, "0", "n")),
        ("reject", "nan-leading-zero", (0, "01", "n")), ("reject", "exponent-float", (0, "1", 1.0)),
    ):  # fmt: skip
        tag(verdict, "decimal-" + name, "Decimal", *body)
    tag("accept", "fraction", "Fraction", -4, 6)
    tag("accept", "fraction-large", "Fraction", t("int", "f" * 2048), t("int", "7" * 2048))
    tag("reject", "fraction-huge", "Fraction", t("int", "f" * 2049), 1)
    tag("reject", "fraction-huge-denominator", "Fraction", 1, t("int", "f" * 100_000))
    tag("reject", "fraction-zero", "Fraction", 1, 0)
    tag("reject", "fraction-negative", "Fraction", 1, -2)
    tag("reject", "fraction-float", "Fraction", 1.0, 2)


def dates() -> None:
    utc = t("timezone", 0, None)
    for verdict, name, body in (
        ("accept", "leap", ("date", 2024, 2, 29)), ("reject", "no-leap", ("date", 2023, 2, 29)),
        ("reject", "no-leap-1900", ("date", 1900, 2, 29)), ("accept", "first", ("date", 1, 1, 1)),
        ("accept", "last", ("date", 9999, 12, 31)), ("reject", "year-0", ("date", 0, 1, 1)),
        ("reject", "year-10000", ("date", 10000, 1, 1)), ("reject", "month-13", ("date", 1, 13, 1)),
        ("reject", "day-0", ("date", 1, 1, 0)), ("reject", "huge", ("date", t("int", "f" * 50), 1, 1)),
        ("reject", "float", ("date", 1.0, 1, 1)), ("reject", "bool", ("date", True, 1, 1)),
        ("accept", "time", ("time", 23, 59, 59, 999999, 1, None)), ("reject", "time-24", ("time", 24, 0, 0, 0, 0, None)),
        ("reject", "time-60", ("time", 0, 60, 0, 0, 0, None)), ("reject", "fold-2", ("time", 0, 0, 0, 0, 2, None)),
        ("reject", "fold-bool", ("time", 0, 0, 0, 0, True, None)), ("accept", "time-zone", ("time", 0, 0, 0, 0, 0, utc)),
        ("accept", "datetime", ("datetime", 2024, 1, 1, 0, 0, 0, 0, 0, t("timezone", -1, "X"))),
        ("reject", "datetime-zone", ("datetime", 2024, 1, 1, 0, 0, 0, 0, 0, "UTC")),
        ("reject", "datetime-micro", ("datetime", 2024, 1, 1, 0, 0, 0, 1000000, 0, None)),
        ("accept", "timedelta", ("timedelta", -999999999, 0, 0)), ("reject", "timedelta-days", ("timedelta", 10**9, 0, 0)),
        ("reject", "timedelta-seconds", ("timedelta", 0, 86400, 0)), ("reject", "timedelta-minus", ("timedelta", 0, -1, 0)),
        ("accept", "zone-most", ("timezone", 86399999999, None)), ("reject", "zone-day", ("timezone", 86400000000, None)),
        ("reject", "zone-name", ("timezone", 0, 1)), ("reject", "zone-float", ("timezone", 0.0, None)),
    ):  # fmt: skip
        tag(verdict, "date-" + name, *body)


def containers() -> None:
    tag("accept", "set", "set", [1, "a", None, t("tuple", [1, 2]), t("float", "nan")])
    tag("accept", "frozenset-nested", "frozenset", [t("frozenset", [t("frozenset", [])])])
    tag("reject", "set-list", "set", [[1]])
    tag("reject", "set-of-set", "set", [t("set", [])])
    tag("reject", "set-dict", "set", [{}])
    tag("reject", "set-range", "set", [t("range", 0, 1, 1)])
    tag("reject", "set-exception", "set", [t("exception", "ValueError", [])])
    tag("reject", "set-snan", "set", [t("Decimal", 0, "", "N")])
    tag("reject", "set-tuple-of-list", "set", [t("tuple", [[1]])])
    tag("accept", "set-of-everything", "set", [
        True, 2.5, t("complex", 1.0, 2.0), t("date", 1, 1, 1), t("timedelta", 1, 2, 3), t("Decimal", 0, "5", 0),
        t("Fraction", 1, 3), t("UUID", "0" * 32), t("PurePosixPath", "/"), t("timezone", 0, None),
        t("datetime", 1, 1, 1, 0, 0, 0, 0, 0, t("timezone", 3600000000, None)), t("time", 0, 0, 0, 0, 0, None),
    ])  # fmt: skip
    tag("accept", "dict", "dict", [[1, "a"], [t("tuple", []), [2]], ["$", {}]])
    tag("reject", "dict-triple", "dict", [[1, 2, 3]])
    tag("reject", "dict-not-pairs", "dict", [1])
    tag("reject", "dict-tuple-pair", "dict", [t("tuple", [1, 2])])
    tag("reject", "dict-object", "dict", {"a": 1})
    tag("reject", "dict-list-key", "dict", [[[], 1]])
    tag("accept", "ordereddict", "OrderedDict", [["b", 1], ["a", 2]])
    tag("accept", "counter", "Counter", [["a", 1], [2, "not a number"]])
    tag("accept", "defaultdict", "defaultdict", "list", [["a", [1]]])
    tag("accept", "defaultdict-none", "defaultdict", None, [])
    tag("reject", "defaultdict-eval", "defaultdict", "eval", [])
    tag("reject", "defaultdict-int", "defaultdict", 5, [])
    tag("accept", "deque", "deque", [1, 2], None)
    tag("accept", "deque-maxlen", "deque", [1, 2], 2)
    tag("reject", "deque-overfull", "deque", [1, 2], 1)
    tag("reject", "deque-minus", "deque", [], -1)
    tag("reject", "deque-maxlen-huge", "deque", [], 2**63)
    tag("accept", "key-depth-16", "set", [nest(16, 1, tuple_of)])
    tag("reject", "key-depth-17", "set", [nest(17, 1, tuple_of)])
    tag("reject", "key-depth-60", "dict", [[nest(60, 1, tuple_of), 1]])
    tag("accept", "tuple-depth-66", *typing.cast("dict[str, list[object]]", nest(66, 1, tuple_of))["$"])
    tag("reject", "tuple-depth-67", *typing.cast("dict[str, list[object]]", nest(67, 1, tuple_of))["$"])
    tag("accept", "key-size-1024", "set", [t("tuple", [0] * 1023)])
    tag("reject", "key-size-1025", "set", [t("tuple", [0] * 1024)])
    tag("reject", "key-size-nested", "set", [t("tuple", [t("tuple", [0] * 600)] * 2)])
    text("reject", "key-tuple-1mb", '{"$":["dict",[[' + '{"$":["tuple",[' * 5000 + "]]}" * 5000 + ",1]]]}")


def collisions() -> None:
    def many(step: typing.Callable[[int], object], count: int) -> list[object]:
        return [step(i) for i in range(count)]

    def integer(n: int) -> object:
        return t("int", f"{n:x}") if abs(n) >= 2**63 else n

    for kind, step in {
        "int": lambda i: integer(7 + i * P),
        "negative": lambda i: integer(-7 - i * P),
        "tuple": lambda i: t("tuple", [1, integer(i * P)]),
        "frozenset": lambda i: t("frozenset", [integer(i * P)]),
        "minus-one": lambda i: integer(-1 - (i & 1) - (i >> 1) * P),
        "uuid": lambda i: t("UUID", f"{3 + i * P:032x}"),
        "decimal": lambda i: t("Decimal", 0, str(9 + i * P), 0),
        "decimal-exponent": lambda i: t("Decimal", 0, "1", 61 * 1000 * i) if i < 1 else integer(1 + i * P),
        "fraction": lambda i: t("Fraction", integer(1 + 2 * i * P), 2),
        "complex": lambda i: t("complex", 0.0, 0.0) if i < 1 else integer(i * P),
        "float-and-int": lambda i: 0.5 if i < 1 else integer(2**60 + i * P),
        "equal": lambda i: [1, 1.0, True][i % 3],
        "str-among-ints": lambda i: "a" if i else 1,
        "zone": lambda i: t("time", 0, 0, 0, 0, 0, t("timezone", 0, None)),
    }.items():
        tag("accept", f"collide-{kind}-64", "set", many(step, 64 + (kind == "str-among-ints")))
        tag("reject", f"collide-{kind}-66", "set", many(step, 66))
        tag("reject", f"collide-{kind}-dict", "dict", [[key, 0] for key in many(step, 1000 if kind == "int" else 66)])
    tag("accept", "collide-not-ints", "set", many(lambda i: i << 40, 1000))
    tag("accept", "collide-equal-strs", "set", ["a"] * 1000)
    tag("accept", "collide-equal-bools", "set", [True, None] * 1000)
    tag("accept", "collide-floats", "set", many(lambda i: i + 0.5, 1000))


def binary() -> None:
    buffers("accept", "buffer", t("bytes", 0), [b"abc"])
    buffers("accept", "buffer-empty", [t("bytes", 0), t("bytearray", 1)], [b"", b"x"])
    buffers("accept", "buffer-order", [t("bytes", 1), t("bytes", 0)], [b"a", b"bc"])
    buffers("reject", "buffer-twice", [t("bytes", 0), t("bytes", 0)], [b"abc"])
    buffers("reject", "buffer-bomb", [t("bytes", 0)] * 1000, [b"a" * 1000])
    buffers("reject", "buffer-unused", 1, [b"abc"])
    buffers("reject", "buffer-one-unused", t("bytes", 0), [b"abc", b""])
    buffers("reject", "buffer-index", t("bytes", 1), [b"abc"])
    buffers("reject", "buffer-index-minus", t("bytes", -1), [b"abc"])
    buffers("reject", "buffer-index-bool", t("bytes", False), [b"abc"])
    buffers("reject", "buffer-long", t("bytes", 0), [b"abc"], [4])
    buffers("reject", "buffer-short", t("bytes", 0), [b"abc"], [2])
    buffers("reject", "buffer-huge", t("bytes", 0), [b"abc"], [2**62])
    buffers("reject", "buffer-bignum", t("bytes", 0), [b"abc"], [2**70])
    buffers("reject", "buffer-overlap", [t("bytes", 0), t("bytes", 1)], [b"abc"], [3, 3])
    buffers("reject", "buffer-minus", [t("bytes", 0), t("bytes", 1)], [b"abc"], [4, -1])
    buffers("reject", "buffer-float", t("bytes", 0), [b"abc"], [3.0])
    buffers("reject", "buffer-bool", t("bytes", 0), [b"a"], [True])
    buffers("reject", "buffer-none", [1], [], [])
    buffers("reject", "buffer-sizes-nested", t("bytes", 0), [b"abc"], [[3]])
    tag("reject", "buffer-in-json", "bytes", 0)
    add("reject", "buffer-truncated", b"B\0\0")
    add("reject", "buffer-json-longer", b"B\xff\xff\xff\xff[[1],1]")
    add("reject", "buffer-three", b"B" + struct.pack(">I", 11) + b"[[0],1,2,3]")
    add("reject", "buffer-spaces", b"B" + struct.pack(">I", 27) + b'[ [1],{"$":["bytes",0]}]xxx')
    document = b'[[1 ],{"$":["bytes",0]}]'
    add("accept", "buffer-space-in-sizes", b"B" + struct.pack(">I", len(document)) + document + b"x")
    document = b'[["]"],{"$":["bytes",0]}]'
    add("reject", "buffer-bracket-in-sizes", b"B" + struct.pack(">I", len(document)) + document + b"x")


def arrays() -> None:
    array("accept", "floats", "<f8", [2, 2], "C", bytes(32))
    array("accept", "fortran", ">i2", [2, 3], "F", bytes(12))
    array("accept", "scalar", "|u1", [], "C", b"a")
    array("accept", "empty", "<f8", [0, 5], "C", b"")
    array("accept", "empty-large", "<f8", [0, 1 << 20], "C", b"")
    array("accept", "bool", "|b1", [2], "C", b"\0\1")
    array("accept", "unicode", "<U2", [1], "C", "a\u20ac".encode("utf-32-le"))
    array("accept", "string", "|S3", [2], "C", b"abcdef")
    array("accept", "datetime", "<M8[ns]", [1], "C", bytes(8))
    array("accept", "timedelta-generic", "<m8", [1], "C", bytes(8))
    array("accept", "complex", "<c16", [1], "C", bytes(16))
    array("accept", "dims-32", "|u1", [1] * 32, "C", b"a")
    array("reject", "dims-33", "|u1", [1] * 33, "C", b"a")
    array("reject", "bool-7", "|b1", [1], "C", b"\7")
    array("reject", "unicode-beyond", "<U1", [1], "C", b"\0\0\x11\0")
    array("reject", "unicode-beyond-big", ">U1", [1], "C", b"\0\x11\0\0")
    array("accept", "unicode-big", ">U1", [1], "C", b"\0\x10\xff\xff")
    array("reject", "object", "|O", [1], "C", bytes(8))
    array("reject", "object-8", "|O8", [1], "C", bytes(8))
    array("reject", "void", "|V8", [1], "C", bytes(8))
    array("reject", "structured", "i4,i4", [1], "C", bytes(8))
    array("reject", "list-dtype", [["a", "<i4"]], [1], "C", bytes(4))
    array("reject", "longdouble", "<f16", [1], "C", bytes(16))
    array("reject", "native", "=f8", [1], "C", bytes(8))
    array("reject", "name", "float64", [1], "C", bytes(8))
    array("reject", "i1-with-order", "<i1", [1], "C", bytes(1))
    array("reject", "f8-without-order", "|f8", [1], "C", bytes(8))
    array("reject", "U0", "<U0", [1], "C", b"")
    array("reject", "S-huge", "|S9999999999", [0], "C", b"")
    array("reject", "U-huge-empty", "<U999999999", [0], "C", b"")
    array("reject", "unit", "<M8[25s]", [1], "C", bytes(8))
    array("reject", "unit-open", "<M8[", [1], "C", bytes(8))
    array("reject", "shape-small", "<f8", [1], "C", bytes(16))
    array("reject", "shape-large", "<f8", [3], "C", bytes(16))
    array("reject", "shape-minus", "<f8", [-1], "C", bytes(8))
    array("reject", "shape-minus-two", "<f8", [-1, -1], "C", bytes(8))
    array("reject", "shape-overflow", "<f8", [2**32, 2**32], "C", b"")
    array("reject", "shape-overflow-wraps", "<f8", [2**32, 2**29], "C", b"")
    array("reject", "shape-zero-and-huge", "<f8", [0, 2**39, 2**39], "C", b"")
    array("reject", "shape-bignum", "<f8", [t("int", "f" * 30)], "C", b"")
    array("reject", "shape-float", "<f8", [1.0], "C", bytes(8))
    array("reject", "shape-bool", "<f8", [True], "C", bytes(8))
    array("reject", "shape-tuple", "<f8", t("tuple", [1]), "C", bytes(8))
    array("reject", "order", "<f8", [1], "A", bytes(8))
    array("reject", "order-null", "<f8", [1], None, bytes(8))
    buffers("reject", "ndarray-same-buffer", [t("ndarray", "|u1", [3], "C", 0)] * 2, [b"abc"])


def main() -> None:
    for build in (plain, tags, numbers, dates, containers, collisions, binary, arrays):
        build()
    home = pathlib.Path(__file__).parent / "corpus"
    home.mkdir(exist_ok=True)
    for old in home.iterdir():
        old.unlink()
    for name, payload in FILES.items():
        (home / name).write_bytes(payload)
    print(len(FILES), "files,", sum(map(len, FILES.values())), "bytes")


if __name__ == "__main__":
    main()
