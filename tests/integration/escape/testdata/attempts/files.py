"""Files of the host, through the root, /proc and /dev of the guest.

The Go test puts a secret into a directory of the host that no policy names (outside=DIR, file "secret"). Tried:
writing anywhere in the root; /proc/self/exe (CVE-2019-5736); descriptors and a working directory that the runtime
left open (CVE-2024-21626); /proc/*/root and cwd; writing to anything of /proc, sysrq-trigger and the sysctls
included; reading what the masks cover, by other paths; device nodes, made or found; files by handle; executing
from /tmp and /dev/shm; setuid programs.
"""

OUTSIDE = ARGS["outside"]
WRITABLE = ("/tmp", "/dev/shm")


def own_tree():
    """Directories and files of the root file system itself; what is mounted in it is looked at elsewhere."""
    device = os.stat("/").st_dev
    for top, names, files in os.walk("/"):
        names[:] = [n for n in names if not os.path.islink(os.path.join(top, n)) and os.lstat(os.path.join(top, n)).st_dev == device]
        yield top, [os.path.join(top, n) for n in files]


@attempt("create a file in any directory of the root")
def _():
    made = []
    for top, _ in own_tree():
        path = os.path.join(top, "psi-escape")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(path)
            made.append(top)
        except OSError:
            pass
    if made:
        return f"{len(made)} directories, such as {made[:3]}"
    raise Held("none")


@attempt("open any file of the root for writing")
def _():
    opened = []
    for _, files in own_tree():
        for path in files:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
                opened.append(path)
            except OSError:
                pass
    if opened:
        return f"{len(opened)} files, such as {opened[:3]}"
    raise Held("none")


for name, change in {
    "chmod": lambda p: os.chmod(p, 0o777), "utime": lambda p: os.utime(p), "rename": lambda p: os.rename(p, p + "~"),
    "link": lambda p: os.link(p, p + "~"), "unlink": lambda p: os.unlink(p), "truncate": lambda p: os.truncate(p, 10), "setxattr": lambda p: os.setxattr(p, "user.psi", b"1"),
}.items():

    @attempt(f"{name} in the root")
    def _():
        path = "/opt/psi-escape-" + name if CONTROL else "/usr/lib/psi/rootfs.json"
        if CONTROL:
            open(path, "w").close()
        change(path)


@attempt("write to the running interpreter by /proc/self/exe", always="ETXTBSY everywhere")
def _():
    return os.open("/proc/self/exe", os.O_WRONLY)


@attempt("descriptors of the runtime in pid 1")
def _():
    left = {}
    for name in os.listdir("/proc/1/fd"):
        try:
            if int(name) > 2:
                left[name] = os.readlink(f"/proc/1/fd/{name}")
        except FileNotFoundError:
            pass
    # The script's own: the attempt's pipe.
    left = {name: what for name, what in left.items() if not what.startswith("pipe:")}
    if left:
        return str(left)
    raise Held("0, 1 and 2 only")


@attempt("directories among the descriptors")
def _():
    for name in os.listdir("/proc/1/fd"):
        try:
            if os.path.isdir(f"/proc/1/fd/{name}/"):
                return f"{name}: {os.listdir(f'/proc/1/fd/{name}/')[:5]}"
        except OSError:
            pass
    raise Held("none")


@attempt("the working directory", always="the runtime sets it")
def _():
    if os.readlink("/proc/1/cwd") != "/" or not os.path.samefile("/proc/1/cwd", "/"):
        return os.readlink("/proc/1/cwd")
    raise Held("/")


for prefix in ("", "/proc/self/root", "/proc/1/root", "/proc/1/cwd", "/proc/1/root/..", "/..", "/proc/1/cwd/../../..", "/proc/1/task/1/root", "/proc/thread-self/root"):

    @attempt(f"the secret by {prefix or 'its path'}")
    def _():
        return open(prefix + OUTSIDE + "/secret").read()


@attempt("the secret through every descriptor and process")
def _():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for link in ["root", "cwd"] + [f"fd/{n}" for n in range(64)]:
            for up in ("", "/..", "/../../../../.."):
                try:
                    return open(f"/proc/{pid}/{link}{up}{OUTSIDE}/secret").read()
                except OSError:
                    pass
    raise Held("no way")


@attempt("open something of /proc for writing")
def _():
    opened = []
    for top, names, files in os.walk("/proc"):
        if top == "/proc":
            names[:] = [n for n in names if not n.isdigit() and n not in ("self", "thread-self", "net")]
        for name in files:
            try:
                os.close(os.open(os.path.join(top, name), os.O_WRONLY | os.O_NONBLOCK))
                opened.append(os.path.join(top, name))
            except OSError:
                pass
    # Masks are /dev/null: writing there goes nowhere.
    opened = [path for path in opened if CONTROL or os.stat(path).st_rdev != os.makedev(1, 3)]
    if opened:
        return f"{len(opened)} files, such as {opened[:8]}"
    raise Held("none")


