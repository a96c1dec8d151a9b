"""The import allow-list: which modules guest code may import.

This is for clear errors, not the boundary: the kernel decides what a guest can
reach. A rule allows a module and everything below it. Only imports that guest
code itself makes are checked: an allowed module imports what it needs, and so
does the interpreter.
"""

from __future__ import annotations

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Mapping, Optional, Sequence, Tuple

    from .reloaded import Reloaded

_LANGUAGE = ("__future__",)  # part of the language, nothing to reach


class ImportRules:
    """The list of a policy, in force for everything imported after install()."""

    def __init__(self, allowed: Sequence[str], reloaded: Reloaded) -> None:
        self.allowed: Optional[Tuple[str, ...]] = tuple(allowed)  # None: everything
        self._import = builtins.__import__
        self._reloaded = reloaded
        reloaded.takers.append(self._take)

    def install(self) -> None:
        builtins.__import__ = self._checked_import
        sys.meta_path.insert(0, self)

    def permits(self, name: str) -> bool:
        """Whether guest code may import the module of this dotted name."""
        return (
            self.allowed is None
            or name in _LANGUAGE
            or any(name == rule or name.startswith(rule + ".") for rule in self.allowed)
        )

    def _take(self, config: Mapping[str, Any]) -> None:
        names = config["imports"]
        self.allowed = None if names is None else tuple(names)

    def check(self, name: str, fromlist: Sequence[str] = ()) -> None:
        """Raises ImportError if guest code may not import name (or those names from it)."""
        self._reloaded.look()
        if self.permits(name):
            return
        if fromlist and all(self.permits(f"{name}.{item}") for item in fromlist):
            return
        listed = ", ".join(self.allowed or ()) or "nothing"
        raise ImportError(
            f"import of {name!r} is not allowed: the sandbox's import list allows {listed}; "
            f"add {name.partition('.')[0]!r} to the policy's imports (allow_import) or to allowed_imports",
            name=name,
        )

    def _checked_import(
        self,
        name: str,
        globals: Optional[Mapping[str, Any]] = None,
        locals: Optional[Mapping[str, Any]] = None,
        fromlist: Optional[Sequence[str]] = (),
        level: int = 0,
    ) -> Any:
        # C code imports with an empty list and its caller's globals twice:
        # that is the interpreter's own need (_strptime, for one).
        from_c = type(fromlist) is list and not fromlist and globals is locals is not None
        if level == 0 and not from_c:
            scope = sys._getframe(1).f_globals if globals is None else globals
            if _is_guest(scope):
                self.check(name, tuple(fromlist or ()))
                if name.partition(".")[0] == "importlib":
                    found = self._import(name, globals, locals, fromlist or (), level)
                    self._guard_importlib()
                    return found
        return self._import(name, globals, locals, fromlist or (), level)

    def _guard_importlib(self) -> None:
        """import_module bypasses __import__: check it too, once guest code has it."""
        importlib = sys.modules["importlib"]
        plain: Callable[..., Any] = importlib.import_module
        if getattr(plain, "rules", None) is self:
            return

        def import_module(name: str, package: Optional[str] = None) -> Any:
            if not name.startswith(".") and _is_guest(sys._getframe(1).f_globals):
                self.check(name)
            return plain(name, package)

        import_module.rules = self  # type: ignore[attr-defined]
        importlib.import_module = import_module  # type: ignore[attr-defined]

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """For the import system: never finds, refuses what guest code asks for directly."""
        frame: Optional[FrameType] = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in _MACHINERY:
            frame = frame.f_back
        if frame is None or frame.f_code is ImportRules._checked_import.__code__:
            return  # an import statement: checked, or not of guest code
        if _is_guest(frame.f_globals):
            self._check_parents(name)

    def _check_parents(self, name: str) -> None:
        """Parents of an allowed module are loaded with it."""
        self._reloaded.look()
        if not any(rule.startswith(name + ".") for rule in self.allowed or ()):
            self.check(name)


_MACHINERY = ("importlib", "importlib._bootstrap", "importlib._bootstrap_external", "_frozen_importlib")


def _is_guest(scope: Mapping[str, Any]) -> bool:
    """Whether code with these globals is the guest's own: not that of an imported module."""
    name = scope.get("__name__")
    if name == "__main__" or type(name) is not str:
        return True
    module = sys.modules.get(name)
    return module is None or getattr(module, "__dict__", None) is not scope
