"""Processes of the host: seeing, reading, steering or signalling them.

The Go test runs a process of its own on the host and tells its pid (victim=N). Tried: every call that takes a pid,
/proc of it, signals by pid, group and owner, credentials forged over a socket, descriptors pulled out of pid 1's
relatives. The pid must not exist in the guest's pid namespace.
"""

VICTIM = int(ARGS["victim"])


def iovec(size):
    buffer = ctypes.create_string_buffer(size)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
    vector.buffer = buffer
    return vector


CALLS = {
    "kill": lambda: os.kill(VICTIM, 0), "pidfd_open": lambda: os.pidfd_open(VICTIM), "getpgid": lambda: os.getpgid(VICTIM),
    "getsid": lambda: os.getsid(VICTIM), "getpriority": lambda: os.getpriority(os.PRIO_PROCESS, VICTIM),
    "sched_getaffinity": lambda: os.sched_getaffinity(VICTIM), "sched_getscheduler": lambda: os.sched_getscheduler(VICTIM),
    "prlimit": lambda: __import__("resource").prlimit(VICTIM, 7), "rt_tgsigqueueinfo": lambda: libc_kill(VICTIM),
    "F_SETOWN": lambda: __import__("fcntl").fcntl(os.pipe()[0], 8, VICTIM), "ptrace seize": lambda: syscall("ptrace", 0x4206, VICTIM, 0, 0),
    "process_vm_readv": lambda: syscall("process_vm_readv", VICTIM, iovec(8), 1, iovec(8), 1, 0),
    "/proc/PID/mem": lambda: os.open(f"/proc/{VICTIM}/mem", os.O_RDWR), "/proc/PID/environ": lambda: open(f"/proc/{VICTIM}/environ").read(),
    "/proc/PID/root": lambda: os.listdir(f"/proc/{VICTIM}/root/"), "/proc/PID/cwd": lambda: os.listdir(f"/proc/{VICTIM}/cwd/"),
    "/proc/PID/fd": lambda: os.listdir(f"/proc/{VICTIM}/fd"), "/proc/PID/ns": lambda: os.open(f"/proc/{VICTIM}/ns/mnt", os.O_RDONLY),
    "/proc/PID/oom_score_adj": lambda: os.open(f"/proc/{VICTIM}/oom_score_adj", os.O_WRONLY),
}


def libc_kill(pid):
    info = ctypes.create_string_buffer(struct.pack("iiii", 0, 0, -1, 0) + bytes(112))
    return syscall(297 if X86 else 240, pid, pid, 0, info)


for name, reach in CALLS.items():

    @attempt(f"{name} of a process of the host")
    def _():
        try:
            return str(reach())[:80]
        except OSError as error:
            if error.errno == errno.EFAULT:
                return "past every check: the address is ours, not the other's"
            raise


@attempt("processes that /proc shows")
def _():
    family, mine = {os.getpid(), os.getppid(), 1}, []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in family:
            mine.append(name)
    if mine:
        return f"{len(mine)} strangers"
    raise Held("pid 1 and this attempt")


@attempt("the first process's group and session are its own", always="pid 1 of the host too")
def _():
    if (os.getpgid(1), os.getsid(1)) != (1, 1):
        return f"group {os.getpgid(1)}, session {os.getsid(1)}: signals to the group reach the host"
    raise Held("1, 1")


@attempt("credentials of another process over a socket")
def _():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1) if CONTROL else None
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", VICTIM, 0, 0))])


@attempt("the controlling terminal of the caller", always="the tests have none")
def _():
    return os.open("/dev/tty", os.O_RDWR)


done()
