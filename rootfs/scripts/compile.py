"""Byte-compiles one batch of files with unchecked-hash pycs.

Reads a JSON list of [source, pyc, name in the root] from stdin and prints a
JSON list of [name, error] of the files that do not compile.  The builder runs
it with PYTHONHASHSEED=0 and without -I, which would ignore that: set order
reaches marshal through constants such as ``x in {"a", "b"}``.  Batches are cut
by the builder at fixed places, because what marshal writes for a string also
depends on which other files the same process has compiled before.
"""

from __future__ import annotations

import json
import os
import py_compile
import sys


def main() -> None:
    failures: list[tuple[str, str]] = []
    for source, target, name in json.load(sys.stdin):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            py_compile.compile(
                source,
                cfile=target,
                dfile=name,
                doraise=True,
                optimize=0,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError as error:
            failures.append((name, error.exc_type_name))
    json.dump(failures, sys.stdout)


main()
