"""The policy builder: what a guest may do, as an immutable value.

>>> from pyisolate.policy import Policy
>>> cust = Policy(mem="256MiB").allow_fs("/srv/data/*.parquet").allow_import("math")
>>> cust.fs
['/srv/data/*.parquet']

Every modifier returns a new policy, so one policy can be the base of many. The keys are those of a
policy file (YAML, JSON); :meth:`Policy.to_dict` gives that document. What is checked here is only
what can be said at once and without the host; the supervisor checks everything again and has the last
word. Either way a mistake is a :class:`~pyisolate.errors.PolicyError`.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from .errors import PolicyError

__all__ = ["Policy", "protect", "refresh"]

FsRule = Union[str, Dict[str, str]]
NetRule = Union[str, Dict[str, Any]]

# Keys of a policy document: limits (a size may be an int of bytes or a text like "256MiB") …
_SIZES = ("mem", "tmp", "message", "output", "net_rate", "net_bytes")
_COUNTS = ("cpu_ms", "wall_ms", "pids", "open_files", "net_conns")
# … and the rest.
_KEYS = (*_SIZES, *_COUNTS, "cpu", "fs", "tcp", "udp", "expose", "imports", "preload", "seccomp", "isolation", "read_only", "allow_degraded", "version")

_MODES = {"r": "read", "rw": "write"}


class Policy:
    """What a guest may use; everything that is not allowed is denied.

    Limits, all optional (the supervisor's defaults apply): ``mem`` bytes or ``"256MiB"``; ``cpu`` cores,
    such as 0.5; ``cpu_ms`` total cpu time in milliseconds; ``wall_ms`` lifetime in milliseconds; ``pids``
    processes and threads; ``open_files``; ``tmp`` size of /tmp; ``message`` largest value on the channel;
    ``output`` total of stdout and stderr; ``net_conns`` connections at once; ``net_rate`` bytes a second and
    ``net_bytes`` bytes in total of all connections. ``preload`` modules that are loaded when guest code begins;
    ``isolation="fresh"`` an interpreter that is not forked from a warm one. ``allow_degraded=True`` accepts a host that cannot enforce all.
    """

    __slots__ = ("_document",)
    _document: Dict[str, Any]

    def __init__(
        self,
        *,
        mem: Union[int, str, None] = None,
        cpu: Union[int, float, None] = None,
        cpu_ms: Optional[int] = None,
        wall_ms: Optional[int] = None,
        pids: Optional[int] = None,
        open_files: Optional[int] = None,
        tmp: Union[int, str, None] = None,
        message: Union[int, str, None] = None,
        output: Union[int, str, None] = None,
        net_conns: Optional[int] = None,
        net_rate: Union[int, str, None] = None,
        net_bytes: Union[int, str, None] = None,
        preload: Optional[Sequence[str]] = None,
        isolation: Optional[str] = None,
        allow_degraded: Optional[bool] = None,
    ) -> None:
        given = {
            "mem": mem, "cpu": cpu, "cpu_ms": cpu_ms, "wall_ms": wall_ms, "pids": pids, "open_files": open_files,
            "tmp": tmp, "message": message, "output": output, "net_conns": net_conns, "net_rate": net_rate,
            "net_bytes": net_bytes, "preload": None if preload is None else list(preload), "isolation": isolation,
            "allow_degraded": allow_degraded,
        }  # fmt: skip
        self._hold({key: value for key, value in given.items() if value is not None})

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Policy":
        """The policy of a document as :meth:`to_dict` gives it and as policy files hold it."""
        if not isinstance(document, Mapping):
            raise PolicyError(f"a policy document is a mapping of keys, not {type(document).__name__}")
        policy = cls.__new__(cls)
        policy._hold({str(key): value for key, value in document.items() if value is not None})
        return policy

    def to_dict(self) -> Dict[str, Any]:
        """The policy as a document of plain values; changing it does not change the policy."""
        document: Dict[str, Any] = json.loads(json.dumps(self._document))
        return document

    def allow_fs(self, pattern: str, mode: str = "r") -> "Policy":
        """Allow the host files that match ``pattern``, at the same path: to read, or with "rw" to change.

        A pattern is absolute; ``*``, ``?`` and ``[…]`` match within one name, ``**`` any depth; a
        directory stands for itself and all below it.
        """
        if mode not in _MODES:
            raise PolicyError(f'allow_fs: mode {mode!r} is not known; use "r" to read or "rw" to read and write')
        return self._with("fs", pattern if mode == "r" else {_MODES[mode]: pattern})

    def deny_fs(self, pattern: str) -> "Policy":
        """Take the files that match ``pattern`` out of what other rules allow."""
        return self._with("fs", {"deny": pattern})

    def allow_tcp(self, endpoint: str, private: bool = False) -> "Policy":
        """Allow TCP connections to ``"host:port"``, ``"[v6]:port"``, ``"10.0.0.0/8:port"`` or ``"*.example.org:port"``.

        A port may be a range, ``"8000-8100"``. With ``private`` a name may lead to private, loopback,
        link-local and metadata addresses, which names otherwise never do.
        """
        return self._with("tcp", {"allow": endpoint, "private": True} if private else endpoint)

    def deny_tcp(self, endpoint: str) -> "Policy":
        """Take an endpoint out of what other rules allow."""
        return self._with("tcp", {"deny": endpoint})

    def allow_udp(self, endpoint: str, private: bool = False) -> "Policy":
        """Allow datagrams to an endpoint, written as for :meth:`allow_tcp`."""
        return self._with("udp", {"allow": endpoint, "private": True} if private else endpoint)

    def deny_udp(self, endpoint: str) -> "Policy":
        """Take an endpoint for datagrams out of what other rules allow."""
        return self._with("udp", {"deny": endpoint})

    def expose_port(self, port: int) -> "Policy":
        """Let the guest listen at ``port`` of its own loopback, for :meth:`pyisolate.Sandbox.connect`."""
        return self._with("expose", port)

    def allow_import(self, name: str) -> "Policy":
        """Allow the guest to import the module ``name``; without any such rule every module is allowed."""
        return self._with("imports", name)

    @property
    def fs(self) -> List[FsRule]:
        """The file rules in order: a pattern to read, or ``{"write": pattern}``, ``{"deny": pattern}``."""
        return [rule if isinstance(rule, str) else dict(rule) for rule in self._document.get("fs", ())]

    @property
    def tcp(self) -> List[NetRule]:
        """The endpoint rules in order: one that may be connected to, ``{"deny": …}``, ``{"allow": …, "private": …}``."""
        return [rule if isinstance(rule, str) else dict(rule) for rule in self._document.get("tcp", ())]

    @property
    def udp(self) -> List[NetRule]:
        """The rules for datagrams, as :attr:`tcp`."""
        return [rule if isinstance(rule, str) else dict(rule) for rule in self._document.get("udp", ())]

    @property
    def expose(self) -> List[int]:
        """The ports at which the guest may listen."""
        return list(self._document.get("expose", ()))

    @property
    def imports(self) -> Optional[List[str]]:
        """The modules that may be imported, in order; None if every one may."""
        names = self._document.get("imports")
        return None if names is None else list(names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._document == other._document

    def __hash__(self) -> int:
        return hash(json.dumps(self._document, sort_keys=True))

    def __repr__(self) -> str:
        return f"Policy.from_dict({self._document!r})"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Policy does not change (setting {name!r}); its allow_… methods return a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Policy does not change (deleting {name!r})")

    def __reduce__(self) -> Tuple[Any, ...]:
        return (Policy.from_dict, (self.to_dict(),))

    def _with(self, key: str, item: Union[NetRule, int]) -> "Policy":
        document = self.to_dict()
        document[key] = [*(document.get(key) or ()), item]
        return type(self).from_dict(document)

    def _hold(self, document: Dict[str, Any]) -> None:
        check(document)
        # One pass through JSON: the value owns its lists, and whatever is not plain data is refused here.
        object.__setattr__(self, "_document", json.loads(json.dumps(document)))


def refresh(path: "str | os.PathLike[str]", token: Optional[str] = None, dry_run: bool = False) -> "Dict[str, List[Any]]":
    """Read the policy file again and put it into force in every active sandbox that has its policy from it.

    All of them get it or, with an error, none (of each supervisor's, if there are several). The result
    has the names of those sandboxes; with ``dry_run`` nothing changes and each name has the list that
    :meth:`~pyisolate.sandbox.Sandbox.update_policy` returns. Raises PolicyError, and PolicyAuthError
    without the right ``token`` if :func:`protect` has set one.
    """
    from . import _supervision
    from ._reload import refresh as reload_all

    name = os.path.abspath(os.fspath(path))
    mine = [sandbox for sandbox in _supervision.active().values() if sandbox.policy_file == name]
    return reload_all(mine, name, token, dry_run)


def protect(token: str) -> None:
    """Have every reload of this process's sandboxes need ``token`` from now on (at least 16 random characters).

    Whoever comes to talk to the supervisor as this process, or as its user, cannot widen a policy
    without it. It cannot be changed. Raises PolicyAuthError if there is another one.
    """
    from . import _supervision
    from ._reload import check_token

    _supervision.protect(check_token(token))


def check(document: Mapping[str, Any]) -> None:
    """Refuse what is wrong whatever the host is; raises PolicyError naming key, value and way out."""
    for key, value in document.items():
        if key not in _KEYS:
            raise PolicyError(f"policy key {key!r} is not known; the keys are {', '.join(sorted(_KEYS))}")
        if key in _CHECKS:
            if not isinstance(value, (list, tuple)):
                raise PolicyError(f"policy key {key!r} takes a list, not {value!r}")
            for item in value:
                _CHECKS[key](key, item)
        elif key in ("seccomp", "isolation", "version"):
            pass  # the supervisor's to read
        elif key in ("allow_degraded", "read_only"):
            if not isinstance(value, bool):
                raise PolicyError(f"policy key {key!r} is true or false, not {value!r}")
        else:
            _check_limit(key, value)


def _check_limit(key: str, value: object) -> None:
    if key in _SIZES and isinstance(value, str):
        return  # units are the supervisor's to read
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, (int, float)) or not (whole or key == "cpu" and isinstance(value, float)):
        example = '"256MiB" or a number of bytes' if key in _SIZES else "0.5" if key == "cpu" else "a whole number"
        raise PolicyError(f"policy key {key!r} takes {example}, not {value!r}")
    if not 0 <= value < float("inf"):
        raise PolicyError(f"policy key {key!r} cannot be negative or without bounds: {value!r}")


def _check_fs(key: str, rule: object) -> None:
    pattern = rule
    if isinstance(rule, Mapping):
        if len(rule) != 1 or next(iter(rule)) not in ("read", "write", "deny"):
            raise PolicyError(f'fs rule {rule!r}: write a pattern, or {{"write": pattern}}, or {{"deny": pattern}}')
        pattern = next(iter(rule.values()))
    if not isinstance(pattern, str):
        raise PolicyError(f"fs rule {rule!r}: a pattern is text, not {type(pattern).__name__}")
    if not pattern.startswith("/"):
        raise PolicyError(f"fs rule {pattern!r}: a pattern is an absolute path; write it from / on")
    if "\0" in pattern or ".." in pattern.split("/"):
        raise PolicyError(f'fs rule {pattern!r}: no ".." and no NUL in a pattern; write the path as it is')


def _check_endpoint(key: str, rule: object) -> None:
    endpoint = rule
    if isinstance(rule, Mapping):
        keys = set(rule)
        if keys not in ({"deny"}, {"allow"}, {"allow", "private"}) or not isinstance(rule.get("private", True), bool):
            raise PolicyError(
                f'{key} rule {rule!r}: write "host:port", {{"deny": "host:port"}}, or {{"allow": "host:port", "private": True}}'
            )
        endpoint = rule["deny"] if "deny" in rule else rule["allow"]
    host, colon, ports = endpoint.rpartition(":") if isinstance(endpoint, str) else ("", "", "")
    match = re.fullmatch("([0-9]{1,5})(?:-([0-9]{1,5}))?", ports)
    first = int(match.group(1)) if match else 0
    last = int(match.group(2) or first) if match else 0
    if not host or not colon or not 0 < first <= last < 65536:
        raise PolicyError(
            f'{key} rule {rule!r}: write "host:port" with a port from 1 to 65535, such as "127.0.0.1:9200", or a range of them'
        )


def _check_import(key: str, name: object) -> None:
    if not isinstance(name, str) or not name or not all(part.isidentifier() for part in name.split(".")):
        raise PolicyError(f'import rule {name!r}: write a module\'s dotted name, such as "collections.abc"')


def _check_exposed(key: str, port: object) -> None:
    if not isinstance(port, int) or isinstance(port, bool) or not 1024 <= port < 65536:
        raise PolicyError(f"{key} rule {port!r}: write a port from 1024 to 65535 as a number, such as 8000")


_CHECKS = {"expose": _check_exposed, "fs": _check_fs, "tcp": _check_endpoint, "udp": _check_endpoint, "imports": _check_import,
           "preload": _check_import}  # fmt: skip
