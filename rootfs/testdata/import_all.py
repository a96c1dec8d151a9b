"""Imports every module of the standard library; prints what fails as JSON."""

import importlib
import json
import os
import sys
import warnings


def modules(stdlib: str) -> "list[str]":
    names = []
    for top, dirs, files in os.walk(stdlib):
        dirs[:] = sorted(d for d in dirs if d not in ("__pycache__", "site-packages"))
        for file in files:
            base = file.split(".")[0]
            if not file.endswith((".py", ".so")):
                continue
            rel = os.path.relpath(os.path.join(top, base), stdlib).split("/")
            if rel[0] == "lib-dynload":
                rel = rel[1:]
            if rel[-1] == "__init__":
                rel = rel[:-1]
            # A package's __main__ is a program, not a module to import.
            if all(part.isidentifier() for part in rel) and rel[-1] != "__main__":
                names.append(".".join(rel))
    return sorted(set(names))


def main() -> None:
    warnings.simplefilter("ignore")
    failed = {}
    names = modules(os.path.dirname(os.__file__))
    out, sys.stdout = sys.stdout, open("/dev/null", "w") if os.path.exists("/dev/null") else sys.stderr
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # SystemExit included
            failed[name] = f"{type(error).__name__}: {error}"
    out.write(json.dumps({"imported": len(names) - len(failed), "failed": failed}))


main()
