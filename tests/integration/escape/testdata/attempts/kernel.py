"""Interfaces of the kernel that no Python program needs, and most kernel exploits do.

Tried: the calls that the filter forbids, each with arguments that the kernel would refuse behind the gate; ways
around the filter (upper halves of arguments, CVE-2019-10063; 32-bit calls by int 0x80; the x32 numbers; a second
filter, seccomp by prctl); privileges (capset, ambient capabilities, securebits, ids, groups, no_new_privs);
priorities and limits; terminals (TIOCSTI, CVE-2017-5226). The gate must answer EPERM, EACCES or ENOSYS.
"""

BPF_ARRAY = (ctypes.c_uint * 32)(2, 4, 8, 1)
HIGH = 1 << 32


def capability(number):
    for line in open("/proc/self/status"):
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) >> number & 1
    return 0


RESOURCE = None if capability(24) else "needs CAP_SYS_RESOURCE, which the machine does not have"
zero = ctypes.create_string_buffer(256)
CALLS = {
    "ptrace": (0, 0, 0, 0), "process_vm_readv": (1, None, 0, None, 0, 0), "process_vm_writev": (1, None, 0, None, 0, 0),
    "kcmp": (os.getpid(), os.getpid(), 0, 0, 0), "bpf": (0, BPF_ARRAY, 72), "perf_event_open": (None, 0, -1, -1, 0), "userfaultfd": (0,),
    "io_uring_setup": (1, ctypes.create_string_buffer(120)), "io_uring_enter": (-1, 0, 0, 0, None, 0), "io_uring_register": (-1, 0, None, 0),
    "add_key": (b"user", b"psi", b"x", 1, -2), "request_key": (b"user", b"psi", None, -2), "keyctl": (0, -3, 0),
    "kexec_load": (0, 0, None, 0xFFFF), "kexec_file_load": (-1, -1, 0, None, 0xFFFF), "init_module": (None, 0, b""),
    "finit_module": (-1, b"", 0), "delete_module": (b"psi_no_such", 0x800), "personality": (0x40000,), "modify_ldt": (0, zero, 16),
    "iopl": (0,), "ioperm": (0, 1, 0), "timer_create": (0, None, zero), "io_setup": (1, ctypes.create_string_buffer(8)),
    "splice": (-1, None, -1, None, 1, 0), "tee": (-1, -1, 1, 0), "vmsplice": (-1, None, 0, 0), "seccomp": (2, 0, ctypes.c_uint(0x7FFF0000)),
    "mq_open": (b"psi", 0, 0, None), "shmget": (0, 4096, 0o600), "semget": (0, 1, 0o600), "msgget": (0, 0o600), "inotify_init1": (0,),
    "fanotify_init": (0x200, 0), "syslog": (10, None, 0), "adjtimex": (ctypes.create_string_buffer(256),),
    "clock_adjtime": (0, ctypes.create_string_buffer(256)), "settimeofday": (None, None), "clock_settime": (1, zero),
    "sethostname": (b"escaped", 7), "setdomainname": (b"escaped", 7), "swapon": (b"/no/such", 0), "swapoff": (b"/no/such",),
    "quotactl": (0x7FFFFF00, b"/no/such", 0, None), "quotactl_fd": (-1, 0x7FFFFF00, 0, None), "acct": (b"/no/such",), "reboot": (1, 2, 3, None),
    "ioprio_set": (1, 0, 1 << 13), "sched_setattr": (0, zero, 0), "setfsuid": (1234,), "sysfs": (3,), "ustat": (0, zero),
    "name_to_handle_at": (-100, b"/", None, None, 0), "open_by_handle_at": (-1, None, 0), "process_madvise": (-1, None, 0, 0, 0),
    "process_mrelease": (-1, 0), "pidfd_getfd": (-1, 0, 0), "memfd_secret": (0,), "syncfs": (0,), "lookup_dcookie": (0, None, 0),
    "migrate_pages": (0, 0, None, None), "move_pages": (0, 0, None, None, None, 0), "pkey_alloc": (0, 0), "lsm_list_modules": (None, None, 0),
    "capset": (ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0)), ctypes.create_string_buffer(24)),
}
# In the control these answer EPERM or EACCES by themselves.
ELSEWHERE = {
    "ptrace": None, "bpf": None if capability(39) else "the machine has no CAP_BPF",
    "reboot": "no reboot from a pid namespace", "request_key": None,
}

for call, args in CALLS.items():

    @attempt(call, gate=True, always=ELSEWHERE.get(call))
    def _():
        return f"{call} = {syscall(call, *[ctypes.byref(arg) if isinstance(arg, ctypes.c_uint) else arg for arg in args])}"


PRCTL = {
    "PR_SET_SECCOMP": (22, 0x7FFF), "PR_CAPBSET_DROP": (24, 0), "PR_SET_SECUREBITS": (28, 0), "PR_TASK_PERF_EVENTS_DISABLE": (31, 0), "PR_SET_MM": (35, 1),
    "PR_MPX_ENABLE_MANAGEMENT": (43, 0), "PR_CAP_AMBIENT": (47, 3), "PR_SET_SPECULATION_CTRL": (53, 0), "PR_SET_IO_FLUSHER": (57, 0),
    "PR_SET_SYSCALL_USER_DISPATCH": (59, 0), "PR_SCHED_CORE": (62, 0), "PR_SET_MDWE": (65, 0), "PR_SET_PTRACER": (0x59616D61, -1),
}
for name, (option, value) in PRCTL.items():
    for shown, number in ((name, option), (name + " with an upper half", option | HIGH)):

        @attempt(f"prctl {shown}", gate=True, always=RESOURCE if name in ("PR_SET_IO_FLUSHER", "PR_SET_MM") else None)
        def _():
            return f"= {syscall('prctl', number, value, 0, 0, 0)}"


