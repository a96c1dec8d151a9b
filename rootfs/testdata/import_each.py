"""Imports every module of the module graph, each in a process of its own, and prints as JSON what
else was loaded then: {module: [loaded...]}, or {module: "error"}."""

import json
import os
import sys

SKIPPED = ("antigravity", "this", "_psi", "idlelib")


def loaded_by(module):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
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
        answer = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(answer) if answer else "it died"


def main():
    with open("/usr/lib/psi/modules.json") as file:
        modules = json.load(file)["modules"]
    before = set(sys.modules)
    found = {}
    for name in modules:
        if name.partition(".")[0] in SKIPPED or name.endswith("__main__"):
            continue
        answer = loaded_by(name)
        found[name] = answer if type(answer) is str else sorted(set(answer) - before)
    json.dump(found, sys.stdout)


main()
