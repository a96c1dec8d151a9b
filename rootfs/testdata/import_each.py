"""Imports every module of the module graph, each in a process of its own, and prints as JSON what
else was loaded then: {module: [loaded...]}, or {module: "error"}."""

from __future__ import annotations

import json
import os
import sys
from typing import Dict, List, Union

SKIPPED = ("antigravity", "this", "_psi", "idlelib")


def loaded_by(module: str) -> Union[str, List[str]]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        silent, _ = os.pipe()  # the root alone has no /dev/null
        for fd in range(3):
            os.dup2(silent, fd)
        answer: Union[str, List[str]]
        try:
            __import__(module)
            answer = sorted(sys.modules)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    found: Union[str, List[str]] = json.loads(text) if text else "it died"
    return found


def main() -> None:
    with open("/usr/lib/psi/modules.json") as file:
        modules = json.load(file)["modules"]
    before = set(sys.modules)
    found: Dict[str, Union[str, List[str]]] = {}
    for name in modules:
        if name.partition(".")[0] in SKIPPED or name.endswith("__main__"):
            continue
        answer = loaded_by(name)
        found[name] = answer if isinstance(answer, str) else sorted(set(answer) - before)
    json.dump(found, sys.stdout)


main()
