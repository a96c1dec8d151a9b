"""Directories that the policy opens: only what the rules say, and only in the way they say.

The Go test makes, side by side on the host (base=DIR):

    read/     a rule reads it whole: plain files, links out of it, other users' files, a directory to be moved away
    write/    a rule writes it whole
    special/  a rule reads it; it holds a FIFO and a listening unix socket
    denied/   a rule reads it, another denies denied/key
    outside/  no rule names it: it holds the secret, which names and links in the others lead to

Tried: writing through the read-only mount in every way; `..`, symbolic and hard links, a directory that is moved out
while the guest is in it (CVE-2015-2925); other users' files in an idmapped mount; sockets and FIFOs; leaving
setuid programs, device nodes, FIFOs or sockets on the host in the directory that may be written.
"""

BASE = ARGS["base"]
READ, WRITE, SPECIAL, DENIED, OUTSIDE = (f"{BASE}/{name}" for name in ("read", "write", "special", "denied", "outside"))


def must_read(path, want):
    with open(path) as file:
        got = file.read()
    if want not in got:
        raise AssertionError(f"{path} does not hold {want!r}: the view does not work: {got!r}")


if CONTROL:
    with open(WRITE + "/made", "w") as file:
        file.write("made by the control")


@attempt("the rules open what they should", always="nothing to hold")
def _():
    try:
        must_read(READ + "/plain", "plain")
        must_read(SPECIAL + "/plain", "plain")
        must_read(DENIED + "/plain", "plain")
        with open(WRITE + "/made", "w") as file:
            file.write("made by the guest")
    except OSError as error:
        raise AssertionError("the view does not work") from error
    raise Held("they do")


for name, change in {
    "open for writing": lambda p: os.open(p, os.O_WRONLY), "truncating open": lambda p: os.open(p, os.O_RDONLY | os.O_TRUNC),
    "append": lambda p: os.open(p, os.O_WRONLY | os.O_APPEND), "create beside it": lambda p: os.open(p + ".new", os.O_CREAT | os.O_WRONLY),
    "O_TMPFILE": lambda p: os.open(os.path.dirname(p), os.O_TMPFILE | os.O_RDWR), "unlink": os.unlink, "rename": lambda p: os.rename(p, p + "~"),
    "rename into the writable directory": lambda p: os.rename(p, WRITE + "/stolen"), "chmod": lambda p: os.chmod(p, 0o666), "utime": os.utime,
    "chown": lambda p: os.chown(p, 0, 0), "truncate": lambda p: os.truncate(p, 0), "setxattr": lambda p: os.setxattr(p, "user.psi", b"1"),
    "symlink beside it": lambda p: os.symlink("x", p + ".link"), "mkdir": lambda p: os.mkdir(p + ".d"), "hard link": lambda p: os.link(p, p + ".hard"),
    "reopen by /proc/self/fd": lambda p: os.open(f"/proc/self/fd/{os.open(p, os.O_RDONLY)}", os.O_RDWR),
    "write through a shared mapping": lambda p: __import__("mmap").mmap(os.open(p, os.O_RDONLY), 4, prot=3),
    "fchmod": lambda p: os.fchmod(os.open(p, os.O_RDONLY), 0o666), "ftruncate": lambda p: os.ftruncate(os.open(p, os.O_RDONLY), 0),
    "fallocate": lambda p: os.posix_fallocate(os.open(p, os.O_RDONLY), 0, 1 << 20), "copy_file_range": lambda p: os.copy_file_range(
        os.open(WRITE + "/made", os.O_RDONLY), os.open(p, os.O_RDONLY), 4),
}.items():

    @attempt(f"read-only view: {name}")
    def _():
        path = f"{READ}/victim-{name.split()[0].strip('/')}-{len(name)}" if CONTROL else READ + "/plain"
        if CONTROL:
            with open(path, "w") as file:
                file.write("control")
        if CONTROL and name in ("write through a shared mapping", "ftruncate", "fallocate", "copy_file_range"):
            return "no such protection on a descriptor"  # the descriptor itself is read-only, with or without a mount
        change(path)