@attempt("personality with an upper half", gate=True)
def _():
    return syscall("personality", 0x40000 | HIGH)


@attempt("unset no_new_privs", always="nobody can")
def _():
    syscall("prctl", 38, 0, 0, 0, 0)


@attempt("status: capabilities, no_new_privs, the filter")
def _():
    status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/1/status") if ":\t" in line)
    bad = {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)}
    bad.update({name: status[name] for name, want in (("NoNewPrivs", "1"), ("Seccomp", "2")) if status[name] != want})
    if bad:
        return str(bad)
    raise Held("none, 1, 2")


# Terminals and devices. The descriptor is a pipe: behind the gate the kernel says ENOTTY.
IOCTLS = {
    "TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCSETD": 0x5423, "TIOCSCTTY": 0x540E, "TCSETS": 0x5402, "FS_IOC_SETFLAGS": 0x40086602, "FIFREEZE": 0xC0045877,
    "SIOCSIFFLAGS": 0x8914, "TUNSETIFF": 0x400454CA, "KDSKBENT": 0x4B47, "BLKROSET": 0x125D, "LOOP_SET_FD": 0x4C00, "UFFDIO_API": 0xC018AA3F,
    "FICLONERANGE": 0x4020940D, "FIBMAP": 1, "PERF_EVENT_IOC_SET_BPF": 0x40042408,
}
for name, request in IOCTLS.items():
    for shown, number in ((name, request), (name + " with an upper half", request | HIGH)):

        @attempt(f"ioctl {shown}", gate=True)
        def _():
            return syscall("ioctl", os.pipe()[0], number, zero)


# Ids and groups.
for name, change in {
    "setuid": lambda: os.setuid(1), "setgid": lambda: os.setgid(1), "setgroups": lambda: os.setgroups([0, 1]),
    "setresuid": lambda: os.setresuid(1, 1, 1), "setreuid": lambda: os.setreuid(0, 1),
    "chown": lambda: os.chown(os.open("/tmp/chown", os.O_CREAT | os.O_RDWR), 1, 1),
}.items():

    @attempt(name)
    def _():
        change()


# Priorities and limits.
def write(path, text):
    with open(path, "w") as file:
        file.write(text)


for name, change, always in (
    ("nice below the start", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5), None),
    ("real-time scheduling", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)), "kernels with RT_GROUP_SCHED hold it"),
    ("oom_score_adj below the start", lambda: write("/proc/self/oom_score_adj", "-500"), RESOURCE),
    ("autogroup nice below the start", lambda: write("/proc/self/autogroup", "-5"), "not every kernel has autogroups"),
):

    @attempt(name, always=always)
    def _():
        change()


@attempt("raise a limit", always=RESOURCE)
def _():
    import resource

    raised = []
    for name in ("NOFILE", "MEMLOCK", "CORE", "MSGQUEUE", "RTPRIO", "NICE", "NPROC"):
        which = getattr(resource, "RLIMIT_" + name, None)
        if which is None:
            continue
        hard = resource.getrlimit(which)[1]
        if hard == resource.RLIM_INFINITY:
            if name != "NPROC":
                raised.append(f"{name} was never limited")
            continue
        try:
            resource.setrlimit(which, (hard + 1, hard + 1))
            raised.append(name)
        except (OSError, ValueError):
            pass
    if raised:
        return str(raised)
    raise Held("none can be raised")


@attempt("pin memory", always=RESOURCE if RESOURCE and CONTROL else None)
def _():
    import mmap

    area = mmap.mmap(-1, 1 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if libc.mlock(ctypes.c_void_p(address), 1 << 20):
        raise OSError(ctypes.get_errno(), "mlock")


# The filter is for one architecture: other ways into the kernel must end the caller or be unknown.
def i386(number, *args):
    """A 32-bit call by int 0x80: code that loads eax, ebx, ecx, edx."""
    code = b"\x53\x89\xf8\x89\xf3\x89\xd1\xcd\x80\x5b\xc3"  # push rbx; eax=edi; ebx=esi; ecx=edx; int 0x80; pop rbx; ret
    page = libc.mmap(None, 4096, 7, 0x22, -1, 0)
    ctypes.memmove(page, code, len(code))
    result = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint)(page)(number, *args)
    if result < 0:
        raise OSError(-result, f"int 0x80 {number}: {os.strerror(-result)}")
    return result


if X86:

    @attempt("int 0x80: getpid of i386", gate=True)
    def _():
        return f"pid {i386(20, 0, 0)}"

    @attempt("int 0x80: unshare of i386", gate=True)
    def _():
        return i386(310, 0x10000000, 0)

    @attempt("x32: getpid", gate=True)
    def _():
        return syscall(0x40000000 | 39)

    @attempt("x32: mount", gate=True)
    def _():
        return syscall(0x40000000 | 165, b"none", b"/mnt", b"tmpfs", 0, None)


@attempt("a filter that answers success for everything", gate=True)
def _():
    program = (ctypes.c_ushort * 4)(6, 0, 0x0000, 0x7FFF)  # BPF_RET | ALLOW
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
    syscall("seccomp", 1, 0, fprog)


@attempt("a negative call number", always="there is none")
def _():
    return syscall(-1 & 0xFFFFFFFF)


@attempt("call numbers far beyond the table", always="there are none", gate=True)
def _():
    for number in (468, 512, 547, 600, 1023, 4096, 0x7FFFFFFF):
        try:
            return syscall(number)
        except OSError as error:
            if error.errno not in GATE:
                raise
    raise Held("ENOSYS")


done()
