"""Values as bytes: the encoding of everything that crosses a guest's channel.

Both ends use this one file (the client has a link to it), and neither trusts
what it reads: decoding builds plain data and nothing else, whatever the bytes.
It is not pickle, and not for storage: the other end is a process of today.

The first byte names the form of a payload:

    'S' text      a str, as UTF-8
    'Y' bytes     a bytes object, as it is
    'J' json      any other value without binary parts
    'B' u32 json buffers
                  json is [[size, ...], value]; the u32 (big endian) is the
                  length of json; the buffers follow, one after another, each
                  of the size listed and each used exactly once in value

JSON carries None, bool, int, float, str, list and dict (with str keys, none of
them "$") as themselves. Every other value is {"$": [tag, argument...]}:

    ["tuple"|"set"|"frozenset", [item...]]      ["complex", real, imag]
    ["dict"|"OrderedDict"|"Counter", pairs]     ["float", "nan"|"inf"|"-inf"]
    ["defaultdict", factory name|null, pairs]   ["int", "-1f"] (hexadecimal)
    ["deque", [item...], maxlen|null]           ["range", start, stop, step]
    ["bytes"|"bytearray", buffer]               ["slice", start, stop, step]
    ["date", y, m, d]                           ["timedelta", days, s, us]
    ["time", h, m, s, us, fold, tz|null]        ["timezone", offset us, name|null]
    ["datetime", y, m, d, h, m, s, us, fold, tz|null]
    ["Decimal", sign, digits, exponent|"F"|"n"|"N"]
    ["Fraction", numerator, denominator]        ["UUID", 32 hex digits]
    ["PurePosixPath"|"PureWindowsPath", str]    ["exception", name, [arg...]]
    ["ndarray", dtype, [size...], "C"|"F", buffer]
    ["class", name, [arg...]]   a class the receiver has opted in to

pairs is [[key, value], ...]. Shared and cyclic references are not carried.
Lone surrogates in a str are kept (as \\ud800 in JSON).

A large payload may come in two pieces (Large): its first byte, and for 'B' the
u32 and the json, in the frame; the rest in other memory. Arrays are read-only
views of what was received.

What a payload may cost is bounded before it is built: see Limits. pkg/channel
(Go) applies the same rules and is tested on the same files.
"""

from __future__ import annotations

import sys
from itertools import accumulate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict, defaultdict, deque
    from struct import Struct
    from typing import Any, Callable, Iterable, Mapping, Optional, Sequence, Union

    Data = Union[bytes, bytearray, memoryview]
else:  # the C modules alone: their Python wrappers cost a guest's start
    from _collections import OrderedDict, defaultdict, deque
    from _struct import Struct

__all__ = ["CodecError", "DecodeError", "Large", "Limits", "MissingModule", "UnknownClass", "decode", "encode"]


class CodecError(ValueError):
    """A value cannot cross: it is too large, too deep or not of this encoding."""


class DecodeError(CodecError):
    """The bytes received break a rule of the encoding; the message names it."""


class UnknownClass(DecodeError):
    """A well-formed value of a class that the receiver has not opted in to."""


class MissingModule(UnknownClass):
    """A well-formed value of a type whose module the receiver has not imported."""


class _WrongKey(DecodeError):
    """A dict key or set member of a type that cannot be one on the channel."""


class Large:
    """A payload in two pieces: what its frame held, and the rest, in memory of its own."""

    __slots__ = ("head", "rest")

    def __init__(self, head: bytes, rest: memoryview) -> None:
        self.head = head
        self.rest = rest

    def __len__(self) -> int:
        return len(self.head) + len(self.rest)


class Limits:
    """What one payload may cost the process that decodes it.

    message    bytes of the payload
    objects    JSON values and keys, plus the weight of tagged values
    depth      nesting of the JSON text (a tuple takes three levels)
    key_depth  nesting of tuples and frozensets inside one key or set member
    key_size   values inside one key or set member
    int_digits hexadecimal digits of an int
    collisions keys of one container with the same hash
    """

    __slots__ = ("message", "objects", "depth", "key_depth", "key_size", "int_digits", "collisions")

    def __init__(
        self,
        *,
        message: int = (64 << 20) + (64 << 10),
        objects: int = 5_000_000,
        depth: int = 200,
        key_depth: int = 16,
        key_size: int = 1024,
        int_digits: int = 1 << 18,
        collisions: int = 64,
    ) -> None:
        self.message = message
        self.objects = objects
        self.depth = depth
        self.key_depth = key_depth
        self.key_size = key_size
        self.int_digits = int_digits
        self.collisions = collisions


_DEFAULT = Limits()
_PLAIN_DIGITS = 4300  # of a decimal int or float in JSON: CPython's own limit
_FRACTION_DIGITS = 2048  # hexadecimal, of each part: reducing one is quadratic
_EXPONENT = 999_999  # of a Decimal: that of Python's default context
_U32 = Struct(">I")
_JOIN = 64 << 10  # payloads below this are one bytes object

