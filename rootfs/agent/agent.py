"""Start of the guest agent: `python3 -I -S agent.pyc [--script FILE [ARG...]]`.

The other modules lie beside this one and are imported as a package of a name
that guest code will not want. PSI_CONFIG, JSON, says what the policy says:
{"imports": null or [names], "preload": [names], "message": bytes, "output": bytes,
"threads": n}. A guest with PSI_CONFIG="channel [PRELOAD...]" was started before
anybody knew the rest of its policy: it comes as the channel's first frame (CONFIG).
"""

from __future__ import annotations

import posix
import sys

_HOME = __file__.rpartition("/")[0] + "/"
if __package__ != "_psi":
    _package = type(sys)("_psi")
    _package.__path__ = [_HOME]
    sys.modules["_psi"] = _package
    __package__ = "_psi"

from .codec import decode, encode  # noqa: E402
from .imports import ImportRules  # noqa: E402
from .reloaded import Reloaded  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, NoReturn

    from .channel import Channel
    from .session import Session
else:
    import _signal


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
        if waits:
            from .zygote import is_zygote, serve

            if is_zygote():
                _load()
                serve()
        session = _start(config)
        sys.argv = [""]
        if waits:
            _warm_up(session)
            session.configure = lambda payload: _configure(session, _configuration(bytes(payload)))  # type: ignore[arg-type]
        else:
            _limit_imports(config, session.reloaded)
        _say_ready(session)
        session.serve()


def _configuration(text: bytes) -> dict[str, Any]:
    try:
        config = decode(b"J" + text)
    except ValueError as error:
        sys.exit(f"psi: PSI_CONFIG is not valid: {error}")
    return {"imports": None, "message": 64 << 20, "output": 16 << 20, "threads": 1, "preload": [], **config}


def _warm_up(session: Session) -> None:
    """Does once, while nobody waits, what costs more the first time: pages that are
    copied when they are written, above all."""
    session.channel.watch()
    space: dict[str, Any] = {}
    exec(compile("def f(x):\n    return [x]\nx = f(0)", "<start>", "exec", 0, True), space)
    sent = encode(space["x"], limit=100)
    if type(sent) is bytes:
        decode(sent)


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


def _configure(session: Session, config: dict[str, Any]) -> None:
    """Takes over what a guest that is made already is told of its policy."""
    session.resize(config)
    threads = b"%d" % config["threads"]
    for library in (b"BLIS", b"MKL", b"NUMEXPR", b"OMP", b"OPENBLAS"):
        posix.environ[library + b"_NUM_THREADS"] = threads
        posix.putenv(library + b"_NUM_THREADS", threads)
    if "os" in sys.modules:
        sys.modules["os"].environ._data.update(posix.environ)
    _limit_imports(config, session.reloaded)
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


def _limit_imports(config: dict[str, Any], reloaded: Reloaded) -> None:
    if config["imports"] is not None:
        ImportRules(config["imports"], reloaded).install()


def _load() -> None:
    """Loads what _start and a first request need."""
    from . import channel, faults, orphans, session, signals, streams  # noqa: F401


def _start(config: dict[str, Any]) -> Session:
    """Takes the channel away from fds 0 and 1 and connects everything to it."""
    import builtins

    from .channel import Channel
    from .orphans import Orphans
    from .session import Session
    from .signals import Guard
    from .streams import Output, Pipes

    reader, writer = _take_channel()
    guard = Guard()
    session = Session(guard, config["message"], _HOME, Reloaded())
    session.channel = Channel(reader, writer, config["message"], guard, session.deliver, session.fits)
    _send_before_exit(session.channel)
    session.output = Output(session.channel, config["output"])
    session.orphans = Orphans()
    session.orphans.watch()
    _watch_signals(session)
    session.pipes = Pipes(session.output)
    _replace_streams(session)
    builtins.post = session.post  # type: ignore[attr-defined]
    builtins.recv = session.recv  # type: ignore[attr-defined]
    return session


def _send_before_exit(channel: Channel) -> None:
    """Has os._exit send what waits of a burst; the module os takes it from here when it is imported."""
    exit_now = posix._exit

    def _exit(status: int) -> NoReturn:
        channel.flush()
        exit_now(status)

    posix._exit = _exit
    if "os" in sys.modules:
        sys.modules["os"]._exit = _exit  # type: ignore[attr-defined]


def _take_channel() -> tuple[int, int]:
    from .streams import move_high

    stdin, stdout = posix.fstat(0), posix.fstat(1)
    same = stdin.st_mode >> 12 == 0o14 and stdin[:3] == stdout[:3]  # one socket
    reader = move_high(posix.dup(0))
    writer = reader if same else move_high(posix.dup(1))
    null = posix.open("/dev/null", posix.O_RDONLY)
    posix.dup2(null, 0, True)
    posix.close(null)
    return reader, writer


def _watch_signals(session: Session) -> None:
    from .signals import SIGPIPES, SIGRELOADED

    guard = session.guard
    guard.watch(_signal.SIGIO, session.on_arrival)
    guard.watch(SIGPIPES, session.on_output)
    guard.watch(_signal.SIGTERM, session.on_terminate)
    guard.watch(_signal.SIGCHLD, session.on_child)
    guard.watch(SIGRELOADED, session.on_reloaded)
    guard.take_over()

    def after_in_child() -> None:
        session.channel.abandon()
        session.pipes.abandon()
        guard.give_back()

    posix.register_at_fork(
        before=guard.before_fork, after_in_parent=guard.after_fork, after_in_child=after_in_child
    )


def _replace_streams(session: Session) -> None:
    from . import frames
    from .streams import text_stream

    sys.stdout = sys.__stdout__ = text_stream(session.output, frames.STDOUT)
    sys.stderr = sys.__stderr__ = text_stream(session.output, frames.STDERR)


def _say_ready(session: Session) -> None:
    from . import frames

    version = sys.version.split()[0]
    memfds = "true" if session.channel.passes_memfds else "false"
    ready = '{"python":"%s","pid":%d,"protocol":%d,"memfd":%s}' % (version, posix.getpid(), frames.PROTOCOL, memfds)
    session.channel.send(frames.READY, 0, ready.encode())


if __name__ == "__main__":
    main()
