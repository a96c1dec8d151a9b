"""Mounts, roots and namespaces: everything that would change what the guest sees, or where it is.

Tried: mount and umount in the old and the new interface, remounting the root writable, a fresh /proc without
the masks, cgroup file systems (CVE-2022-0492: release_agent), pivot_root, chroot, unshare, setns by path and by
pidfd, clone and clone3 with every CLONE_NEW flag, nested user namespaces (most kernel exploits start there,
CVE-2022-0185), rewriting the id maps. All must answer EPERM or ENOSYS before the kernel looks at an argument.
"""

MS_BIND, MS_REMOUNT, MS_REC, MS_PRIVATE = 4096, 32, 16384, 1 << 18
AT_FDCWD = -100
NAMESPACES = {"mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
              "net": 0x40000000, "time": 0x80}

if CONTROL:  # where it works, each attempt spoils a mount namespace of its own
    os.register_at_fork(after_in_child=lambda: libc.unshare(NAMESPACES["mnt"]))


def place(name):
    path = "/tmp/" + name
    os.makedirs(path, exist_ok=True)
    return path.encode()


@attempt("mount a tmpfs", gate=True)
def _():
    syscall("mount", b"none", place("t"), b"tmpfs", 0, None)


@attempt("mount a fresh proc without masks", gate=True)
def _():
    syscall("mount", b"proc", place("p"), b"proc", 0, None)


@attempt("mount sysfs", gate=True)
def _():
    syscall("mount", b"sysfs", place("s"), b"sysfs", 0, None)


@attempt("mount cgroup2 (release_agent and limits)", gate=True)
def _():
    syscall("mount", b"none", place("c"), b"cgroup2", 0, None)


@attempt("mount an overlay (CVE-2021-3493)", gate=True)
def _():
    syscall("mount", b"o", place("o"), b"overlay", 0, b"lowerdir=/usr,upperdir=/tmp/t,workdir=/tmp/p")


@attempt("bind-mount the root", gate=True)
def _():
    syscall("mount", b"/", place("r"), None, MS_BIND | MS_REC, None)


@attempt("remount the root writable", gate=True)
def _():
    syscall("mount", None, b"/", None, MS_BIND | MS_REMOUNT, None)


@attempt("make the root shared again", gate=True)
def _():
    syscall("mount", None, b"/", None, MS_PRIVATE, None)


@attempt("umount a mask of /proc", gate=True)
def _():
    syscall("umount2", b"/dev/shm" if CONTROL else b"/proc/kcore", 2)


@attempt("umount /proc lazily", gate=True)
def _():
    syscall("umount2", b"/proc", 2)


for call, args in {
    "fsopen": (b"tmpfs", 0), "fsconfig": (-1, 0, None, None, 0), "fsmount": (-1, 0, 0), "fspick": (AT_FDCWD, b"/", 0),
    "open_tree": (AT_FDCWD, b"/", 1), "open_tree_attr": (AT_FDCWD, b"/", 1, None, 0), "move_mount": (-1, b"", AT_FDCWD, b"/mnt", 4),
    "mount_setattr": (AT_FDCWD, b"/", 0, None, 0), "pivot_root": (b"/tmp", b"/tmp"), "chroot": (b"/tmp",),
    "statmount": (None, None, 0, 0), "listmount": (None, None, 0, 0),
}.items():

    @attempt(call, gate=True)
    def _():
        return f"{call} = {syscall(call, *args)}"


for kind, flag in NAMESPACES.items():

    @attempt(f"unshare {kind}", gate=True)
    def _():
        syscall("unshare", flag)

    @attempt(f"setns /proc/1/ns/{kind}", gate=True)
    def _():
        syscall("setns", os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0)

    if kind != "time":  # not a flag of clone

        @attempt(f"clone a new {kind}", gate=True)
        def _():
            pid = syscall("clone", flag | signal.SIGCHLD, 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            return f"pid {pid}"

    @attempt(f"clone3 a new {kind}", gate=True)
    def _():
        clone_args = (ctypes.c_ulonglong * 11)(flag, 0, 0, 0, signal.SIGCHLD)
        pid = syscall("clone3", clone_args, 88)
        if pid == 0:
            os._exit(0)
        return f"pid {pid}"


@attempt("clone a user namespace with a bit in the upper half of the flags", gate=True)
def _():
    pid = syscall("clone", NAMESPACES["user"] | signal.SIGCHLD | 1 << 40, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return f"pid {pid}"


@attempt("clone3 without any flag: the filter cannot read its structure", gate=True)
def _():
    clone_args = (ctypes.c_ulonglong * 11)(0, 0, 0, 0, signal.SIGCHLD)
    pid = syscall("clone3", clone_args, 88)
    if pid == 0:
        os._exit(0)
    return f"pid {pid}"


@attempt("all namespaces at once, and root in them", gate=True)
def _():
    syscall("unshare", 0x10000000 | 0x20000)
    syscall("mount", b"none", b"/mnt", b"tmpfs", 0, None)


@attempt("setns by the pidfd of pid 1", gate=True)
def _():
    syscall("setns", os.pidfd_open(1), NAMESPACES["mnt"])


for name, request in {"NS_GET_USERNS": 0xB701, "NS_GET_PARENT": 0xB702, "NS_GET_OWNER_UID": 0xB704, "NS_GET_MNTNS_ID": 0x8008B705}.items():

    @attempt(f"ioctl {name}: a way to the parent namespaces", gate=True, always=None if name == "NS_GET_USERNS" else "depends on who owns the namespace")
    def _():
        return syscall("ioctl", os.open("/proc/self/ns/net", os.O_RDONLY), request, ctypes.create_string_buffer(16))


for name in ("uid_map", "gid_map"):

    @attempt(f"rewrite /proc/self/{name}", always="a map is written once")
    def _():
        with open(f"/proc/self/{name}", "w") as file:
            file.write("0 0 4294967295")


@attempt("the map holds one id of psi's own range")
def _():
    for name in ("uid_map", "gid_map"):
        inside, outside, count = map(int, open(f"/proc/self/{name}").read().split())
        if inside or count not in (1, 65536) or not 0x70000000 <= outside < 0x71000000:
            return f"{name}: {inside} {outside} {count}"
    raise Held("one id")


@attempt("/proc/self/setgroups: allow")
def _():
    with open("/proc/self/setgroups", "w") as file:
        file.write("allow")
    syscall("setgroups", 1, (ctypes.c_uint * 1)(0))


done()