_NONE = type(None)
_ATOMS = frozenset((str, int, float, bool, _NONE))
_PLAIN = _ATOMS | {list, dict}
_RANDOM_HASH = frozenset((str, bytes, bool, _NONE))  # nobody can make these collide
_HEX = "0123456789abcdef"
_UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as")
_DTYPES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())
_FACTORIES = {
    cls.__name__: cls
    for cls in (list, dict, set, frozenset, tuple, int, float, complex, bool, str, bytes, bytearray)
}
_EXCEPTIONS = frozenset(
    """ArithmeticError AssertionError AttributeError BaseException BlockingIOError BrokenPipeError
    BufferError BytesWarning ChildProcessError ConnectionAbortedError ConnectionError
    ConnectionRefusedError ConnectionResetError DeprecationWarning EOFError Exception FileExistsError
    FileNotFoundError FloatingPointError FutureWarning GeneratorExit ImportError ImportWarning
    IndentationError IndexError InterruptedError IsADirectoryError KeyError KeyboardInterrupt
    LookupError MemoryError ModuleNotFoundError NameError NotADirectoryError NotImplementedError
    OSError OverflowError PendingDeprecationWarning PermissionError ProcessLookupError RecursionError
    ReferenceError ResourceWarning RuntimeError RuntimeWarning StopAsyncIteration StopIteration
    SyntaxError SyntaxWarning SystemError SystemExit TabError TimeoutError TypeError UnboundLocalError
    UnicodeDecodeError UnicodeEncodeError UnicodeError UnicodeTranslateError UnicodeWarning
    UserWarning ValueError Warning ZeroDivisionError""".split()
)


def _module(name: str) -> Any:
    """Imports a standard module when a value first needs it."""
    found = sys.modules.get(name)
    if found is None:
        __import__(name)
        found = sys.modules[name]
    return found


# --- JSON at C speed, without importing the json package (it costs 3 ms) -----


def _refuse_constant(name: str) -> object:
    raise DecodeError(f"{name} is not JSON: write it as a tagged float")


def _bounded_int(digits: str) -> int:
    if len(digits) > _PLAIN_DIGITS + (digits[0] == "-"):
        raise DecodeError(f"an int of {len(digits)} decimal digits: the limit is {_PLAIN_DIGITS}")
    return int(digits)


class _ScannerOptions:
    """What json's scanner asks of its decoder."""

    strict = True
    object_pairs_hook = None
    parse_float = float
    parse_constant = staticmethod(_refuse_constant)

    def __init__(self, hook: Optional[Callable[[dict[str, Any]], object]], parse_int: Callable[[str], int]) -> None:
        self.object_hook = hook
        self.parse_int = parse_int


def _no_default(obj: object) -> object:
    raise TypeError(f"Object of type {type(obj).__name__} is not plain")


if TYPE_CHECKING:

    def _scanner(options: _ScannerOptions) -> Callable[[str, int], tuple[Any, int]]: ...
    def _quote(text: str) -> str: ...
    def _dump(obj: object, indent: int) -> Sequence[str]: ...

else:
    try:
        from _json import encode_basestring_ascii as _quote
        from _json import make_encoder as _make_encoder
        from _json import make_scanner as _scanner

        _dump = _make_encoder(None, _no_default, _quote, None, ":", ",", False, False, False)
    except ImportError:  # an interpreter without the C accelerator
        import json

        _quote = json.encoder.encode_basestring_ascii
        _dump = json.JSONEncoder(
            check_circular=False, allow_nan=False, separators=(",", ":"), default=_no_default
        ).iterencode

        def _scanner(options):
            return json.JSONDecoder(
                object_hook=options.object_hook,
                parse_int=options.parse_int,
                parse_constant=options.parse_constant,
            ).scan_once


_scan_plain = _scanner(_ScannerOptions(None, int))


def _skeleton(text: str) -> str:
    """The text outside its strings, each string replaced by one letter.

    Every step is a C call over at most 1 MiB, so that hostile text costs
    no more than other text. Malformed text gives nonsense; up to the first
    fault, where the scanner stops, it gives the truth.
    """
    pieces = []
    inside = 0
    text = text.replace("\\\\", "").replace('\\"', "")
    for start in range(0, len(text), 1 << 20):
        parts = text[start : start + (1 << 20)].split('"')
        pieces.append("s".join(parts[inside::2]))
        inside ^= (len(parts) - 1) & 1
        if inside and len(parts) > 1:  # the string that begins here ends in a later part
            pieces.append("s")
    return "".join(pieces)


_SIGN = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[{]}")


def _check_text(text: str, limits: Limits) -> int:
    """Refuses JSON text that is nested too deep or holds too many values.

    Returns an upper bound of the number of values and keys in it. What is
    counted exactly is only what a quick upper bound cannot clear.
    """
    nodes = len(text) // 2 + 1
    openers = text.count("[") + text.count("{")
    if openers <= limits.depth and nodes <= limits.objects:
        return nodes
    bones = _skeleton(text)
    if openers > limits.depth:
        signs = bones.encode("utf-8", "replace").translate(_SIGN, _NOT_BRACKETS)
        deepest = max(accumulate(memoryview(signs).cast("b")), default=0)
        if deepest > limits.depth:
            raise DecodeError(f"nested {deepest} levels deep: the limit is {limits.depth}")
    if nodes > limits.objects:
        nodes = _count_nodes(bones)
        if nodes > limits.objects:
            raise DecodeError(f"{nodes} values: the limit is {limits.objects}")
    return nodes


def _count_nodes(bones: str) -> int:
    for space in " \t\n\r":
        bones = bones.replace(space, "")
    empty = bones.count("[]") + bones.count("{}")
    openers = bones.count("[") + bones.count("{")
    return 1 + bones.count(",") + bones.count(":") + openers - empty


