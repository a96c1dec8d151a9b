"""Guests that a container engine runs: what ``psi.spawn(…, engine=…)`` starts.

One `psi-shim bridge` for each engine's command speaks the supervisor's protocol and runs the command
once for each guest. See docs/bridge.md.
"""

from __future__ import annotations

import os
import shlex
from typing import Dict, Optional, Sequence, Tuple, Union

from ._request import PolicyLike, imports_field, spawn_fields
from .errors import SandboxError

EngineLike = Union[str, Sequence[str], None]


def engine_words(engine: EngineLike) -> Optional[Tuple[str, ...]]:
    """The engine's command, checked; None for a supervisor of psi's own.

    What "podman" stands for is in $PSI_PODMAN, or is psi-shim's default.
    """
    if engine is None:
        return None
    if engine == "podman":
        engine = shlex.split(os.environ.get("PSI_PODMAN", "podman"))
    words = (engine,) if isinstance(engine, str) else tuple(engine)
    if not words or not all(isinstance(each, str) and each for each in words):
        raise SandboxError(f"engine {engine!r}: give \"podman\", or a command as a list of words")
    if words != ("podman",) and len(words) == 1:
        raise SandboxError(
            f"engine {words[0]!r}: only \"podman\" has a command of its own; give any other engine's command as a list of "
            'words, such as ["kubectl", "attach", "-i", "POD"]'
        )
    return words


def engine_fields(policy: PolicyLike, allowed_imports: Optional[Sequence[str]]) -> Dict[str, object]:
    """The fields of a spawn request: a policy only if there is one, for not every engine takes it."""
    if policy is not None:
        return spawn_fields(policy, allowed_imports)
    return {} if allowed_imports is None else {"allowed_imports": imports_field(allowed_imports)}
