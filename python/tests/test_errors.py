"""The exceptions, without guests."""

from __future__ import annotations

import builtins
import pickle
import unittest
from typing import Any, Dict, List, Optional, Tuple, Type

import pyisolate as psi
from pyisolate._death import death
from pyisolate._hint import file_hint
from pyisolate.errors import make_guest_error, printable
from pyisolate.policy import FsRule

_STEERING = {
    "BaseException", "BaseExceptionGroup", "ExceptionGroup", "GeneratorExit", "KeyboardInterrupt",
    "StopAsyncIteration", "StopIteration", "SystemExit",
}  # fmt: skip


class GuestErrors(unittest.TestCase):
    def test_every_builtin_exception_with_any_arguments(self) -> None:
        every: List[Optional[Tuple[Any, ...]]] = [
            None, (), ("x",), (2, "no"), (2, "no", "/file"), ("utf8", b"x", 0, 1, "why"), ([],) * 7, (object(),),
        ]  # fmt: skip
        for name, cls in vars(builtins).items():
            if not (isinstance(cls, type) and issubclass(cls, BaseException)):
                continue
            for args in every:
                error = make_guest_error("builtins", name, "what happened", "a traceback", args)
                self.assertIsInstance(error, psi.GuestError)
                self.assertIsInstance(error, psi.SandboxError)
                self.assertEqual(isinstance(error, cls), name not in _STEERING or name == "BaseException", name)
                self.assertIn("what happened", str(error))
                repr(error)
                if args != every[-1]:
                    again = pickle.loads(pickle.dumps(error))
                    self.assertEqual((type(again), str(again)), (type(error), str(error)))

    def test_fields_of_builtins(self) -> None:
        error = make_guest_error("builtins", "FileNotFoundError", "no", "", (2, "No such file", "/x"))
        assert isinstance(error, FileNotFoundError)
        self.assertEqual((error.errno, error.strerror, error.filename), (2, "No such file", "/x"))
        for path in ("/x", "/it's", "/ä: b"):
            real = FileNotFoundError(2, "No such file", path)
            error = make_guest_error("builtins", "FileNotFoundError", str(real), "", real.args)
            assert isinstance(error, FileNotFoundError)
            self.assertEqual(error.filename, path)
        self.assertEqual(make_guest_error("builtins", "KeyError", "'k'", "", ("k",)).args, ("k",))

    def test_what_a_guest_names_is_never_ours(self) -> None:
        for module, name in (
            ("pyisolate.errors", "MemoryExceeded"), ("builtins", "print"), ("builtins", "__import__"),
            ("os", "error"), ("__main__", "ValueError"), ("asyncio.exceptions", "CancelledError"),
        ):  # fmt: skip
            error = make_guest_error(module, name, "", "", None)
            self.assertIs(type(error), psi.GuestError)
        for name, cls in (("TimeoutError", psi.TimeoutError), ("MemoryError", psi.MemoryExceeded)):
            error = make_guest_error("builtins", name, "", "", None)
            self.assertNotIsInstance(error, cls)
            self.assertIsInstance(error, getattr(builtins, name))

    def test_the_traceback_is_attached(self) -> None:
        error = make_guest_error("__main__", "Mine", "text", "Traceback: here", None)
        self.assertEqual(error.traceback, "Traceback: here")
        self.assertIn("Traceback: here", str(error.__cause__))
        self.assertEqual(str(error), "Mine: text")

    def test_text_is_printable(self) -> None:
        self.assertEqual(printable("a\x1b[2J\x07\ud800\n\tä"), "a\\x1b[2J\\x07\\ud800\n\tä")


class Hints(unittest.TestCase):
    def hint(self, errno: int, path: object, rules: Optional[List[FsRule]]) -> str:
        error = make_guest_error("builtins", "OSError", "no", "", (errno, "no", path))
        return file_hint(error, rules)

    def test_the_rule_that_is_needed(self) -> None:
        self.assertIn('allow_fs("/data/x")', self.hint(2, "/data/x", []))
        self.assertIn("/srv/*.csv", self.hint(2, "/data/x", ["/srv/*.csv"]))
        self.assertIn("deny", self.hint(2, "/data/x", [{"deny": "/data/**"}, "/data"]))
        self.assertIn('mode="rw"', self.hint(30, "/data/x", ["/data"]))

    def test_no_hint_where_the_policy_is_not_the_reason(self) -> None:
        for errno, path, rules in (
            (2, "/data/x", ["/data"]), (2, "/tmp/x", []), (2, "/data/x", None), (21, "/data/x", []),
            (2, "data", []), (2, None, []), (30, "/data/x", [{"write": "/data"}]),
        ):  # fmt: skip
            self.assertEqual(self.hint(errno, path, rules), "")  # type: ignore[arg-type]


class Deaths(unittest.TestCase):
    def test_each_cause(self) -> None:
        deaths: List[Tuple[Dict[str, Any], Type[psi.SandboxError], str]] = [
            ({"cause": "oom", "limit": 64 << 20, "observed": 65 << 20}, psi.MemoryExceeded, "64 MiB.*mem"),
            ({"cause": "cpu", "limit": 500, "observed": 510}, psi.CPUExceeded, "500 ms.*cpu_ms"),
            ({"cause": "wall", "limit": 500}, psi.SandboxError, "500 ms.*wall_ms"),
            ({"cause": "exit", "code": 3, "message": "last words\x1b"}, psi.SandboxError, r"code 3: last words\\x1b"),
            ({"cause": "signal", "signal": 11}, psi.SandboxError, "SIGSEGV"),
            ({"cause": "signal", "signal": 999}, psi.SandboxError, "signal 999"),
            ({"cause": "supervisor", "message": "gone"}, psi.SandboxError, "supervisor: gone"),
            ({"cause": "closed"}, psi.SandboxError, "is closed"),
        ]
        for exited, cls, says in deaths:
            error = death("box", exited, None, False)
            self.assertIs(type(error), cls)
            self.assertRegex(str(error), "'box'.*" + says)
            self.assertEqual((error.cause, error.limit), (exited["cause"], exited.get("limit")))
        self.assertEqual(death("box", {}, "it lied", False).cause, "broken")
        self.assertEqual(death("box", {"cause": "oom"}, "it lied", False).cause, "oom")
        self.assertEqual(death("box", {}, None, True).cause, "forked")


if __name__ == "__main__":
    unittest.main()