def _parse(text: str, hook: Optional[Callable[[dict[str, Any]], object]]) -> Any:
    """Parses one JSON document that begins and ends with the text."""
    parse_int: Callable[[str], int] = int
    if len(text) > _PLAIN_DIGITS:
        digits = getattr(sys, "get_int_max_str_digits", int)()
        if digits == 0 or digits > _PLAIN_DIGITS:
            parse_int = _bounded_int
    scan = _scan_plain
    if hook is not None or parse_int is not int:
        scan = _scanner(_ScannerOptions(hook, parse_int))
    try:
        value, end = scan(text, 0)
    except StopIteration as stop:
        raise DecodeError(f"malformed JSON at character {stop.value}") from None
    if end != len(text):
        raise DecodeError(f"{len(text) - end} characters after the JSON document")
    return value


# --- decoding ----------------------------------------------------------------


def decode(
    data: Union[Data, Large],
    *,
    limits: Optional[Limits] = None,
    classes: Optional[Mapping[str, Callable[..., object]]] = None,
) -> Any:
    """Builds the value that a payload describes.

    data: the whole payload. Arrays share its memory, and are read-only.
    limits: None for the defaults. classes: what to call for
    the values of classes, by the name in the payload. Errors: DecodeError,
    and whatever a callable of classes raises that is not a ValueError.
    """
    if limits is None:
        limits = _DEFAULT
    size = len(data)
    if size > limits.message:
        raise DecodeError(f"a message of {size} bytes: the limit is {limits.message}")
    if size == 0:
        raise DecodeError("an empty message")
    if type(data) is Large:
        head, body = data.head, data.rest
        if not head or (head[0] != 0x42 and len(head) != 1):
            raise DecodeError("a message is split behind its first byte or, with buffers, behind its JSON")
    else:
        head = body = data  # type: ignore[assignment]
    kind = head[0]
    try:
        if kind == 0x53:  # S
            return str(body if body is not head else body[1:], "utf-8")
        if kind == 0x59:  # Y
            return bytes(body if body is not head else body[1:])
        if kind == 0x4A:  # J
            text = str(body if body is not head else body[1:], "utf-8")
            nodes = _check_text(text, limits)
            if '"$"' not in text and "\\u0024" not in text:
                return _parse(text, None)
            return _parse(text, _Reader(limits, classes, text, nodes).hook)
        if kind == 0x42:  # B
            return _decode_with_buffers(head, body, limits, classes)
    except DecodeError:
        raise
    except RecursionError:
        raise DecodeError("nested too deep for the stack that is left") from None
    except (ValueError, TypeError, OverflowError, ArithmeticError) as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    raise DecodeError(f"unknown first byte {kind:#04x}")


def _decode_with_buffers(
    head: Data, body: Data, limits: Limits, classes: Optional[Mapping[str, Callable[..., object]]]
) -> Any:
    if len(head) < 5:
        raise DecodeError("a truncated header of buffers")
    start = 5 + _U32.unpack_from(head, 1)[0]
    if start > len(head):
        raise DecodeError("the JSON is longer than the message")
    view = memoryview(head)
    if head is not body and start != len(head):
        raise DecodeError("a message with buffers is split behind its JSON")
    text = str(view[5:start], "utf-8")
    reader = _Reader(limits, classes, text, _check_text(text, limits))
    reader.open_buffers(view[start:] if head is body else memoryview(body))
    document = _parse(text, reader.hook)
    reader.close_buffers(document)
    return document[1]


class _Reader:
    """Turns tagged objects into values, innermost first, within the budget."""

    __slots__ = ("limits", "classes", "text", "nodes", "room", "buffers")

    def __init__(
        self,
        limits: Limits,
        classes: Optional[Mapping[str, Callable[..., object]]],
        text: str,
        nodes: int,
    ) -> None:
        self.limits = limits
        self.classes = classes
        self.text = text
        self.nodes = nodes  # an upper bound of what the text holds
        self.room = limits.objects - nodes
        self.buffers: list[Optional[memoryview]] = []

    def open_buffers(self, view: memoryview) -> None:
        """Reads the sizes that begin the text and cuts the rest accordingly."""
        end = self.text.find("]")
        if self.text[:2] != "[[" or end < 0 or self.text[end : end + 2] != "],":
            raise DecodeError("a message with buffers must begin with their sizes")
        sizes = _parse(self.text[1 : end + 1], None)
        at = 0
        for size in sizes:
            if type(size) is not int or size < 0 or at + size > len(view):
                raise DecodeError("a buffer lies outside the message")
            self.buffers.append(view[at : at + size])
            at += size
        if at != len(view) or not sizes:
            raise DecodeError(f"{len(view) - at} bytes belong to no buffer, of {len(sizes)}")

    def close_buffers(self, document: object) -> None:
        if type(document) is not list or len(document) != 2:
            raise DecodeError("a message with buffers is [sizes, value]")
        if any(buffer is not None for buffer in self.buffers):
            raise DecodeError("a buffer is not used")

    def hook(self, found: dict[str, Any]) -> object:
        """Called by the scanner for each JSON object."""
        if "$" not in found:
            return found
        body = found["$"]
        if len(found) != 1 or type(body) is not list or not body or type(body[0]) is not str:
            raise DecodeError('an object with the key "$" must be {"$": [tag, argument...]}')
        entry = _TAGS.get(body[0])
        if entry is None:
            raise DecodeError(f"unknown tag {body[0][:40]!r}")
        arity, weight, build = entry
        if len(body) != arity + 1:
            raise DecodeError(f"{body[0]} takes {arity} arguments, not {len(body) - 1}")
        self.charge(weight)
        return build(self, *body)

    def charge(self, weight: int) -> None:
        """Counts what a value costs beyond its JSON, in units of some 64 bytes."""
        self.room -= weight
        if self.room < 0:  # perhaps only because the count was an upper bound
            exact = _count_nodes(_skeleton(self.text))
            self.room += self.nodes - exact
            self.nodes = exact
        if self.room < 0:
            raise DecodeError(f"the values cost too much memory: the limit is {self.limits.objects} objects")

    def buffer(self, index: object) -> memoryview:
        if type(index) is not int or not 0 <= index < len(self.buffers):
            raise DecodeError("no such buffer")
        found = self.buffers[index]
        if found is None:
            raise DecodeError("a buffer is used twice")
        self.buffers[index] = None
        return found

    def keys(self, keys: Iterable[Any]) -> None:
        _check_keys(keys, self.limits)

    def pairs(self, pairs: object) -> list[list[Any]]:
        _expect(list, pairs)
        assert type(pairs) is list
        if set(map(type, pairs)) - {list} or set(map(len, pairs)) - {2}:
            raise DecodeError("pairs must be [[key, value], ...]")
        self.keys([pair[0] for pair in pairs])
        return pairs


