"""A container of an engine, held to patterns, wants other files of its volume. Each line of output is
an attempt and what came of it: "open", or how it was stopped."""

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
import subprocess
import sys

volume = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)


def attempt(name, action):
    try:
        result = action()
    except OSError as e:
        print(name, errno.errorcode.get(e.errno, repr(e)), flush=True)
    else:
        print(name, "open" if result is None else result, flush=True)


def at(name):
    return os.path.join(volume, name)


def read(path):
    def action():
        with open(path, "rb") as f:
            f.read(1)
    return action


def write(path, mode="w"):
    def action():
        with open(path, mode) as f:
            f.write("x")
    return action


def by_directory():
    d = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.close(os.open("secret", os.O_RDONLY, dir_fd=d))
    finally:
        os.close(d)


def by_o_path():
    d = os.open(at("secret"), os.O_PATH)
    try:
        os.close(os.open("/proc/self/fd/%d" % d, os.O_RDONLY))
    finally:
        os.close(d)


def by_link():
    os.link(at("secret"), at("out/secret.txt"))


def by_symbolic_link():
    os.symlink(at("secret"), "/tmp/l.csv")
    read("/tmp/l.csv")()


def by_exec():
    shutil.copy("/bin/true" if os.path.exists("/bin/true") else sys.executable, at("out/tool.txt"))
    os.chmod(at("out/tool.txt"), 0o755)
    subprocess.run([at("out/tool.txt"), "-c", "0"], check=True)


def by_mapping():
    with open(at("out/code.txt"), "w+b") as f:
        f.write(b"\xc3" * 4096)
        f.flush()
        mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()


def by_socket():
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(at("out/s.txt"))


def by_io_uring():
    if libc.syscall(425, 1, ctypes.create_string_buffer(120)) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    return "a ring"


def by_ioctl(name, get, number):
    """The owner of a file changes its flags or attributes through a descriptor to read it."""
    def action():
        with open(at(name), "rb") as f:
            argument = bytearray(fcntl.ioctl(f, get, bytes(28)))
            argument[0] ^= 0xC0  # what dumps and access times leave alone, in either of the two
            fcntl.ioctl(f, number, bytes(argument))
    return action


def by_swap():
    """A name that may be written is exchanged with one that may not."""
    with open(at("out/mine.txt"), "w"):
        pass
    if libc.renameat2(-100, at("out/mine.txt").encode(), -100, at("secret").encode(), 2) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


for name, action in {
    "match": read(at("a.csv")), "deep-match": read(at("sub/b.csv")), "write": write(at("out/new.txt")), "rename": lambda: os.rename(at("out/new.txt"), at("out/newer.txt")),
    "list": lambda: ",".join(sorted(os.listdir(volume))), "own-file": write("/tmp/mine"), "own-program": lambda: subprocess.run([sys.executable, "-c", "0"], check=True) and None,
    "secret": read(at("secret")), "denied": read(at("sub/x.csv.key")), "below-denied": read(at("sub/dir.key/c.csv")), "write-match": write(at("a.csv"), "a"), "truncate": lambda: os.truncate(at("a.csv"), 0),
    "create": write(at("out/new.sh")), "remove": lambda: os.unlink(at("a.csv")), "rename-in": lambda: os.rename(at("secret"), at("out/s.txt")), "rename-dir": lambda: os.rename(at("sub"), at("out/sub.txt")),
    "chmod": lambda: os.chmod(at("a.csv"), 0o777), "times": lambda: os.utime(at("secret")), "xattr": lambda: os.setxattr(at("out/newer.txt"), "user.x", b""),
    "dotdot": read(at("out/../secret")), "proc-root": read("/proc/self/root" + at("secret")), "proc-cwd": lambda: (os.chdir(volume), read("/proc/self/cwd/secret")()) and None,
    "directory": by_directory, "o-path": by_o_path, "link": by_link, "symbolic-link": by_symbolic_link, "link-in-volume": read(at("link.csv")), "exec": by_exec, "mapping": by_mapping,
    "socket": by_socket, "swap": by_swap, "image": read("/etc/passwd"), "image-rename": lambda: os.rename("/etc/passwd", "/etc/open"), "io-uring": by_io_uring,
    "flags": by_ioctl("a.csv", 0x80086601, 0x40086602), "attributes": by_ioctl("a.csv", 0x801C581F, 0x401C5820), "own-flags": by_ioctl("out/newer.txt", 0x80086601, 0x40086602),
}.items():
    attempt(name, action)
