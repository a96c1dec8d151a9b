"""What a guest's file error has to do with its policy.

In a guest, what is not allowed does not exist: the error it gets is the kernel's "No such file or
directory". Outside, the policy is known, and the error can say which rule would be needed.
"""

from __future__ import annotations

import errno
from typing import List, Mapping, Optional, Sequence

from .errors import GuestError
from .policy import FsRule

# What every guest has of its own, whatever its policy says.
_OWN = ("/tmp", "/proc", "/dev", "/usr", "/etc", "/lib", "/lib64", "/bin", "/srv", "/run", "/var", "/opt", "/home")
_OWN_DIRECTORIES = ("/tmp/", "/proc/", "/dev/", "/usr/lib/python3")
_DENIED = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)


def fs_rules(fields: Mapping[str, object]) -> Optional[List[FsRule]]:
    """The fs rules of a spawn request, None if only the supervisor knows them."""
    document = fields.get("policy")
    if isinstance(document, dict):
        return list(document.get("fs") or ())
    return [] if fields.get("policy_name") == "defaults" else None


def file_hint(error: GuestError, rules: Optional[Sequence[FsRule]]) -> str:
    """The rule that an OSError of a guest calls for, "" if none does (the file may simply be missing)."""
    if rules is None or not isinstance(error, OSError) or error.errno not in _DENIED:
        return ""
    path = error.filename
    if not isinstance(path, str) or not path.startswith("/"):
        return ""
    if path in _OWN or path.startswith(_OWN_DIRECTORIES):
        return ""
    for rule in rules:
        mode, pattern = ("read", rule) if isinstance(rule, str) else next(iter(rule.items()))
        if _may_match(pattern, path):
            if mode == "deny":
                return f'the fs rule {{"deny": "{pattern}"}} of its policy takes this path out'
            if mode == "read" and error.errno != errno.ENOENT:
                return f'the fs rule "{pattern}" of its policy is for reading; allow_fs(…, mode="rw") allows writing'
            return ""
    listed = ", ".join(str(rule) for rule in rules) or "it has none"
    return f'no fs rule of its policy allows this path ({listed}); allow_fs("{path}") would'


def _may_match(pattern: str, path: str) -> bool:
    """Whether the path lies at or below the part of the pattern that has no wildcard."""
    literal = pattern
    for wildcard in "*?[":
        literal = literal.split(wildcard, 1)[0]
    if literal != pattern:
        return path.startswith(literal)
    return path == pattern or path.startswith(pattern.rstrip("/") + "/")