@attempt("`..` out of the view")
def _():
    for directory in (READ, WRITE):
        fd = os.open(directory, os.O_RDONLY)
        for path in ("../outside/secret", "./../../" + os.path.basename(BASE) + "/outside/secret", "sub/../../outside/secret"):
            try:
                with open(os.open(path, os.O_RDONLY, dir_fd=fd)) as file:
                    return file.read()
            except OSError:
                pass
    return open(OUTSIDE + "/secret").read()


for link in ("absolute-link", "relative-link", "directory-link/secret", "proc-link/secret"):

    @attempt(f"a symbolic link that leads out: {link}")
    def _():
        text = open(f"{READ}/{link}").read()
        if "secret" in text:
            return text
        raise Held("another file")


@attempt("links that the guest makes in the writable view, followed by itself")
def _():
    for number, target in enumerate((OUTSIDE + "/secret", "../outside/secret", "/proc/1/root" + OUTSIDE + "/secret")):
        path = f"{WRITE}/own-link-{number}"
        try:
            os.symlink(target, path)
            return open(path).read()
        except OSError:
            pass
        finally:
            os.unlink(path)
    raise Held("they lead nowhere")


@attempt("hard link of a read-only file into the writable view")
def _():
    os.link(READ + "/plain", WRITE + "/hard")


@attempt("a directory that is moved away while the guest is in it")
def _():
    inside = os.open(READ + "/moving/deep", os.O_RDONLY)
    open(WRITE + "/ready-to-move", "w").close()
    end = time.monotonic() + 15
    while os.path.exists(READ + "/moving") and time.monotonic() < end:
        time.sleep(0.02)
    if os.path.exists(READ + "/moving"):
        raise AssertionError("the test did not move the directory")
    for path in ("../../secret", "../secret", "../../../outside/secret"):
        try:
            with open(os.open(path, os.O_RDONLY, dir_fd=inside)) as file:
                return file.read()
        except OSError:
            pass
    raise Held("`..` leads nowhere")


for mode in ("0600", "0640"):

    @attempt(f"another user's file of mode {mode}")
    def _():
        return open(f"{READ}/other-{mode}").read()


@attempt("another user's file in the writable view: write")
def _():
    return os.open(WRITE + "/other-0644", os.O_WRONLY)


@attempt("another user's file in the writable view: chmod and chown")
def _():
    os.chmod(WRITE + "/other-0644", 0o777)
    os.chown(WRITE + "/other-0644", 0, 0)


@attempt("give a file to another user")
def _():
    os.chown(WRITE + "/made", 1, 1)


for name in ("fifo", "socket"):

    @attempt(f"a {name} in a directory that a rule reads")
    def _():
        status = os.stat(f"{SPECIAL}/{name}")
        if name == "fifo":
            return os.open(f"{SPECIAL}/{name}", os.O_WRONLY | os.O_NONBLOCK)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            try:
                with socket.socket(socket.AF_UNIX, kind) as s:
                    s.connect(f"{SPECIAL}/{name}")
                    return "connected"
            except OSError as error:
                last = error
        raise last


@attempt("a denied file")
def _():
    return open(DENIED + "/key").read()


@attempt("a denied file by listing and other spellings")
def _():
    found = os.listdir(DENIED)
    for path in (DENIED + "/./key", DENIED + "//key", DENIED + "/sub/../key", f"/proc/self/root{DENIED}/key"):
        try:
            return open(path).read()
        except OSError:
            pass
    if "key" in found:
        return "its name is listed"
    raise Held(str(found))


