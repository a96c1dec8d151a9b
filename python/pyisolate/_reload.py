"""Another policy for sandboxes that run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional

from ._hint import fs_rules
from ._request import PolicyLike, policy_fields
from .errors import PolicyAuthError, PolicyError, SandboxError

if TYPE_CHECKING:
    from ._control import Connection
    from .sandbox import Sandbox

Change = Dict[str, Any]

_PATIENCE = 60.0  # seconds that a supervisor may take for all sandboxes of one of its requests


def reload_fields(policy: PolicyLike, token: Optional[str], dry_run: bool) -> Dict[str, object]:
    """The fields of a reload request."""
    fields = policy_fields(policy)
    if token is not None:
        fields["token"] = check_token(token)
    if dry_run:
        fields["dry_run"] = True
    return fields


def check_token(token: object) -> str:
    """A token is text; whether it is the right one is the supervisor's to say."""
    if not isinstance(token, str):
        raise PolicyAuthError(f"a token is text, not {type(token).__name__}")
    return token


def policy_file(fields: Mapping[str, object]) -> Optional[str]:
    """The file that a spawn's or reload's policy came from, None if it was none."""
    source = fields.get("policy_source")
    return os.path.abspath(source) if isinstance(source, str) else None


def changes(reply: Mapping[str, Any]) -> Dict[str, List[Change]]:
    """What a dry run says, by the supervisor's id of the sandbox."""
    return {
        each["guest"]: [{"change": word, **found} for word in ("permits", "forbids") for found in each[word]]
        for each in reply["changes"]
    }


def refresh(sandboxes: List["Sandbox"], path: str, token: Optional[str], dry_run: bool) -> Dict[str, List[Change]]:
    """Reload the file's policy into these sandboxes: one request for each supervisor, all or none of its own."""
    fields = reload_fields(path, token, dry_run)
    by_connection: Dict["Connection", List["Sandbox"]] = {}
    for sandbox in sandboxes:
        by_connection.setdefault(sandbox.connection, []).append(sandbox)
    found: Dict[str, List[Change]] = {}
    file, rules = policy_file(fields), fs_rules(fields)
    for connection, its in by_connection.items():
        reply = _ask(connection, its, fields)
        by_id = changes(reply) if dry_run else {}
        for sandbox in its:
            found[sandbox.name] = by_id.get(sandbox.id, [])
            if not dry_run:
                sandbox.on_reloaded(file, rules)
    return found


def _ask(connection: "Connection", sandboxes: List["Sandbox"], fields: Mapping[str, object]) -> Mapping[str, Any]:
    # A sandbox that ends meanwhile makes the request fail; the others are asked for again.
    while True:
        living = [sandbox for sandbox in sandboxes if sandbox.alive]
        try:
            reply: Mapping[str, Any] = connection.ask("reload", {"guests": [each.id for each in living], **fields}, _PATIENCE)
            return reply
        except (PolicyError, PolicyAuthError):
            raise
        except SandboxError:
            if all(sandbox.alive for sandbox in living):
                raise
