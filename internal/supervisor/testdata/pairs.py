import ctypes, errno, json, os, socket, threading, time

path, abstract = "PATH", "\0ABSTRACT"
libc = ctypes.CDLL(None, use_errno=True)
reached, refused = [], {}


def pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def works():
    try:
        a, b = pair()
    except OSError:
        return False
    a.send(b"one")
    b.send(b"two")
    a.sendmsg([b"three"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\0\0\0\0")])
    return (b.recv(9), a.recv(9), b.recv(9)) == (b"one", b"two", b"three")


def disconnect(s):
    """connect to AF_UNSPEC: the end has no other end any more."""
    if libc.connect(s.fileno(), b"\0" * 16, 16) < 0:
        raise OSError(ctypes.get_errno(), "disconnect")
    return s


def attempt(name, do):
    try:
        do(pair()[0])  # the other end is gone at once
    except OSError as error:
        refused[name] = errno.errorcode.get(error.errno, str(error))
    else:
        reached.append(name)


def by_child(s, where):
    """A child sends by the socket that it inherits, and one that it is passed."""
    here, there = socket.socketpair()
    socket.send_fds(here, [b"x"], [s.fileno()])
    child = os.fork()
    if child == 0:
        status = 0
        try:
            passed = socket.socket(fileno=socket.recv_fds(there, 1, 1)[1][0])
            for each in s, passed:
                try:
                    each.sendto(b"by a child", where)
                    status = 255
                except OSError as error:
                    status = status or error.errno
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 255:
        raise OSError(status, "by a child")


def race(s, where):
    """One thread connects to what is forbidden and away again, another one sends to whoever is connected."""
    end, got = time.monotonic() + 0.3, []

    def send():
        while time.monotonic() < end:
            try:
                s.send(b"by a race", socket.MSG_DONTWAIT)
                got.append(1)
            except OSError:
                pass

    sender = threading.Thread(target=send)
    sender.start()
    while True:
        try:
            disconnect(s)
            s.connect(where)
            got.append(1)
        except OSError as error:
            last = error
        if time.monotonic() >= end:
            break
    sender.join()
    if not got:
        raise last


def bound(s, name):
    s.bind(name)


before = works()
for name, where in ("path", path), ("abstract name", abstract):
    attempt("sendto " + name, lambda s: s.sendto(b"x", where))
    attempt("sendmsg " + name, lambda s: s.sendmsg([b"x"], [], 0, where))
    attempt("sendmsg with a descriptor " + name, lambda s: s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\0\0\0\0")], 0, where))
    attempt("connect " + name, lambda s: s.connect(where))
    attempt("disconnect, connect " + name, lambda s: disconnect(s).connect(where))
    attempt("disconnect, sendto " + name, lambda s: disconnect(s).sendto(b"x", where))
    attempt("by a child " + name, lambda s: by_child(s, where))
    attempt("by a race " + name, lambda s: race(s, where))
directory, last = os.path.split(path)
attempt("by a descriptor of the directory", lambda s: s.sendto(b"x", f"/proc/self/fd/{os.open(directory, os.O_RDONLY)}/{last}"))
attempt("by the root of the process", lambda s: s.connect("/proc/self/root" + path))


def relative(s):
    os.chdir(directory)
    try:
        s.sendto(b"x", last)
    finally:
        os.chdir("/")


attempt("by a relative path", relative)
attempt("a name in the host's directory", lambda s: bound(disconnect(s), directory + "/bound"))


def credentials(s):
    """The kernel gives a socket that wants credentials a name of its own when it sends."""
    s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    s.sendto(b"x", path)


attempt("with credentials", credentials)
post(json.dumps({"pair": before, "again": works(), "reached": reached, "refused": refused}))