def _expect(kind: type, *values: object) -> None:
    for value in values:
        if type(value) is not kind:
            raise DecodeError(f"expected {kind.__name__}, found {type(value).__name__}")


def _check_keys(keys: Iterable[Any], limits: Limits) -> None:
    """Refuses keys and set members that would be slow, or deep, to hash or compare."""
    if set(map(type, keys)) <= _RANDOM_HASH:
        return
    seen: dict[int, int] = {}
    for key in keys:
        _key_size(key, 0, limits)
        value = hash(key)
        count = seen[value] = seen.get(value, 0) + 1
        if count > limits.collisions:
            raise DecodeError(f"more than {limits.collisions} keys have the same hash")


def _key_size(key: Any, depth: int, limits: Limits) -> int:
    kind = type(key)
    if kind is not tuple and kind is not frozenset:
        if kind not in _ATOMS and kind is not bytes and kind is not complex and not _is_key(kind):
            raise _WrongKey(f"{kind.__name__} cannot be a dict key or set member on the channel")
        return 1
    if depth == limits.key_depth:
        raise DecodeError(f"a key is nested deeper than {limits.key_depth} levels")
    size = 1
    for item in key:
        size += _key_size(item, depth + 1, limits)
        if size > limits.key_size:
            raise DecodeError(f"a key holds more than {limits.key_size} values")
    return size


def _is_key(kind: type) -> bool:
    return _known(kind) in (
        "date", "datetime", "time", "timedelta", "timezone", "Decimal", "Fraction", "UUID",
        "PurePosixPath", "PureWindowsPath",
    )  # fmt: skip


def _read_tuple(_: _Reader, tag: str, items: Any) -> object:
    _expect(list, items)
    return tuple(items)


def _read_set(reader: _Reader, tag: str, items: Any) -> object:
    _expect(list, items)
    reader.keys(items)
    return set(items) if tag == "set" else frozenset(items)


def _read_dict(reader: _Reader, tag: str, pairs: Any) -> object:
    found = reader.pairs(pairs)
    if tag == "dict":
        return dict(found)
    if tag == "OrderedDict":
        return OrderedDict(found)
    return _module("collections").Counter(dict(found))


def _read_defaultdict(reader: _Reader, tag: str, factory: Any, pairs: Any) -> object:
    found = reader.pairs(pairs)
    if factory is None:
        return defaultdict(None, dict(found))
    _expect(str, factory)
    if factory not in _FACTORIES:
        raise DecodeError(f"unknown default factory {factory[:40]!r}")
    return defaultdict(_FACTORIES[factory], dict(found))


def _read_deque(_: _Reader, tag: str, items: Any, maxlen: Any) -> object:
    _expect(list, items)
    if maxlen is not None:
        _expect(int, maxlen)
        if not len(items) <= maxlen < 1 << 63:
            raise DecodeError("a deque longer than its maxlen")
    return deque(items, maxlen)


def _read_buffer(reader: _Reader, tag: str, index: Any) -> object:
    found = reader.buffer(index)
    return bytes(found) if tag == "bytes" else bytearray(found)


def _read_complex(_: _Reader, tag: str, real: Any, imag: Any) -> object:
    _expect(float, real, imag)
    return complex(real, imag)


def _read_float(_: _Reader, tag: str, name: Any) -> object:
    if type(name) is not str or name not in ("nan", "inf", "-inf"):
        raise DecodeError("a tagged float is nan, inf or -inf")
    return float(name)


def _read_int(reader: _Reader, tag: str, text: Any) -> object:
    _expect(str, text)
    digits = text[1:] if text[:1] == "-" else text
    if not digits or digits.strip(_HEX):
        raise DecodeError("a tagged int is written in hexadecimal")
    if len(digits) > reader.limits.int_digits:
        raise DecodeError(f"an int of {len(digits)} hexadecimal digits: the limit is {reader.limits.int_digits}")
    return int(text, 16)


