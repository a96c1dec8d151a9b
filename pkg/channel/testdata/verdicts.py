"""Answers, for each payload on stdin, what the Python codec makes of it, whole and in two pieces.

A request is a u32 (big endian) and that many bytes. The answer is one byte, 1
for accepted, and a u32 with that many bytes: the value encoded again, or the
reason.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import typing

import numpy  # noqa: F401  so that arrays are decoded


def judge(codec: typing.Any, payload: typing.Any) -> tuple[int, bytes]:
    try:
        again = codec.encode(codec.decode(payload))
        return 1, again if isinstance(again, bytes) else b"".join(again)
    except codec.DecodeError as error:
        return 0, str(error).encode("utf-8", "replace")


def main() -> None:
    spec = importlib.util.spec_from_file_location("codec", sys.argv[1])
    assert spec is not None and spec.loader is not None
    codec = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(codec)
    while head := sys.stdin.buffer.read(4):
        payload = sys.stdin.buffer.read(*struct.unpack(">I", head))
        verdict, answer = judge(codec, payload)
        if payload:
            split = 5 + int.from_bytes(payload[1:5], "big") if payload[:1] == b"B" else 1
            pieces = codec.Large(payload[:split], memoryview(payload)[split:])
            if judge(codec, pieces)[0] != verdict:
                raise SystemExit(f"in two pieces the verdict is another one: {payload[:200]!r}")
        sys.stdout.buffer.write(struct.pack(">BI", verdict, len(answer)) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
