"""What a guest that a zygote has forked has of the zygote: its code, which made namespaces, and its memory's layout.

Tried: to be a zygote again, by the module that is still in memory, put back to its beginning; to find the module's
file; to reach the root that the zygote's program came from, by the names that the kernel has for a process's files; to
find a descriptor of the zygote's. The control loads the module from the source tree.
"""

import glob

MODULE = ARGS.get("module", "/usr/lib/psi/_zygote.so")


def u(address, size):
    return int.from_bytes(ctypes.string_at(address, size), "little")


def mapped():
    """Where the zygote's module is in memory."""
    for line in open("/proc/self/maps"):
        if line.rstrip().endswith(("_zygote.so", "zygote_amd64.so")):
            return int(line.split("-")[0], 16)
    raise Held("it is not in memory")


def headers(begin):
    """The program headers, from memory: type, address and size of each part."""
    table = begin + u(begin + 32, 8)
    for at in range(table, table + 56 * u(begin + 56, 2), 56):
        yield u(at, 4), u(at + 4, 4), begin + u(at + 16, 8), u(at + 40, 8)


def entry(begin):
    """The address of PyInit__zygote."""
    tags = {}
    at = next(start for kind, _, start, _ in headers(begin) if kind == 2)
    while u(at, 8):
        tags[u(at, 8)] = u(at + 8, 8)
        at += 16
    strings, symbols = (address if address > begin else begin + address for address in (tags[5], tags[6]))
    for at in range(symbols + 24, symbols + 24 * 64, 24):
        if ctypes.string_at(strings + u(at, 4)) == b"PyInit__zygote":
            return begin + u(at + 8, 8)
    raise Held("its entry is not to be found")


def rearmed():
    """The module, as new as in the zygote."""
    if CONTROL:
        ctypes.PyDLL(MODULE)
    begin = mapped()
    relro = max((start + size + 4095) & ~4095 for kind, _, start, size in headers(begin) if kind == 0x6474E552)
    for kind, flags, start, size in headers(begin):
        for at in range(max(start, relro), start + size, 4) if kind == 1 and flags & 2 else ():
            if u(at, 4) in (1, 2):  # the signs that it has served
                ctypes.c_int.from_address(at).value = 0
    definition = ctypes.PYFUNCTYPE(ctypes.c_void_p)(entry(begin))()
    make = ctypes.pythonapi.PyModule_FromDefAndSpec2
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.py_object, ctypes.c_int]
    spec = type(sys)("spec")
    spec.name = "_zygote"
    return make(definition, spec, 1013)


@attempt("to be a zygote again", gate=True)
def _():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    module = rearmed()
    ours = socket.socket(fileno=os.dup2(ours.detach(), 100))
    os.dup2(theirs.detach(), 3)
    order = struct.pack("=II", 0, 0) + bytes(16 * 8) + b"psi".ljust(64, b"\0")
    null = os.open("/dev/null", os.O_RDWR)
    if os.fork() == 0:
        module.serve(200)
        os._exit(0)
    assert ours.recv(1) == b"r"
    ours.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=iii", null, null, null))])
    answer, rights, _, _ = ours.recvmsg(4, 64)
    number = struct.unpack("=i", answer)[0]
    if number:
        raise OSError(number, "clone3: " + os.strerror(number))
    signal.pidfd_send_signal(struct.unpack("=i", rights[0][2][:4])[0], signal.SIGKILL)
    return "a process in namespaces of its own"


@attempt("the module's file")
def _():
    return len(open(MODULE, "rb").read())


@attempt("a root behind the program's file")
def _():
    for path in ("/proc/self/exe/../..", "/proc/1/exe/..", "/proc/self/root/.zygote", "/proc/self/task/1/root/../..", "/proc/1/cwd/..", "/proc/self/cwd/.."):
        try:
            found = os.listdir(path)
        except OSError:
            continue
        if CONTROL or sorted(found) != sorted(os.listdir("/")):
            return f"{path}: {found}"
    raise Held("the guest's own root, or none")


@attempt("a descriptor of the zygote's", always=None if not CONTROL else "the control has none to leave open")
def _():
    strange = []
    for name in os.listdir("/proc/1/fd"):
        target = os.readlink("/proc/1/fd/" + name)
        if not target.startswith(("/dev/null", "pipe:", "socket:")):
            strange.append(target)
    if strange:
        return strange
    raise Held("pipes, the channel and /dev/null")


@attempt("the zygote's mounts, in the guest's namespace")
def _():
    points = [line.split()[4] for line in open("/proc/self/mountinfo")]
    strange = [point for point in points if not point.startswith(("/dev", "/proc", "/tmp")) and point != "/"]
    if strange or len(points) != len(set(points)):
        return strange or "two mounts on one point"
    raise Held(f"{len(points)} mounts of the guest's own")


done()