@attempt("execute a program in the writable view")
def _():
    path = WRITE + "/program"
    with open(path, "w") as file:
        file.write("#!/usr/bin/python3\n")
    os.chmod(path, 0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


# What the guest leaves in a writable directory is on the host, which has no nosuid there; the files are
# the client's. A program of root's with the setuid bit would be anybody's way to root.
def setuid(path, how):
    how(path)
    mode = os.lstat(path).st_mode
    if mode & 0o6000:
        return f"{path} is {stat.filemode(mode)} and belongs to {os.lstat(path).st_uid}"
    raise Held(stat.filemode(mode))


def fresh(path, mode=0o644):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
    return path


def fchmod_at(path, flag):
    fresh(path)
    syscall("fchmodat2", -100, path.encode(), 0o4755, flag)


def openat2(path):
    how = ctypes.create_string_buffer(struct.pack("QQQ", os.O_CREAT | os.O_WRONLY, 0o4755, 0))
    os.close(syscall("openat2", -100, path.encode(), how, 24))


def tmpfile(path):
    fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o4755)
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def old(number, path, *args):
    """A call of x86 that other architectures do not have."""
    syscall(number if X86 else None, path.encode(), *args)


for name, how in {
    "creat with u+s": lambda p: old(85, p, 0o4755), "old open with u+s": lambda p: old(2, p, os.O_CREAT | os.O_WRONLY, 0o4755), "O_TMPFILE with u+s": tmpfile,
    "old open with u+s and upper halves": lambda p: old(2, p, os.O_CREAT | os.O_WRONLY | 1 << 32, 0o4755 | 1 << 32),
    "old open with g+s": lambda p: old(2, p, os.O_CREAT | os.O_WRONLY, 0o2755), "creat with g+s": lambda p: old(85, p, 0o2755),
    "chmod u+s": lambda p: os.chmod(fresh(p), 0o4755), "chmod g+s": lambda p: os.chmod(fresh(p), 0o2755),
    "chmod u+s with an upper half": lambda p: (fresh(p), syscall("chmod", p.encode(), 0o4755 | 1 << 32)),
    "fchmod u+s": lambda p: os.fchmod(os.open(p, os.O_CREAT | os.O_WRONLY), 0o4755), "open with u+s": lambda p: fresh(p, 0o4755),
    "openat2 with u+s": openat2, "fchmodat2 u+s": lambda p: fchmod_at(p, 0), "mkdir g+s": lambda p: (os.mkdir(p), os.chmod(p, 0o2777)),
    "fchmodat by descriptor": lambda p: os.chmod(f"/proc/self/fd/{os.open(p, os.O_CREAT | os.O_WRONLY)}", 0o4755),
}.items():

    @attempt(f"leave on the host: {name}")
    def _():
        return setuid(f"{WRITE}/left-{name.replace(' ', '-').replace('+', '')}", how)


for name, kind in (("a FIFO", stat.S_IFIFO), ("a device", stat.S_IFCHR), ("a socket", stat.S_IFSOCK)):

    @attempt(f"leave on the host: {name}", gate=True)
    def _():
        syscall("mknodat", -100, f"{WRITE}/left-{kind}".encode(), kind | 0o666, os.makedev(1, 1) if kind == stat.S_IFCHR else 0)


@attempt("leave on the host: a socket, by binding one end of a pair")
def _():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    one.bind(WRITE + "/left-bound")


@attempt("leave on the host: capabilities on a program")
def _():
    os.setxattr(fresh(WRITE + "/left-caps"), "security.capability", struct.pack("<IIIII", 0x02000000, 0x200000, 0, 0, 0))


@attempt("leave on the host: immutable files", gate=True)
def _():
    return syscall("ioctl", os.open(fresh(WRITE + "/left-flags"), os.O_RDONLY), 0x40086602, ctypes.create_string_buffer(struct.pack("L", 0)))


@attempt("a lease on the client's file", gate=True)
def _():
    syscall("fcntl", os.open(WRITE + "/made", os.O_RDONLY), 1024, 0)


done()