def _read_range(_: _Reader, tag: str, start: Any, stop: Any, step: Any) -> object:
    _expect(int, start, stop, step)
    return range(start, stop, step)


def _read_slice(_: _Reader, tag: str, start: Any, stop: Any, step: Any) -> object:
    for part in (start, stop, step):
        if part is not None:
            _expect(int, part)
    return slice(start, stop, step)


def _read_date(_: _Reader, tag: str, *parts: Any) -> object:
    _expect(int, *parts)
    return _module("datetime").date(*parts)


def _check_zone(fold: Any, zone: Any) -> None:
    if type(fold) is not int or fold not in (0, 1):
        raise DecodeError("fold is 0 or 1")
    if zone is not None:
        _expect(_module("datetime").timezone, zone)


def _read_datetime(_: _Reader, tag: str, *parts: Any) -> object:
    numbers, fold, zone = parts[:-2], parts[-2], parts[-1]
    _expect(int, *numbers)
    _check_zone(fold, zone)
    return getattr(_module("datetime"), tag)(*numbers, zone, fold=fold)


def _read_timedelta(_: _Reader, tag: str, days: Any, seconds: Any, micros: Any) -> object:
    _expect(int, days, seconds, micros)
    if not (-999999999 <= days <= 999999999 and 0 <= seconds < 86400 and 0 <= micros < 1000000):
        raise DecodeError("a timedelta is out of range or not normalised")
    return _module("datetime").timedelta(days, seconds, micros)


def _read_timezone(_: _Reader, tag: str, offset: Any, name: Any) -> object:
    _expect(int, offset)
    if not -86400_000000 < offset < 86400_000000:
        raise DecodeError("an offset from UTC of a day or more")
    dt = _module("datetime")
    if name is None:
        return dt.timezone(dt.timedelta(microseconds=offset))
    _expect(str, name)
    return dt.timezone(dt.timedelta(microseconds=offset), name)


def _read_decimal(_: _Reader, tag: str, sign: Any, digits: Any, exponent: Any) -> object:
    if type(sign) is not int or sign not in (0, 1):
        raise DecodeError("the sign of a Decimal is 0 or 1")
    _expect(str, digits)
    if digits.strip("0123456789") or len(digits) > _PLAIN_DIGITS:
        raise DecodeError(f"the digits of a Decimal are 0 to 9, at most {_PLAIN_DIGITS}")
    minus = "-" if sign else ""
    decimal = _module("decimal").Decimal
    if type(exponent) is str:
        if exponent == "F" and digits == "0":
            return decimal(minus + "Infinity")
        if exponent not in ("n", "N") or digits[:1] == "0":
            raise DecodeError("a Decimal that is no number is F with digits 0, or n or N")
        return decimal(minus + ("NaN" if exponent == "n" else "sNaN") + digits)
    _expect(int, exponent)
    if not digits or not -_EXPONENT <= exponent <= _EXPONENT:
        raise DecodeError(f"the exponent of a Decimal is at most {_EXPONENT} either way")
    return decimal(f"{minus}{digits}E{exponent}")


def _read_fraction(_: _Reader, tag: str, numerator: Any, denominator: Any) -> object:
    _expect(int, numerator, denominator)
    if denominator <= 0 or max(numerator.bit_length(), denominator.bit_length()) > 4 * _FRACTION_DIGITS:
        raise DecodeError(f"a Fraction has a positive denominator, and at most {_FRACTION_DIGITS} hexadecimal digits")
    return _module("fractions").Fraction(numerator, denominator)


def _read_uuid(_: _Reader, tag: str, text: Any) -> object:
    _expect(str, text)
    if len(text) != 32 or text.strip(_HEX):
        raise DecodeError("a UUID is 32 hexadecimal digits")
    return _module("uuid").UUID(int=int(text, 16))


def _read_path(_: _Reader, tag: str, text: Any) -> object:
    _expect(str, text)
    return getattr(_module("pathlib"), tag)(text)


def _read_exception(_: _Reader, tag: str, name: Any, args: Any) -> object:
    _expect(str, name)
    _expect(list, args)
    if name not in _EXCEPTIONS:
        raise DecodeError(f"{name[:40]!r} is not a builtin exception")
    cls = getattr(_module("builtins"), name)
    try:
        return cls(*args)
    except Exception:  # some check their arguments: keep them without the check
        error = cls.__new__(cls)
        error.args = tuple(args)
        return error


def _read_ndarray(reader: _Reader, tag: str, dtype: Any, shape: Any, order: Any, index: Any) -> object:
    _expect(str, dtype)
    _expect(list, shape)
    _expect(int, *shape)
    size = _item_size(dtype)
    if len(shape) > 32 or order not in ("C", "F") or type(order) is not str:
        raise DecodeError("an array has at most 32 dimensions, in order C or F")
    count = extent = 1
    for length in shape:
        if length < 0 or length >= 1 << 40:
            raise DecodeError("a dimension of an array is out of range")
        count *= length
        extent = min(extent * max(length, 1), 1 << 62)
    buffer = reader.buffer(index)
    if count * size != len(buffer) or extent * size > max(reader.limits.message, len(buffer)):
        raise DecodeError(f"an array of shape {shape[:8]} and dtype {dtype} does not fit its {len(buffer)} bytes")
    numpy = sys.modules.get("numpy")
    if numpy is None:
        raise MissingModule("a numpy array: import numpy before receiving it")
    array = numpy.frombuffer(buffer, dtype=dtype) if count else numpy.empty(0, dtype)
    _check_array(numpy, dtype, array)
    if not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False  # as a large one, which lies in memory that nobody can write
    return array.reshape(shape, order=order)


