"""Runs in a guest: answers the questions of cases.yml, and looks at what may have decided them."""
import ctypes
import errno
import mmap
import os
import socket
import time

def opened(path, flags, mode=0o644, **more):
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode, **more))

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

def libc():
    return ctypes.CDLL(None, use_errno=True)

def read(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)

def exchange(path, to):
    checked(libc().syscall(316, -100, path, -100, to, 2))

def tmpfile(path):
    opened(path, os.O_TMPFILE | os.O_RDWR)

def under(directory, name):
    fd = os.open(directory, os.O_PATH)
    try:
        opened(name, os.O_RDONLY, dir_fd=fd)
    finally:
        os.close(fd)

def create_under(directory, name):
    fd = os.open(directory, os.O_PATH)
    try:
        opened(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)

def tmpfile_link(path, to):
    fd = os.open(path, os.O_TMPFILE | os.O_RDWR)
    try:
        checked(libc().linkat(-100, b"/proc/self/fd/%d" % fd, -100, to, 0x400))
    finally:
        os.close(fd)

def from_cwd(directory, name):
    os.chdir(directory)
    try:
        read(b"/proc/self/cwd/" + name)
    finally:
        os.chdir("/")

def from_path_fd(path):
    fd = os.open(path, os.O_PATH)
    try:
        read(b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)

def execute(path, argv=("x",)):
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            os.execve(path, list(argv), {})
        except OSError as error:
            code = error.errno
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WEXITSTATUS(status):
        raise OSError(os.WEXITSTATUS(status), "")

