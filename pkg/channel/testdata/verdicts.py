"""Answers, for each payload on stdin, what the Python codec makes of it.

A request is a u32 (big endian) and that many bytes. The answer is one byte, 1
for accepted, and a u32 with that many bytes: the value encoded again, or the
reason.
"""

from __future__ import annotations

import importlib.util
import struct
import sys

import numpy  # noqa: F401  so that arrays are decoded


def main() -> None:
    spec = importlib.util.spec_from_file_location("codec", sys.argv[1])
    assert spec is not None and spec.loader is not None
    codec = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(codec)
    while head := sys.stdin.buffer.read(4):
        payload = sys.stdin.buffer.read(*struct.unpack(">I", head))
        try:
            again = codec.encode(codec.decode(payload))
            verdict, answer = 1, again if isinstance(again, bytes) else b"".join(again)
        except codec.DecodeError as error:
            verdict, answer = 0, str(error).encode("utf-8", "replace")
        sys.stdout.buffer.write(struct.pack(">BI", verdict, len(answer)) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
