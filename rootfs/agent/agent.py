"""Start of the guest agent: `python3 -I -S agent.pyc [--script FILE [ARG...]]`.

The other modules lie beside this one and are imported as a package of a name
that guest code will not want. PSI_CONFIG, JSON, says what the policy says:
{"imports": null or [names], "preload": [names], "message": bytes, "output": bytes,
"threads": n}. A guest with PSI_CONFIG="channel [PRELOAD...]" was started before
anybody knew the rest of its policy: it takes what most policies say (_COMMON), and is told
what differs by CONFIG frames before its first request.
"""

from __future__ import annotations

import posix
import sys

# The CONFIG of a default policy, as pkg/bundle has it: the supervisor sends it to nobody who begins with it.
_COMMON = b'{"imports":null,"message":67108864,"output":16777216,"threads":1}'
_HOME = __file__.rpartition("/")[0] + "/"
if __package__ != "_psi":
    _package = type(sys)("_psi")
    _package.__path__ = [_HOME]
    sys.modules["_psi"] = _package
    __package__ = "_psi"

from .codec import decode  # noqa: E402
from .imports import ImportRules  # noqa: E402
from .reloaded import Reloaded  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Payload
    from .session import Session


def main() -> None:
    """Serves the channel on fds 0 and 1, or runs a script."""
    text = posix.environ.pop(b"PSI_CONFIG", b"{}")  # os.environ is made of it
    posix.unsetenv(b"PSI_CONFIG")
    waits = text.partition(b" ")[0] == b"channel"
    config = _configuration(b"{}" if waits else text)
    sys.dont_write_bytecode = True
    _add_site_packages()
    _preload(text.decode().split()[1:] if waits else config["preload"])
    args = sys.argv[1:]
    if args[:1] == ["--script"] and len(args) > 1:
        from .script import run_script

        _limit_imports(config, Reloaded())
        run_script(args[1], args[2:], _HOME)
    elif args:
        sys.exit("usage: agent.pyc [--script FILE [ARG...]]")
    else:
        from .rehearsal import run_through
        from .start import install, prepare, say_ready, start
        from .zygote import is_zygote, rehearse, serve

        session = prepare(config, _HOME)
        if waits:
            _take_configuration(session, _COMMON)
            session.configure = lambda payload: _take_configuration(session, payload)
        warm = False
        if waits and is_zygote():
            rehearse(lambda: prepare(config, _HOME), _take_configuration)
            connected, live = serve(session)
            if connected:
                start(session, connected)
                run_through(session)
                warm = True
                live()
            else:
                live()
                start(session, connected)
        else:
            install(session)
            start(session, False)
            if not waits:
                _limit_imports(config, session.reloaded)
                session.reloaded.look()  # a reload may have been faster
        say_ready(session)
        if waits and not session.channel.available():  # nobody waits for this
            if not warm:
                run_through(session)
            session.channel.watch()
        session.serve()


def _configuration(text: bytes) -> dict[str, Any]:
    try:
        config = decode(b"J" + text)
    except ValueError as error:
        sys.exit(f"psi: PSI_CONFIG is not valid: {error}")
    return {"imports": None, "message": 64 << 20, "output": 16 << 20, "threads": 1, "preload": [], **config}


def _preload(names: list[str]) -> None:
    """Loads the modules that guest code will find loaded."""
    if not names:
        return
    for library in (b"BLIS", b"MKL", b"NUMEXPR", b"OMP", b"OPENBLAS"):  # a process with threads cannot be forked
        posix.putenv(library + b"_NUM_THREADS", b"1")
    for name in names:
        try:
            __import__(name)
        except Exception as error:
            sys.exit(f"psi: preload of {name!r} failed: {type(error).__name__}: {error}")


def _take_configuration(session: Session, payload: Payload) -> None:
    """Takes over what a guest that is made already is told of its policy."""
    config = _configuration(bytes(payload))  # type: ignore[arg-type]
    session.reloaded.take(config)
    threads = b"%d" % config["threads"]
    for library in (b"BLIS", b"MKL", b"NUMEXPR", b"OMP", b"OPENBLAS"):
        posix.environ[library + b"_NUM_THREADS"] = threads
        posix.putenv(library + b"_NUM_THREADS", threads)
    if "os" in sys.modules:
        sys.modules["os"].environ._data.update(posix.environ)
    if not session.limited:
        session.limited = _limit_imports(config, session.reloaded)
    session.reloaded.look_again()


def _add_site_packages() -> None:
    """-S leaves site-packages out: add the rootfs's own."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for directory in (f"/usr/lib/{version}/site-packages", "/usr/lib/python3/dist-packages"):
        try:
            posix.stat(directory)
        except OSError:
            continue
        sys.path.append(directory)
        return


def _limit_imports(config: dict[str, Any], reloaded: Reloaded) -> bool:
    """Holds the import list, if there is one."""
    if config["imports"] is None:
        return False
    ImportRules(config["imports"], reloaded).install()
    return True


if __name__ == "__main__":
    main()
