"""Frames: how messages are told apart on a guest's channel.

     0      4      5       6      8      12
     +------+------+-------+------+------+---------------
     | size | type | flags | zero | id   | payload (size bytes)
     +------+------+-------+------+------+---------------

All numbers are big endian. The host chooses the ids of requests, from 1.
One descriptor, the memfd, comes with the first byte of a frame that says so.
pkg/channel (Go) documents the same table; the two must not differ.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from struct import Struct
else:
    from _struct import Struct

HEADER = Struct(">IBBHI")
HEADER_SIZE = 12
PROTOCOL = 2  # the version that READY announces

# Host to guest.
EXEC = 1  # source text; answered by DONE or ERROR
CALL = 2  # value [function, [args...], {kwargs}]; answered by RESULT or ERROR
POST = 3  # value, for the guest's recv
INTERRUPT = 4  # KeyboardInterrupt, if request id is running
CANCEL = 5  # answer request id with ERROR CancelledError, if it still waits
CONFIG = 6  # JSON, what a guest with PSI_CONFIG=channel has to know of its policy, if that is no default; before any request

# Guest to host.
READY = 16  # JSON {"python", "pid", "protocol"}, the first frame, once
DONE = 17  # exec id ended without an exception
RESULT = 18  # value that call id returned
ERROR = 19  # JSON description of the exception that ended request id
GUEST_POST = 20  # value, for the host's recv
STDOUT = 21  # bytes written while request id ran (0: none)
STDERR = 22
NOTICE = 23  # JSON object, something to know: {"output": "cut", "limit": n}

FLAG_EXEC = 1  # of ERROR: the request was an exec
FLAG_MEMFD = 2  # of a value: the payload is a u64 and how it begins; the u64 is the size of the rest, in a memfd
FLAG_TAKES = 4  # of what the host sends: it takes values in memfds

STREAM_LIMIT = 64 << 10  # bytes of a stream or JSON payload
VALUE_SLACK = 64 << 10  # beyond the policy's message limit, for values and source
SIZE = Struct(">Q")
