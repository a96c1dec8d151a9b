"""Exceptions as data: what an ERROR frame says."""

from __future__ import annotations

from . import frames
from .codec import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from traceback import TracebackException
    from typing import Mapping, Optional

_MESSAGE = 4096  # characters
_TRACEBACK = 24_000
_ARGS = 8192  # bytes
_FRAMES = 60  # innermost frames of each traceback


def describe(error: BaseException, sources: Mapping[str, str], home: str) -> bytes:
    """The payload of an ERROR frame: JSON of str values, and args where they can cross.

    sources: guest code by the file name it was compiled with, for the
    traceback. home: the agent's own file, whose frames are left out.
    Runs guest code (__str__ of its exceptions), which may raise anything.
    """
    kind = type(error)
    report: dict[str, object] = {
        "type": kind.__name__,
        "module": kind.__module__,
        "qualname": kind.__qualname__,
        "message": _cut(_message(error), _MESSAGE),
        "traceback": _cut(format_traceback(error, sources, home), _TRACEBACK),
    }
    args = _args(error)
    payload = _json(report, args)
    if len(payload) > frames.STREAM_LIMIT:
        report["traceback"] = _cut(str(report["traceback"]), _TRACEBACK // 12)
        report["message"] = _cut(str(report["message"]), _MESSAGE // 12)
        payload = _json(report, b"")
    return payload


def class_name(error: BaseException) -> str:
    """The name of its class, without running code of a metaclass."""
    return str(vars(type)["__name__"].__get__(type(error)))


def describe_briefly(kind: str, message: str, module: str = "builtins") -> bytes:
    """The payload of an ERROR frame for an exception without a traceback."""
    report: dict[str, object] = {
        "type": kind, "module": module, "qualname": kind, "message": message, "traceback": "",
    }  # fmt: skip
    return _json(report, b"")


def format_traceback(error: BaseException, sources: Mapping[str, str], home: str) -> str:
    """What Python prints for an uncaught exception, without the agent's frames."""
    import linecache
    import traceback

    for name, source in sources.items():
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    found = traceback.TracebackException(type(error), error, error.__traceback__, limit=-_FRAMES)
    todo: list[Optional[TracebackException]] = [found]
    while todo:
        part = todo.pop()
        if part is not None:
            part.stack = traceback.StackSummary.from_list(
                [frame for frame in part.stack if not frame.filename.startswith(home)]
            )
            todo += (part.__cause__, part.__context__)
    return "".join(found.format())


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as again:
        return f"<no message: __str__ raised {type(again).__name__}>"


def _args(error: BaseException) -> bytes:
    try:
        found = encode(list(error.args), limit=_ARGS)
    except Exception:
        return b""
    if type(found) is not bytes or found[:1] != b"J":  # binary parts do not fit into JSON
        return b""
    return found[1:]


def _json(report: dict[str, object], args: bytes) -> bytes:
    whole = encode(report)
    assert type(whole) is bytes
    return whole[1:-1] + b',"args":' + args + b"}" if args else whole[1:]


def _cut(text: str, limit: int) -> str:
    """The text, with its middle left out if it is too long."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]}\n[... {len(text) - limit} characters left out ...]\n{text[head - limit:]}"