def _item_size(dtype: str) -> int:
    """Bytes per item of an array type that may cross, as numpy spells it."""
    order, kind, rest = dtype[:1], dtype[1:2], dtype[2:]
    if order in ("<", ">", "|") and kind + rest in _DTYPES:
        if (order == "|") == (rest == "1"):
            return int(rest)
    elif order in ("<", ">") and kind in ("M", "m") and rest[:1] == "8":
        unit = rest[1:]
        if unit == "" or (unit[0] == "[" and unit[-1] == "]" and unit[1:-1] in _UNITS):
            return 8
    elif (order + kind == "|S" or order + kind in ("<U", ">U")) and len(rest) <= 9:
        if rest and not rest.strip("0123456789") and rest[0] != "0":
            return int(rest) * (1 if kind == "S" else 4)
    raise DecodeError(f"an array of dtype {dtype[:40]!r} cannot cross")


def _check_array(numpy: Any, dtype: str, array: Any) -> None:
    """Refuses items that no program can hold: bool 7, code point 0x110000."""
    if not len(array):
        return
    if dtype == "|b1" and array.view("u1").max() > 1:
        raise DecodeError("a bool in an array is neither 0 nor 1")
    if dtype[1] == "U" and array.view(dtype[0] + "u4").max() > 0x10FFFF:
        raise DecodeError("a character in an array is beyond Unicode")


def _read_class(reader: _Reader, tag: str, name: Any, args: Any) -> object:
    _expect(str, name)
    _expect(list, args)
    build = (reader.classes or {}).get(name)
    if build is None:
        raise UnknownClass(f"a value of class {name[:80]!r}: opt in with classes={{{name[:80]!r}: ...}}")
    return build(*args)


# tag: (arguments, weight in units of 64 bytes beyond the JSON, builder)
_TAGS: Mapping[str, tuple[int, int, Callable[..., object]]] = {
    "tuple": (1, 0, _read_tuple),
    "set": (1, 3, _read_set),
    "frozenset": (1, 3, _read_set),
    "dict": (1, 3, _read_dict),
    "OrderedDict": (1, 6, _read_dict),
    "Counter": (1, 4, _read_dict),
    "defaultdict": (2, 4, _read_defaultdict),
    "deque": (2, 12, _read_deque),
    "bytes": (1, 3, _read_buffer),
    "bytearray": (1, 3, _read_buffer),
    "complex": (2, 0, _read_complex),
    "float": (1, 0, _read_float),
    "int": (1, 0, _read_int),
    "range": (3, 1, _read_range),
    "slice": (3, 1, _read_slice),
    "date": (3, 0, _read_date),
    "time": (6, 0, _read_datetime),
    "datetime": (9, 0, _read_datetime),
    "timedelta": (3, 0, _read_timedelta),
    "timezone": (2, 1, _read_timezone),
    "Decimal": (3, 2, _read_decimal),
    "Fraction": (2, 3, _read_fraction),
    "UUID": (1, 2, _read_uuid),
    "PurePosixPath": (1, 8, _read_path),
    "PureWindowsPath": (1, 8, _read_path),
    "exception": (2, 3, _read_exception),
    "ndarray": (4, 4, _read_ndarray),
    "class": (2, 4, _read_class),
}


# --- encoding ----------------------------------------------------------------


def encode(obj: object, *, limit: int = 64 << 20) -> Union[bytes, list[Data]]:
    """Describes a value as a payload: one bytes object, or a list of parts.

    limit: bytes that the payload may have. Parts beyond the first may share
    memory with the value: send them before it changes. Errors: TypeError for
    a value that cannot cross, CodecError for one that is too large or deep.
    """
    kind = type(obj)
    if kind is str:
        try:
            whole = b"S" + obj.encode()  # type: ignore[attr-defined]
        except UnicodeEncodeError:  # lone surrogates: JSON can escape them
            whole = b"J" + _quote(obj).encode()  # type: ignore[arg-type]
        return whole if len(whole) <= limit else _too_large(len(whole), limit)
    if kind is bytes:
        if len(obj) >= limit:  # type: ignore[arg-type]
            _too_large(len(obj) + 1, limit)  # type: ignore[arg-type]
        return b"Y" + obj if len(obj) < _JOIN else [b"Y", obj]  # type: ignore[operator,arg-type,list-item]
    try:
        if _is_plain(obj, _DEFAULT.depth - 1):
            text = "".join(_dump(obj, 0))
            if len(text) > _DEFAULT.objects:
                _check_text(text, _DEFAULT)
            whole = b"J" + text.encode()
            return whole if len(whole) <= limit else _too_large(len(whole), limit)
    except DecodeError as error:
        raise CodecError(f"this value cannot cross: {error}") from None
    except ValueError:  # nan, inf, or an int of thousands of digits: needs tags
        pass
    return _encode_tagged(obj, limit)


