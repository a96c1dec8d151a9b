"""The script mode: one file as `__main__`, with ordinary stdin and stdout.

For bundles whose entry is a script. The import list applies, and process 1
does its duties; there is no channel.
"""

from __future__ import annotations

import builtins
import posix
import sys

from .orphans import Orphans
from .signals import Guard

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from types import FrameType
    from typing import Optional
else:
    import _signal


def run_script(path: str, args: list[str], home: str) -> None:
    """Runs the file; raises SystemExit with Python's own exit status for it."""
    orphans = Orphans()
    orphans.watch()
    orphans.begin()
    guard = Guard()
    guard.critical = False
    guard.watch(_signal.SIGCHLD, orphans.reap)
    guard.watch(_signal.SIGTERM, _terminate)
    posix.register_at_fork(
        before=guard.before_fork, after_in_parent=guard.after_fork, after_in_child=guard.give_back
    )
    main = type(sys)("__main__")
    main.__dict__.update({"__builtins__": builtins, "__file__": path})
    sys.modules["__main__"] = main
    sys.argv = [path, *args]
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        sys.exit(f"psi: cannot read the script {path}: {error.strerror}")
    try:
        exec(compile(source, path, "exec", 0, True), main.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        found = error.__traceback__
        while found is not None and found.tb_frame.f_code.co_filename.startswith(home):
            found = found.tb_next
        sys.excepthook(type(error), error.with_traceback(found), found)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _terminate(signum: int, frame: Optional[FrameType]) -> None:
    sys.exit(128 + signum)
