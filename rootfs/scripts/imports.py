"""Says what each of a list of modules imports, from its source, without running it.

Reads a JSON list of [module, source, package] from stdin (package: whether it is one) and prints a
JSON list of [module, imports, later, dynamic], in the same order:

    imports  what loading the module loads: imports at its top level and in the bodies of its classes
    later    what its functions load when they are called
    dynamic  whether it also imports names that it computes

Names are absolute and may be of attributes: ``from a import b`` says a and a.b.  What is only for type
checkers, or runs only as a program, is not there.  A module that does not parse imports nothing.
"""

from __future__ import annotations

import ast
import json
import sys
import warnings
from typing import List, Optional, Set, Union

# The first argument of a function called so is a module's name: import_module, __import__, _module …
_IMPORTERS = ("import", "module")

_CALLS = (b"import_", b"_import", b"_module")


class Imports(ast.NodeVisitor):
    """Collects what one module imports."""

    def __init__(self, module: str, package: bool, calls: bool) -> None:
        self.package = module if package else module.rpartition(".")[0]
        self.calls = calls  # whether to look for calls that import
        self.imports: Set[str] = set()
        self.later: Set[str] = set()
        self.dynamic = False
        self._into = self.imports

    def generic_visit(self, node: ast.AST) -> None:
        if self.calls or not isinstance(node, ast.expr):
            super().generic_visit(node)

    def _aside(self, nodes: List[ast.stmt]) -> None:
        """What these import is not needed to load the module."""
        before, self._into = self._into, self.later
        for node in nodes:
            self.visit(node)
        self._into = before

    def _absolute(self, name: str, level: int) -> Optional[str]:
        if level == 0:
            return name
        parts = self.package.split(".")
        if level > len(parts):
            return None
        base = ".".join(parts[: len(parts) - level + 1])
        return f"{base}.{name}" if name else base

    def visit_Import(self, node: ast.Import) -> None:
        self._into.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute(node.module or "", node.level)
        if base is not None:
            self._into.add(base)
            self._into.update(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if not any(word in name.lower() for word in _IMPORTERS) or not node.args:
            return
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            level = len(first.value) - len(first.value.lstrip("."))
            found = self._absolute(first.value[level:], level)
            if found:
                self.later.add(found)
        elif name in ("import_module", "__import__"):
            self.dynamic = True

    def _function(self, node: Union[ast.FunctionDef, ast.AsyncFunctionDef]) -> None:
        for each in (*node.decorator_list, *node.args.defaults, *node.args.kw_defaults):
            if each is not None:
                self.visit(each)
        self._aside(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node)

    def visit_If(self, node: ast.If) -> None:
        if _never_when_imported(node.test):
            for each in node.orelse:
                self.visit(each)
        else:
            self.generic_visit(node)


def _never_when_imported(test: ast.expr) -> bool:
    """Whether this condition holds only for type checkers, or in a program."""
    if isinstance(test, ast.Compare) and isinstance(test.left, ast.Name):
        return test.left.id == "__name__" and isinstance(test.ops[0], ast.Eq)
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def main() -> None:
    warnings.simplefilter("ignore")
    found = []
    for module, source, package in json.load(sys.stdin):
        with open(source, "rb") as file:
            text = file.read()
        imports = Imports(module, package, any(each in text for each in _CALLS))
        try:
            imports.visit(ast.parse(text))
        except (SyntaxError, ValueError, RecursionError):
            pass  # it has no bytecode either, and the build says so
        later = imports.later - imports.imports
        found.append([module, sorted(imports.imports), sorted(later), imports.dynamic])
    json.dump(found, sys.stdout)


main()