def map_execute(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(fd)

def memfd():
    fd = os.memfd_create("x")
    os.write(fd, b"x")
    read(b"/proc/self/fd/%d" % fd)
    os.close(fd)

def execute_memfd():
    fd = os.memfd_create("x", 0)
    with open("/usr/bin/python3", "rb") as file:
        os.sendfile(fd, file.fileno(), 0, 1 << 26)
    try:
        execute(b"/proc/self/fd/%d" % fd, ("python3", "-I", "-S", "-c", "pass"))
    finally:
        os.close(fd)

def map_execute_memfd():
    fd = os.memfd_create("x", 0)
    try:
        os.truncate(fd, 4096)
        mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(fd)

def write_own_code():
    """A byte of a function is written, as it was."""
    address = ctypes.cast(libc().getppid, ctypes.c_void_p).value
    fd = os.open("/proc/self/mem", os.O_RDWR)
    try:
        os.pwrite(fd, os.pread(fd, 1, address), address)
    finally:
        os.close(fd)

def deleted_reopen(path):
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.unlink(path)
    opened(b"/proc/self/fd/%d" % fd, os.O_RDWR)
    os.close(fd)

def reopen(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        opened(b"/proc/self/fd/%d" % fd, os.O_WRONLY)
    finally:
        os.close(fd)

def protect_execute(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        address = libc().mmap
        address.restype, address.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        protect = libc().mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        checked(protect(address(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, 0), 4096, mmap.PROT_READ | mmap.PROT_EXEC))
    finally:
        os.close(fd)

def connect(path):
    s = socket.socket(socket.AF_UNIX)
    try:
        s.connect(path)
    finally:
        s.close()

def send(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", path)

def pair(*kinds):
    for kind in kinds:
        a, b = socket.socketpair(type=kind)
        a.send(b"x")
        assert b.recv(1) == b"x"
        a.close()
        b.close()

def by_pair(how):
    def ask(path):
        a, b = socket.socketpair(type=socket.SOCK_DGRAM)
        with a, b:
            how(a, path)
    return ask

def address(text):
    """The family and the address that stand for "127.0.0.1:80" or "[::1]:80"."""
    host, _, port = text.decode().rpartition(":")
    if host.startswith("["):
        return socket.AF_INET6, (host[1:-1], int(port))
    return socket.AF_INET, (host, int(port))

def inet(kind, *steps):
    def ask(text):
        family, at = address(text)
        with socket.socket(family, kind) as s:
            for step in steps:
                step(s, at)
    return ask

def made(*arguments):
    def ask(_):
        checked(libc().socket(*arguments))
    return ask

def listen(s, _):
    s.listen(1)

ASK = {
    "read": read,
    "list": os.listdir,
    "write": lambda path: opened(path, os.O_WRONLY),
    "open-truncate": lambda path: opened(path, os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda path: os.truncate(path, 0),
    "create": lambda path: opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "left-behind": os.stat,
    "mkdir": os.mkdir, "rmdir": os.rmdir, "unlink": os.unlink,
    "rename": os.rename, "exchange": exchange, "link": os.link,
    "symlink": lambda path: os.symlink("x", path),
    "chmod": lambda path: os.chmod(path, 0o644),
    "chown": lambda path: os.chown(path, 0, 0),
    "touch": lambda path: os.utime(path, (1, 1)),
    "setxattr": lambda path: os.setxattr(path, "user.psi", b"x"),
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, 0o020600, os.makedev(1, 3)),
    "tmpfile": tmpfile,
    "tmpfile-link": tmpfile_link,
    "dirfd-read": under, "dirfd-create": create_under,
    "proc-root-read": lambda path: read(b"/proc/self/root" + path),
    "proc-cwd-read": from_cwd,
    "path-fd-read": from_path_fd,
    "execute": execute,
    "execute-self": lambda path: execute(path, ("python3", "-I", "-S", "-c", "pass")),
    "map-execute": map_execute,
    "protect-execute": protect_execute,
    "reopen-to-write": reopen,
    "connect": connect, "send": send,
    "socketpair": lambda path: pair(socket.SOCK_STREAM, socket.SOCK_SEQPACKET),
    "datagram-pair": lambda path: pair(socket.SOCK_DGRAM),
    "pair-connect": by_pair(lambda s, path: s.connect(path)),
    "pair-send": by_pair(lambda s, path: s.sendto(b"x", path)),
    "memfd": lambda path: memfd(),
    "execute-memfd": lambda path: execute_memfd(),
    "map-execute-memfd": lambda path: map_execute_memfd(),
    "map-execute-memory": lambda path: mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_EXEC).close(),
    "write-own-code": lambda path: write_own_code(),
    "deleted-reopen": deleted_reopen,
    "mount": lambda path: checked(libc().mount(b"none", path, b"tmpfs", 0, None)),
    "chroot": os.chroot,
    "appears": read,
    "tcp": inet(socket.SOCK_STREAM, socket.socket.connect),
    "fast-open": inet(socket.SOCK_STREAM, lambda s, at: s.sendto(b"x", 0x20000000, at)),
    "udp": inet(socket.SOCK_DGRAM, lambda s, at: s.sendto(b"x", at)),
    "bind": inet(socket.SOCK_STREAM, socket.socket.bind),
    "bind-listen": inet(socket.SOCK_STREAM, socket.socket.bind, listen),
    "listen": inet(socket.SOCK_STREAM, listen),
    "socket-unix": made(1, 1, 0), "socket-netlink": made(16, 3, 0), "socket-packet": made(17, 3, 0), "socket-vsock": made(40, 1, 0),
    "socket-raw": made(2, 3, 1), "socket-ping": made(2, 2, 1), "socket-mptcp": made(2, 1, 262), "socket-sctp": made(2, 1, 132),
}

# The call that a row ends with, with arguments that the filter lets pass or refuses as it does those of the
# row, and that the kernel itself refuses before it asks anybody: an EPERM is the filter's.
def stranger(domain, kind, protocol=0):
    return lambda: libc().socket(domain, kind | 1 << 30, protocol)

FILTER = {
    "symlink": lambda: libc().symlink(None, None),
    "setxattr": lambda: libc().setxattr(None, None, None, 0, 0),
    "mkfifo": lambda: libc().mknod(None, 0o010666, 0),
    "mknod": lambda: libc().mknod(None, 0o020600, 0),
    "mount": lambda: libc().mount(None, None, None, 0, None),
    "chroot": lambda: libc().chroot(None),
    "map-execute": lambda: libc().syscall(9, 0, 4096, 5, 2, -1, 0),
    "connect": stranger(1, 1), "send": stranger(1, 2), "socket-unix": stranger(1, 1), "socket-netlink": stranger(16, 3),
    "socket-packet": stranger(17, 3), "socket-vsock": stranger(40, 1), "socket-raw": stranger(2, 3, 1), "socket-ping": stranger(2, 2, 1),
    "socket-mptcp": stranger(2, 1, 262), "socket-sctp": stranger(2, 1, 132), "udp": stranger(2, 2),
    "socketpair": lambda: libc().socketpair(1, 1 | 1 << 30, 0, None),
    "datagram-pair": lambda: libc().socketpair(1, 2 | 1 << 30, 0, None),
    "tcp": lambda: libc().connect(-1, None, 0), "pair-connect": lambda: libc().connect(-1, None, 0),
    "fast-open": lambda: libc().sendto(-1, None, 0, 0x20000000, None, 0), "pair-send": lambda: libc().sendto(-1, None, 0, 0, None, 0),
    "bind": lambda: libc().bind(-1, None, 0), "bind-listen": lambda: libc().bind(-1, None, 0), "listen": lambda: libc().listen(-1, 1),
}

def filtered(do):
    return do in FILTER and FILTER[do]() < 0 and ctypes.get_errno() == errno.EPERM

def mounted(path):
    """The flags of the mount that a path is in, as far as it exists here."""
    while True:
        try:
            flags = os.statvfs(path).f_flag
            return {"readonly": bool(flags & os.ST_RDONLY), "noexec": bool(flags & os.ST_NOEXEC)}
        except OSError:
            path = os.path.dirname(path)

def ask(number, do, told, lying):
    """The answer, and what is seen of who gave it. The kernel's events carry the number."""
    # What there is before: some rows remove it.
    seen = {"filtered": filtered(do), "here": [os.path.exists(path) for path in lying], "mounts": [mounted(name) for path in lying for name in (path, os.path.dirname(path))]}
    libc().prctl(15, b"row-%d" % number, 0, 0, 0)
    try:
        ASK[do](*told)
        seen["answer"] = "ok"
    except OSError as error:
        seen["answer"] = errno.errorcode.get(error.errno, str(error.errno))
    except Exception as error:
        seen["answer"] = repr(error)
    libc().prctl(15, b"between-rows", 0, 0, 0)
    return seen
