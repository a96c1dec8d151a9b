"""``python -m pyisolate events``: what happens to this user's guests at a shared supervisor, a line of JSON each."""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
from typing import Any, Dict, Iterator, List, Optional

from . import _locate
from ._control import MAX_FRAME, VERSION
from .errors import SandboxError


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pyisolate", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    events = commands.add_parser(
        "events",
        help="print events as they happen",
        description="Print the events of this user's guests as JSON lines: ts, guest, name, event, "
        "details. Ends with the supervisor, with --count events, or by ^C.",
    )
    events.add_argument("name", nargs="*", help="only of guests with these names or ids")
    events.add_argument("--socket", help="of the shared supervisor (else $PSI_SOCKET, else %s)" % _locate.DEFAULT_SOCKET)
    events.add_argument("--type", action="append", help="only events of this type, such as DENIED")
    events.add_argument("--count", type=int, default=0, help="end after so many events")
    given = parser.parse_args(arguments)
    try:
        _print_events(given)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: nothing to say at exit
    except (SandboxError, OSError) as error:
        print(f"pyisolate: {error}", file=sys.stderr)
        return 1
    return 0


def _print_events(given: argparse.Namespace) -> None:
    path = given.socket or os.environ.get("PSI_SOCKET") or _locate.DEFAULT_SOCKET
    left = given.count
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
        except OSError as error:
            raise SandboxError(
                f"connecting to the supervisor at {path}: {error.strerror}; events of sandboxes that a program "
                "runs by itself are in its psi.events"
            ) from error
        _send(sock, {"id": 1, "op": "hello", "version": VERSION, "client": "pyisolate events", "watch": True})
        for message in _messages(sock):
            if "error" in message:
                raise SandboxError(str(message["error"].get("message")))
            if "event" not in message or given.type and message["event"] not in given.type:
                continue
            if given.name and message["name"] not in given.name and message["guest"] not in given.name:
                continue
            # ASCII only: what guests say reaches no terminal as it is.
            print(json.dumps({key: message[key] for key in ("ts", "guest", "name", "event", "details")}), flush=True)
            left -= 1
            if left == 0:
                return


def _send(sock: socket.socket, message: Dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    sock.sendall(struct.pack("!I", len(data)) + data)


def _messages(sock: socket.socket) -> Iterator[Dict[str, Any]]:
    with sock.makefile("rb") as stream:
        while True:
            header = stream.read(4)
            if len(header) < 4:
                return
            (size,) = struct.unpack("!I", header)
            if size > MAX_FRAME:
                raise SandboxError(f"the supervisor sent a message of {size} bytes; at most {MAX_FRAME} are allowed")
            message: Dict[str, Any] = json.loads(stream.read(size))
            yield message


if __name__ == "__main__":
    sys.exit(main())
