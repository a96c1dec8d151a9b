"""Why a guest is no longer there, as an exception."""

from __future__ import annotations

import signal
from typing import Any, Mapping, Optional

from .errors import CPUExceeded, MemoryExceeded, SandboxError, printable


def death(name: str, exited: Mapping[str, Any], fault: Optional[str], forked: bool) -> SandboxError:
    """The error for a sandbox that ended.

    ``exited`` is the supervisor's notice (empty: there is none, the handle was closed), ``fault`` the rule of
    the channel that the guest broke, ``forked`` whether the handle came through os.fork.
    """
    who = f"sandbox {name!r}"
    if forked:
        return _caused("forked", f"{who} belongs to the parent process; spawn one in this process")
    cause = exited.get("cause")
    limit, observed = exited.get("limit"), exited.get("observed")
    if cause == "oom":
        error: SandboxError = MemoryExceeded(f"{who} was killed: it used more than {_bytes(limit)} (policy key mem)")
    elif cause == "cpu":
        error = CPUExceeded(f"{who} was killed: it used more than {_ms(limit)} of cpu time (policy key cpu_ms)")
    elif fault is not None:
        return _caused("broken", f"{who} was killed: {printable(fault)}")
    else:
        error = SandboxError(f"{who} {_story(exited)}")
    error.cause = cause or "closed"
    error.limit, error.observed = limit, observed
    return error


def _caused(cause: str, text: str) -> SandboxError:
    error = SandboxError(text)
    error.cause = cause
    return error


def _story(exited: Mapping[str, Any]) -> str:
    cause, text = exited.get("cause"), printable(str(exited.get("message") or ""))
    if cause == "wall":
        return f"was killed: it lived longer than {_ms(exited.get('limit'))} (policy key wall_ms)"
    if cause == "supervisor":
        return f"ended with its supervisor: {text}"
    if cause == "exit":
        story = f"has ended by itself with exit code {exited.get('code')}"
    elif cause == "signal":
        story = f"was killed by {_signal_name(exited.get('signal'))}"
    else:
        return "is closed"
    return f"{story}: {text}" if text else story


def _signal_name(number: object) -> str:
    try:
        return signal.Signals(number).name if isinstance(number, int) else "a signal"
    except ValueError:
        return f"signal {number}"


def _bytes(limit: object) -> str:
    if not isinstance(limit, (int, float)):
        return "its memory limit"
    mebibytes = limit / (1 << 20)
    return f"{mebibytes:g} MiB of memory" if mebibytes >= 1 else f"{limit:g} bytes of memory"


def _ms(limit: object) -> str:
    return f"{limit:g} ms" if isinstance(limit, (int, float)) else "its limit"
