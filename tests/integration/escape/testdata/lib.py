"""What every attempt script is made of; the Go test puts this file in front of each of them.

A script is a list of functions under @attempt. Each runs in a child of its own, so that one that
changes or kills its process spoils none of the others, and comes to exactly one line:

    held: NAME: why              the kernel said no, or what was reached was empty
    ESCAPED: NAME: what          it worked
    broken: NAME: traceback      the script is wrong: neither of the two is known

The last line is `done: N attempts`. A function ends by returning what it got (an escape), by an OSError
(held), or by `raise Held("why")`. With gate=True only the errors of a closed gate count as held: EPERM,
EACCES, ENOSYS. The attempt then passes arguments that the kernel refuses *behind* the gate (EFAULT, EBADF,
EINVAL …), so that even in the control, where nothing confines it, it changes nothing.

Without confinement every attempt must print ESCAPED; that shows that it can fail. One that cannot work
anywhere says why in `always`, and the control does not ask it.
"""

import ctypes
import errno
import os
import platform
import select
import signal
import socket
import stat
import struct
import sys
import time
import traceback

CONTROL = "--control" in sys.argv  # run without confinement
ARGS = dict(arg.split("=", 1) for arg in sys.argv[1:] if "=" in arg)  # what the Go test tells: name=value
PATIENCE = float(ARGS.get("patience", "20"))  # seconds for one attempt

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

GATE = {errno.EPERM, errno.EACCES, errno.ENOSYS}
X86 = platform.machine() == "x86_64"

# The numbers of x86-64 and of the table that arm64 shares with every newer architecture.
NUMBERS = {
    "ptrace": (101, 117), "syslog": (103, 116), "setuid": (105, 146), "setgroups": (116, 159), "capset": (126, 91),
    "ustat": (136, None), "sysfs": (139, None), "personality": (135, 92), "modify_ldt": (154, None), "pivot_root": (155, 41), "prctl": (157, 167),
    "adjtimex": (159, 171), "chroot": (161, 51), "acct": (163, 89), "settimeofday": (164, 170), "mount": (165, 40), "umount2": (166, 39),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "init_module": (175, 105), "delete_module": (176, 106), "quotactl": (179, 60),
    "lookup_dcookie": (212, 18), "io_setup": (206, 0), "timer_create": (222, 107), "clock_settime": (227, 112), "kexec_load": (246, 104), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "ioprio_set": (251, 30), "inotify_init1": (294, 26), "mq_open": (240, 180), "shmget": (29, 194),
    "semget": (64, 190), "msgget": (68, 186), "migrate_pages": (256, 238), "unshare": (272, 97), "vmsplice": (278, 75), "splice": (275, 76), "tee": (276, 77),
    "move_pages": (279, 239), "perf_event_open": (298, 241), "fanotify_init": (300, 262), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "clock_adjtime": (305, 266), "syncfs": (306, 267), "setns": (308, 268), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "kcmp": (312, 272), "finit_module": (313, 273), "sched_setattr": (314, 274), "seccomp": (317, 277),
    "kexec_file_load": (320, 294), "bpf": (321, 280), "userfaultfd": (323, 282), "pkey_alloc": (330, 289), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "clone": (56, 220), "clone3": (435, 435), "openat2": (437, 437),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "mount_setattr": (442, 442), "quotactl_fd": (443, 443),
    "landlock_create_ruleset": (444, 444), "memfd_secret": (447, 447), "process_mrelease": (448, 448), "statmount": (457, 457),
    "listmount": (458, 458), "lsm_list_modules": (461, 461), "open_tree_attr": (467, 467), "pidfd_open": (434, 434), "ioctl": (16, 29),
    "mknodat": (259, 33), "execveat": (322, 281), "setfsuid": (122, 151), "fchmodat2": (452, 452), "memfd_create": (319, 279),
    "kill": (62, 129), "socket": (41, 198), "connect": (42, 203), "sendto": (44, 206), "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199),
    "setsockopt": (54, 208), "fcntl": (72, 25), "chmod": (90, None), "fchmod": (91, 52), "getpid": (39, 172),
}


class Held(Exception):
    """What was tried did not work; the text says how that was seen."""


def syscall(name, *args):
    """A system call by name; OSError as from os, ENOSYS for one that the architecture does not have."""
    number = NUMBERS[name][0 if X86 else 1] if name in NUMBERS else name
    if number is None:
        raise OSError(errno.ENOSYS, f"{name}: not on this architecture")
    words = [arg if isinstance(arg, (ctypes.c_void_p, ctypes.Array, bytes)) or arg is None or hasattr(arg, "_obj") else ctypes.c_long(arg) for arg in args]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1 and ctypes.get_errno():
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def pointer(value):
    """A pointer to a ctypes value, for syscall."""
    return ctypes.c_void_p(ctypes.addressof(value))


_count = 0


def say(line):
    """One line, in one write: it is not torn when a child writes too."""
    os.write(1, (line.replace("\n", " | ")[:2000] + "\n").encode("utf-8", "backslashreplace"))


def attempt(name, gate=False, always=None, patience=None):
    """Run the function now, in a child, and print its line."""

    def run(function):
        global _count
        _count += 1
        verdict = _in_child(function, gate, patience or PATIENCE) if not (CONTROL and always) else "held: not tried"
        mark = f" [holds everywhere: {always}]" if always else ""
        kind, _, text = verdict.partition(": ")
        say(f"{kind}: {name}: {text}{mark}")
        return function

    return run


def _judge(function, gate):
    try:
        got = function()
    except Held as held:
        return f"held: {held}"
    except OSError as error:
        code = errno.errorcode.get(error.errno, str(error.errno))
        if gate and error.errno not in GATE:
            return f"ESCAPED: past the gate: {code} {error.strerror}"
        return f"held: {code} {error}"
    except MemoryError:
        return "held: MemoryError"
    except BaseException:
        return "broken: " + traceback.format_exc()
    return f"ESCAPED: {got if got is not None else 'it worked'}"


def _in_child(function, gate, patience):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.setpgid(0, 0)  # kill(0) reaches this attempt and its children only
            os.write(write, _judge(function, gate)[:3000].encode("utf-8", "backslashreplace") + b"\0")
        finally:
            os._exit(0)
    os.close(write)
    said, end = b"", time.monotonic() + patience
    while not said.endswith(b"\0") and select.select([read], [], [], max(0.0, end - time.monotonic()))[0]:
        piece = os.read(read, 4096)
        if not piece:
            break
        said += piece
    os.close(read)
    late = not said and time.monotonic() >= end
    status = _end(pid, said or late)
    if said:
        return said.rstrip(b"\0").decode("utf-8", "replace")
    if late:
        return f"broken: no verdict within {patience:g} s"
    if status is None or not os.WIFSIGNALED(status):
        return f"broken: ended without a verdict, status {status}"
    number = os.WTERMSIG(status)
    name = signal.Signals(number).name
    return f"held: killed by {name}" if number in (signal.SIGSYS, signal.SIGKILL) else f"broken: killed by {name}"


def _end(pid, kill):
    """Waits for the attempt, and ends it and what it left running; its status, None if somebody else has it."""
    status = None
    for _ in range(2):
        try:
            if kill:
                os.killpg(pid, signal.SIGKILL)
        except OSError:
            pass  # nobody is left
        try:
            status = os.waitpid(pid, 0)[1]
        except ChildProcessError:
            pass
        kill = True
    return status


def done():
    """The last line: that the script came to its end."""
    say(f"done: {_count} attempts")


def clear():
    """What a child does with the signals it inherited."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
