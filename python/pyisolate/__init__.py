"""Untrusted Python in a real container, at the price of a function call.

    import pyisolate as psi

    with psi.spawn("guest42", policy="defaults") as sb:
        sb.exec("from math import sqrt; post(sqrt(2))")
        print(sb.recv(timeout=1))

A policy goes in; a guest comes out that can do what the policy says and nothing else, held there by
the kernel. What a guest sends is data, never code: see :mod:`pyisolate.sandbox`. Errors are in
:mod:`pyisolate.errors`, the policy builder in :mod:`pyisolate.policy`.

Starting guests takes root on Linux, or a shared supervisor (:func:`connect`).
"""

from __future__ import annotations

import atexit
import os
from typing import Dict, Optional, Sequence

from ._engine import EngineLike, engine_fields, engine_words
from ._events import Event
from ._request import PolicyLike, check_name, spawn_fields
from ._supervisor import Supervision
from .errors import (
    CPUExceeded,
    GuestError,
    MemoryExceeded,
    PolicyAuthError,
    PolicyError,
    SandboxError,
    TimeoutError,
)
from .policy import Policy
from .sandbox import Sandbox, Stats

__all__ = [
    "CPUExceeded",
    "Event",
    "GuestError",
    "MemoryExceeded",
    "Policy",
    "PolicyAuthError",
    "PolicyError",
    "Sandbox",
    "SandboxError",
    "Stats",
    "TimeoutError",
    "asyncio",
    "connect",
    "events",
    "list_active",
    "spawn",
]

_supervision = Supervision()
atexit.register(_supervision.leave)
os.register_at_fork(after_in_child=_supervision.after_fork)

#: What happens to sandboxes: an asynchronous iterator of ``(ts, sandbox, event)``; see ``_events``.
events = _supervision.events


def spawn(
    name: str,
    policy: PolicyLike = None,
    allowed_imports: Optional[Sequence[str]] = None,
    *,
    engine: EngineLike = None,
) -> Sandbox:
    """Start a guest and return its handle when it is ready to run code.

    ``name`` is a label, unique among the active sandboxes of this process: 1 to 64 letters, digits,
    ``.``, ``_`` and ``-``. ``policy`` is a name ("defaults", "stdlib.readonly" …), a file (text with a "/"
    or ending in .yml, .yaml or .json, or a path object), a dict, a :class:`~pyisolate.policy.Policy`, or
    None for the defaults. ``allowed_imports`` limits what the guest's code may import, further than the
    policy does; an empty list means nothing. ``engine`` has a container engine run the guest: "podman", or
    any engine's command as a list of words (docs/bridge.md).

    The guest lives until it ends by itself, is closed, or this process ends; dropping the handle does not
    end it (:func:`list_active` has it still). Raises PolicyError, SandboxError.
    """
    check_name(name)
    if engine is None:
        return _supervision.spawn(name, spawn_fields(policy, allowed_imports))
    words = engine_words(engine)
    return _supervision.spawn(name, engine_fields(policy, allowed_imports), words)


def list_active() -> Dict[str, Sandbox]:
    """The sandboxes of this process that are running, by name."""
    return _supervision.active()


def connect(path: Optional[str]) -> None:
    """Use the shared supervisor whose socket is ``path`` for what is spawned from now on.

    The environment variable PSI_SOCKET does the same if it is there when a connection is made; None goes
    back to it, or to a supervisor of this process's own. The connection is made by the next spawn.
    """
    _supervision.connect(path)


from . import asyncio as asyncio  # noqa: E402  # needs what is above