def _too_large(size: int, limit: int) -> bytes:
    raise CodecError(
        f"this value takes {size} bytes: the limit is {limit} (policy key message); send it in parts"
    )


def _is_plain(obj: Any, depth: int) -> bool:
    """Whether JSON carries the value without a tag, and without changing it."""
    kind = type(obj)
    if kind is dict:
        if not set(map(type, obj)) <= {str} or "$" in obj:
            return False
        inner = obj.values()
    elif kind is list:
        inner = obj
    else:
        return kind in _ATOMS
    kinds = set(map(type, inner))
    if kinds <= _ATOMS:
        return True
    if depth == 0 or not kinds <= _PLAIN:
        return False
    depth -= 1
    return all(_is_plain(item, depth) for item in inner if type(item) not in _ATOMS)


def _encode_tagged(obj: object, limit: int) -> Union[bytes, list[Data]]:
    writer = _Writer()
    try:
        tree = writer.tree(obj, 0)
        sizes = [part.nbytes for part in writer.buffers]
        text = "".join(_dump([sizes, tree] if sizes else tree, 0))
        _check_text(text, _DEFAULT)
    except _WrongKey as error:
        raise TypeError(str(error)) from None
    except DecodeError as error:
        raise CodecError(f"this value cannot cross: {error}") from None
    except RecursionError:
        raise CodecError("this value cannot cross: it is nested too deep, or contains itself") from None
    head = b"J" + text.encode() if not sizes else b"B" + _U32.pack(len(text)) + text.encode()
    total = len(head) + sum(sizes)
    if total > limit:
        _too_large(total, limit)
    if not sizes:
        return head
    parts: list[Data] = [head, *writer.buffers]
    return b"".join(parts) if total < _JOIN else parts


class _Writer:
    """Turns a value into the JSON tree that describes it, collecting buffers."""

    __slots__ = ("buffers",)

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []

    def tree(self, obj: Any, depth: int) -> object:
        kind = type(obj)
        if kind is str or kind is bool or obj is None:
            return obj
        if kind is int:
            return obj if -(1 << 63) <= obj < 1 << 63 else {"$": ["int", _hex(obj)]}
        if kind is float:
            return obj if obj - obj == 0 else {"$": ["float", str(obj)]}
        if depth > _DEFAULT.depth:
            raise DecodeError("it is nested too deep, or contains itself")
        if kind is list:
            return [self.tree(item, depth + 1) for item in obj]
        if kind is dict:
            if set(map(type, obj)) <= {str} and "$" not in obj:
                return {key: self.tree(item, depth + 1) for key, item in obj.items()}
            return {"$": ["dict", self.pairs(obj, depth)]}
        name = _known(kind)
        write = _WRITERS.get(name) if name else None
        if write is None:
            return self.other(obj, kind, depth)
        return {"$": [name, *write(self, obj, depth + 2)]}

    def items(self, obj: Iterable[Any], depth: int) -> list[object]:
        return [self.tree(item, depth + 1) for item in obj]

    def pairs(self, obj: Mapping[Any, Any], depth: int) -> list[object]:
        keys = self.keys(obj)
        return [[self.tree(key, depth + 3), self.tree(item, depth + 3)] for key, item in zip(keys, obj.values())]

    def keys(self, obj: Iterable[Any]) -> Iterable[Any]:
        """The keys or members, numpy's scalars among them as Python's own."""
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            obj = [key.item() if isinstance(key, numpy.generic) else key for key in obj]
        _check_keys(obj, _DEFAULT)
        return obj

    def buffer(self, data: Any) -> int:
        self.buffers.append(memoryview(data))
        return len(self.buffers) - 1

    def other(self, obj: Any, kind: type, depth: int) -> object:
        """Arrays, exceptions, and classes that the receiver may have opted in to."""
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            if kind is numpy.ndarray:
                return {"$": ["ndarray", *self.array(numpy, obj)]}
            if isinstance(obj, numpy.generic) and type(obj.item()) in (bool, int, float, complex, str, bytes):
                return self.tree(obj.item(), depth)
        if kind.__module__ == "builtins" and kind.__name__ in _EXCEPTIONS:
            args = obj.args
            if isinstance(obj, OSError) and obj.filename is not None and len(args) == 2:
                args = (*args, obj.filename)
            return {"$": ["exception", kind.__name__, self.items(args, depth + 2)]}
        fields = _fields(obj, kind)
        if fields is not None:
            return {"$": ["class", kind.__qualname__, self.items(fields, depth + 2)]}
        raise TypeError(
            f"{kind.__module__}.{kind.__qualname__} cannot cross the channel: send plain data "
            "(None, bool, numbers, str, bytes, list, tuple, dict, set, datetime, Decimal, numpy arrays ...)"
        )

    def array(self, numpy: Any, array: Any) -> tuple[object, ...]:
        dtype = array.dtype.str
        try:
            _item_size(dtype)
        except DecodeError:
            raise TypeError(
                f"a numpy array of dtype {array.dtype} cannot cross the channel: "
                "convert it with astype() or tolist()"
            ) from None
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        flat = array.ravel(order=order)
        flat = flat.view("u1") if array.size else b""
        return dtype, list(array.shape), order, self.buffer(flat)


