"""What a spawn or reload asks for, as fields of the control request."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from .errors import PolicyError, SandboxError
from .policy import Policy, check

PolicyLike = Union[str, "os.PathLike[str]", Mapping[str, Any], Policy, None]

_USUAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")  # in a name; other letters and digits are fine as well
_SUFFIXES = (".yml", ".yaml", ".json")


def check_name(name: object) -> str:
    """A guest's name: 1 to 64 letters, digits, dots, underscores and dashes."""
    if not isinstance(name, str):
        raise SandboxError(f"a sandbox's name is text, not {type(name).__name__}")
    usual = _USUAL.issuperset(name)
    if not 1 <= len(name) <= 64 or not (usual or all(c in _USUAL or c.isalpha() or c.isdecimal() for c in name)):
        raise SandboxError(f"name {name!r}: a sandbox's name has 1 to 64 letters, digits, dots, underscores or dashes")
    return name


def policy_fields(policy: PolicyLike) -> Dict[str, object]:
    """The fields for a policy: a name, a file (read here, with the caller's rights), a document."""
    if policy is None:
        return {"policy_name": "defaults"}
    if isinstance(policy, str):
        return _file_fields(policy) if "/" in policy or policy.endswith(_SUFFIXES) else {"policy_name": policy}
    if isinstance(policy, Policy):
        return {"policy": policy._document}  # which nobody changes
    if isinstance(policy, Mapping):
        check(policy)
        return {"policy": Policy.from_dict(policy)._document}
    if isinstance(policy, os.PathLike):
        return _file_fields(os.fspath(policy))
    raise PolicyError(f"a policy is a name, a file's path, a dict, a Policy or None, not {type(policy).__name__}")


def spawn_fields(policy: PolicyLike, allowed_imports: Optional[Sequence[str]]) -> Dict[str, object]:
    """The fields of a spawn request. Without ``allowed_imports`` the policy's own list holds."""
    fields = policy_fields(policy)
    if allowed_imports is not None:
        fields["allowed_imports"] = imports_field(allowed_imports)
    return fields


def imports_field(names: Sequence[str]) -> List[str]:
    """The field for ``allowed_imports``."""
    if isinstance(names, str):
        raise PolicyError(f"allowed_imports is a list of module names; write [{names!r}]")
    modules = list(names)
    check({"imports": modules})
    return modules


def _file_fields(path: str) -> Dict[str, object]:
    try:
        with open(path, encoding="utf-8") as file:
            return {"policy_text": file.read(1 << 20), "policy_source": path}
    except OSError as error:
        raise PolicyError(f"reading policy file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"reading policy file {path}: it is not UTF-8 ({error})") from error