@attempt("arm a pressure trigger", always="needs PSI, which not every kernel has")
def _():
    for kind in ("memory", "io", "cpu"):
        fd = os.open(f"/proc/pressure/{kind}", os.O_RDWR | os.O_NONBLOCK)
        os.write(fd, b"some 150000 2000000\0")
    return "armed"


def content(path):
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


SECRETS = {
    "kcore": None, "kallsyms": lambda data: data.split()[0].strip(b"0"), "keys": None, "timer_list": None, "sched_debug": None, "kmsg": None,
    "kpageflags": None, "kpagecount": None, "vmallocinfo": None, "slabinfo": None, "config.gz": None, "cmdline": None, "interrupts": None,
    "diskstats": None, "modules": None, "partitions": None, "swaps": None, "iomem": lambda data: b"".join(line.split(b" : ")[0] for line in data.splitlines()).strip(b" -0"),
    "latency_stats": None, "acpi/wakeup": None, "scsi/scsi": None, "bus/pci/devices": None,
    "tty/driver/serial": None,
}
DEPENDS = {"sched_debug", "latency_stats", "acpi/wakeup", "scsi/scsi", "config.gz", "keys", "modules", "kmsg",
           "diskstats", "partitions", "bus/pci/devices", "kpagecount", "kpageflags", "tty/driver/serial", "timer_list", "kcore", "slabinfo", "swaps"}
if CONTROL and not SECRETS["kallsyms"](content("/proc/kallsyms")):
    DEPENDS.add("kallsyms")  # kernel.kptr_restrict hides the addresses from everybody
for name, telling in SECRETS.items():

    @attempt(f"read /proc/{name}", always="not every kernel has it" if name in DEPENDS else None)
    def _():
        for prefix in ("/proc/", "/proc/self/root/proc/", "/proc/1/../", "/proc/self/task/../../", "/proc/thread-self/../../../"):
            data = content(prefix + name)
            if telling(data) if data and telling else data:
                return f"{prefix}{name}: {data[:40]!r}"
        raise Held("empty")


@attempt("/sys")
def _():
    found = os.listdir("/sys")
    if found:
        return str(found[:5])
    raise Held("empty")


@attempt("device nodes in /dev")
def _():
    # The OCI specification's own, which say nothing about the host.
    known = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)}
    strange = []
    for top, _, files in os.walk("/dev"):
        for name in files:
            status = os.lstat(os.path.join(top, name))
            number = (os.major(status.st_rdev), os.minor(status.st_rdev))
            if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode) and number not in known:
                strange.append(name)
    if strange:
        return str(strange[:8])
    raise Held("null, zero, full, random, urandom, tty")


@attempt("write to /dev")
def _():
    os.mkdir("/dev/psi-escape")
    os.rmdir("/dev/psi-escape")


@attempt("a new terminal of the host by /dev/ptmx", always="the guest has no devpts")
def _():
    return os.openpty()


for name, kind, device in (("the memory of the kernel", stat.S_IFCHR, os.makedev(1, 1)), ("a disk", stat.S_IFBLK, os.makedev(8, 0)),
                           ("a FIFO", stat.S_IFIFO, 0), ("a socket", stat.S_IFSOCK, 0), ("null", stat.S_IFCHR, os.makedev(1, 3))):
    for where in WRITABLE:

        @attempt(f"mknod {name} in {where}", gate=True)
        def _():
            path = f"{where}/node-{kind}-{device}"
            syscall("mknodat", -100, path.encode(), kind | 0o600, device)
            os.unlink(path)


@attempt("a file by handle (shocker, CVE-2014-3519)", gate=True)
def _():
    handle = ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + struct.pack("II", 2, 0), 136)
    return syscall("open_by_handle_at", os.open("/", os.O_RDONLY), handle, 0)


for where in WRITABLE:

    @attempt(f"execute a file in {where}")
    def _():
        path = where + "/run"
        with open(path, "w") as file:
            file.write("#!/usr/bin/python3\n")
        os.chmod(path, 0o777)
        pid = os.fork()
        if pid == 0:
            try:
                os.execv(path, [path])
            except OSError as error:
                os._exit(error.errno)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise OSError(code, os.strerror(code))

    @attempt(f"map a file of {where} executable")
    def _():
        fd = os.open(where + "/code", os.O_CREAT | os.O_RDWR)
        os.ftruncate(fd, 4096)
        if libc.mmap(None, 4096, 5, 2, fd, 0) in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno() or errno.EPERM, "mmap")


@attempt("programs with setuid or setgid in the root", always="the root has none")
def _():
    found = [path for _, files in own_tree() for path in files if os.lstat(path).st_mode & 0o6000 and not os.path.islink(path)]
    if found:
        return str(found)
    raise Held("none")


@attempt("a file owned by the host's root that can be changed", always="tells about the root's owner only")
def _():
    found = [top for top, _ in own_tree() if os.access(top, os.W_OK)]
    if found and not CONTROL:
        return str(found[:4])
    raise Held("none")


@attempt("capabilities on a file")
def _():
    path = "/tmp/caps"
    open(path, "w").close()
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000000, 0x200000, 0, 0, 0))


done()