def _fields(obj: Any, kind: type) -> Optional[Iterable[Any]]:
    """The constructor's arguments of a dataclass, named tuple or enum member."""
    fields = getattr(kind, "__dataclass_fields__", None)
    if type(fields) is dict:
        return [getattr(obj, name) for name, field in fields.items() if field.init and field._field_type.name == "_FIELD"]
    if isinstance(obj, tuple) and type(getattr(kind, "_fields", None)) is tuple:
        return obj
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(obj, enum.Enum):
        return [obj.value]
    return None


def _hex(number: int) -> str:
    text = f"{number:x}"
    if len(text) > _DEFAULT.int_digits:
        raise DecodeError(f"an int of {len(text)} hexadecimal digits: the limit is {_DEFAULT.int_digits}")
    return text


def _known(kind: type) -> Optional[str]:
    """The tag of a class, if it is the very class that the tag stands for."""
    name = kind.__name__
    home = _HOMES.get(name)
    if home is None:
        return None
    module = sys.modules.get(home)
    return name if module is not None and getattr(module, name, None) is kind else None


_HOMES: Mapping[str, str] = {
    **dict.fromkeys(("tuple", "set", "frozenset", "bytes", "bytearray", "complex", "range", "slice"), "builtins"),
    **dict.fromkeys(("OrderedDict", "defaultdict", "deque"), "_collections"),
    **dict.fromkeys(("date", "time", "datetime", "timedelta", "timezone"), "datetime"),
    **dict.fromkeys(("PurePosixPath", "PureWindowsPath"), "pathlib"),
    "Counter": "collections",
    "Decimal": "decimal",
    "Fraction": "fractions",
    "UUID": "uuid",
}


def _write_items(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return (writer.items(obj, depth),)


def _write_members(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return (writer.items(writer.keys(obj), depth),)


def _write_pairs(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return (writer.pairs(obj, depth),)


def _write_defaultdict(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    factory = obj.default_factory
    name = None if factory is None else getattr(factory, "__name__", "")
    if name is not None and _FACTORIES.get(name) is not factory:
        raise TypeError(
            f"a defaultdict with the factory {factory!r} cannot cross the channel: send dict(it)"
        )
    return name, writer.pairs(obj, depth)


def _write_deque(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return writer.items(obj, depth), obj.maxlen


def _write_buffer(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return (writer.buffer(obj),)


def _write_complex(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return writer.tree(obj.real, depth), writer.tree(obj.imag, depth)


def _write_slice(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    parts = (obj.start, obj.stop, obj.step)
    for part in parts:
        if part is not None and type(part) is not int:
            raise TypeError("only a slice of ints can cross the channel")
    return writer.items(parts, depth)


def _write_date(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return obj.year, obj.month, obj.day


def _write_time(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return obj.hour, obj.minute, obj.second, obj.microsecond, obj.fold, _zone(writer, obj.tzinfo, depth)


def _write_datetime(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return (*_write_date(writer, obj, depth), *_write_time(writer, obj, depth))


def _zone(writer: _Writer, zone: Any, depth: int) -> object:
    if zone is not None and _known(type(zone)) != "timezone":
        raise TypeError(
            f"a time zone of class {type(zone).__qualname__} cannot cross the channel: "
            "use astimezone(datetime.timezone.utc)"
        )
    return writer.tree(zone, depth)


def _write_timedelta(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    return obj.days, obj.seconds, obj.microseconds


def _write_timezone(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    args = obj.__getinitargs__()
    micros = args[0] // _module("datetime").timedelta(microseconds=1)
    return micros, args[1] if len(args) > 1 else None


def _write_decimal(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    sign, digits, exponent = obj.as_tuple()
    text = "".join(map(str, digits))
    if len(text) > _PLAIN_DIGITS or (type(exponent) is int and abs(exponent) > _EXPONENT):
        raise DecodeError(
            f"a Decimal has at most {_PLAIN_DIGITS} digits and an exponent of at most {_EXPONENT} either way"
        )
    return sign, text, exponent


def _write_fraction(writer: _Writer, obj: Any, depth: int) -> Sequence[object]:
    if max(obj.numerator.bit_length(), obj.denominator.bit_length()) > 4 * _FRACTION_DIGITS:
        raise DecodeError(f"a Fraction has at most {_FRACTION_DIGITS} hexadecimal digits")
    return writer.items((obj.numerator, obj.denominator), depth)


_WRITERS: Mapping[Optional[str], Callable[[_Writer, Any, int], Sequence[object]]] = {
    "tuple": _write_items,
    "set": _write_members,
    "frozenset": _write_members,
    "OrderedDict": _write_pairs,
    "Counter": _write_pairs,
    "defaultdict": _write_defaultdict,
    "deque": _write_deque,
    "bytes": _write_buffer,
    "bytearray": _write_buffer,
    "complex": _write_complex,
    "range": lambda writer, obj, depth: writer.items((obj.start, obj.stop, obj.step), depth),
    "slice": _write_slice,
    "date": _write_date,
    "time": _write_time,
    "datetime": _write_datetime,
    "timedelta": _write_timedelta,
    "timezone": _write_timezone,
    "Decimal": _write_decimal,
    "Fraction": _write_fraction,
    "UUID": lambda writer, obj, depth: (f"{obj.int:032x}",),
    "PurePosixPath": lambda writer, obj, depth: (str(obj),),
    "PureWindowsPath": lambda writer, obj, depth: (str(obj),),
}
