"""The exceptions a user of pyisolate can meet.

All of them inherit from :class:`SandboxError`. There are two families, kept apart on purpose:

* what *we* have to say: :class:`PolicyError`, :class:`TimeoutError`, :class:`MemoryExceeded`,
  :class:`CPUExceeded`, or a plain :class:`SandboxError` with a ``cause``;
* what the *guest's code* raised: :class:`GuestError`. A guest that raises its own ``TimeoutError`` or
  ``MemoryError`` can never make it look like one of ours.

Every exception carries, where it applies, ``sandbox`` (the handle), ``limit`` and ``observed``
(the figure that was allowed and the one that was seen: bytes for memory, milliseconds for time).
"""

from __future__ import annotations

import builtins
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Type

if TYPE_CHECKING:
    from .sandbox import Sandbox

__all__ = [
    "CPUExceeded",
    "GuestError",
    "GuestTraceback",
    "MemoryExceeded",
    "PolicyAuthError",
    "PolicyError",
    "SandboxError",
    "TimeoutError",
]


class SandboxError(Exception):
    """Something is wrong with a sandbox; the base of every error here.

    ``cause`` says why a sandbox is no longer alive: ``exit``, ``signal``, ``oom``, ``cpu``, ``wall``,
    ``closed``, ``supervisor`` (the supervisor died), ``broken`` (the guest broke the channel's
    protocol), ``forked`` (the handle was inherited through ``os.fork``); None for errors that are not
    a death.
    """

    sandbox: Optional["Sandbox"] = None
    cause: Optional[str] = None
    limit: Optional[float] = None
    observed: Optional[float] = None

    def __reduce__(self) -> Tuple[Any, ...]:
        # A handle cannot leave its process; the rest of the error can (multiprocessing, futures).
        return (_rebuild, (type(self), self.args, _portable(self)))


class PolicyError(SandboxError):
    """A policy that cannot be accepted; the message names the key, the value and the way out."""


class PolicyAuthError(SandboxError):
    """A policy may not be changed by whoever asked: another user's sandbox, or a token that is missing or wrong."""


class TimeoutError(SandboxError, builtins.TimeoutError):
    """A wait of ours ended without an answer. It is also the builtin ``TimeoutError``."""


class MemoryExceeded(SandboxError):
    """The guest used more memory than its policy allows and was killed (``limit``: bytes)."""


class CPUExceeded(SandboxError):
    """The guest used more cpu time than its policy allows and was killed (``limit``: milliseconds)."""


class GuestTraceback(Exception):
    """The traceback inside the guest, as text: the ``__cause__`` of a :class:`GuestError`."""

    def __str__(self) -> str:
        return "\n\nin the guest:\n" + "".join(str(arg) for arg in self.args)


class GuestError(SandboxError):
    """An exception that the guest's code did not catch.

    For a builtin exception the class raised here inherits from that type as well, so that
    ``except ValueError`` works; ``type_name`` is the type's name in the guest, ``message`` its text,
    ``traceback`` the guest's formatted traceback, and ``hint`` the rule of the policy that a file error
    calls for, if one does. Text from a guest is shown with control characters escaped.
    """

    type_name: str = "Exception"
    message: str = ""
    traceback: str = ""
    hint: str = ""

    def __init__(self, *args: object) -> None:
        # Its presence makes OSError parse its arguments in __init__, which _construct calls.
        self.args = args

    def __str__(self) -> str:
        text = self.message
        if type(self) is GuestError:
            text = f"{self.type_name}: {text}" if text else self.type_name
        return f"{text} ({self.hint})" if self.hint else text

    def __reduce__(self) -> Tuple[Any, ...]:
        return (_rebuild_guest, (type(self).__name__, self.args, _portable(self)))


# Exceptions that steer the interpreter rather than report a fault (a guest must not be able to end its
# host's loop or process), and those whose constructors need more than data.
_NOT_MIRRORED = frozenset({"StopIteration", "StopAsyncIteration", "BaseExceptionGroup", "ExceptionGroup"})


@lru_cache(maxsize=None)  # bounded: one entry per builtin exception, see guest_error_class
def _mirror(name: str) -> Type[GuestError]:
    builtin = getattr(builtins, name)
    doc = f"{name} raised by a guest."
    return type(f"Guest{name}", (GuestError, builtin), {"__doc__": doc, "__module__": __name__})


def guest_error_class(module: str, name: str) -> Type[GuestError]:
    """The class to raise for a guest's exception type: GuestError, and the builtin type if it is one."""
    builtin = getattr(builtins, name, None) if module == "builtins" else None
    if not (isinstance(builtin, type) and issubclass(builtin, Exception)) or name in _NOT_MIRRORED:
        return GuestError
    return _mirror(builtin.__name__)


def make_guest_error(
    module: str, name: str, message: str, traceback: str, args: Optional[Tuple[Any, ...]]
) -> GuestError:
    """Build the exception for what a guest reported; ``args`` are the decoded arguments, if any came."""
    message, traceback = printable(message), printable(traceback)
    cls = guest_error_class(module, name)
    if args is not None and len(args) == 2 and issubclass(cls, OSError):
        args = (*args, *_file_name(message))
    error = _construct(cls, (message,) if args is None else args)
    error.type_name = printable(name if module in ("builtins", "__main__") else f"{module}.{name}")
    error.message = message
    error.traceback = traceback
    if traceback:
        error.__cause__ = GuestTraceback(traceback)
    return error


def _file_name(message: str) -> Tuple[str, ...]:
    # "[Errno 2] No such file or directory: '/x'": an OSError keeps its file name outside its args.
    found = re.search(r""": ('[^'\\]*'|"[^"\\]*")$""", message)
    return (found.group(1)[1:-1],) if found else ()


def _construct(cls: Type[GuestError], args: Tuple[Any, ...]) -> GuestError:
    # __new__ without arguments first: no constructor of a builtin may refuse what a guest sent.
    # Then the builtin's own __init__ fills in its fields (errno, object, start …) if they fit.
    # (MemoryError has a __new__ of its own that CPython refuses to use through another base.)
    error = BaseException.__new__(cls) if issubclass(cls, MemoryError) else cls.__new__(cls)
    error.args = args
    if cls is not GuestError:
        builtin: Any = cls.__mro__[cls.__mro__.index(SandboxError) + 1]
        try:
            builtin.__init__(error, *args)
        except Exception:  # arguments that only a guest could think of; the text is what counts
            error.args = args
    return error


def printable(text: str) -> str:
    """Text of a guest, safe to show: control characters and lone surrogates become escapes."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in text)


def _portable(error: SandboxError) -> Dict[str, Any]:
    return {key: value for key, value in vars(error).items() if key != "sandbox"}


def _rebuild(cls: Type[SandboxError], args: Tuple[Any, ...], state: Dict[str, Any]) -> SandboxError:
    error = cls(*args)
    vars(error).update(state)
    return error


def _rebuild_guest(cls_name: str, args: Tuple[Any, ...], state: Dict[str, Any]) -> GuestError:
    # GuestError itself, or GuestX for the builtin X
    error = _construct(guest_error_class("builtins", cls_name[len("Guest") :]), args)
    vars(error).update(state)
    if error.traceback:
        error.__cause__ = GuestTraceback(error.traceback)
    return error
