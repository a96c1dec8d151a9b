"""Memory bombs: one kind (kind=NAME), until it is refused or has much more than the policy allows (mem 64 MiB).

The kernel has to charge all of it to the guest: pages of every sort, and what it allocates for itself because
somebody asks for it (page tables, inodes, pipes, socket buffers, locks of files: CVE-2022-0480). A guest that is
killed for it never gets to the last line; the Go test knows the exit code.
"""

LIMIT = 64 << 20
GOAL = 3 * LIMIT
MIB = 1 << 20
keep = []


def anonymous():
    for _ in range(GOAL // MIB):
        keep.append(b"x" * MIB)


def shared():
    import mmap

    for _ in range(GOAL // MIB):
        area = mmap.mmap(-1, MIB)
        area[:] = b"x" * MIB
        keep.append(area)


def tmpfs():
    with open("/tmp/bomb", "wb", 0) as file:
        for _ in range(GOAL // MIB):
            if file.write(b"x" * MIB) < MIB:
                raise OSError(errno.ENOSPC, "short write")


def memfd():
    fd = os.memfd_create("bomb")
    for _ in range(GOAL // MIB):
        os.write(fd, b"x" * MIB)


def page_tables():
    # One page touched in every 2 MiB costs a page and a page of page tables: count the latter.
    address = libc.mmap(None, 1 << 40, 3, 0x4022, -1, 0)
    libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(1 << 40), 15)  # MADV_NOHUGEPAGE: small pages
    for number in range(GOAL // 4096):
        ctypes.memset(address + number * 2 * MIB, 1, 1)


def areas():
    # Neighbours that differ in protection are not merged: some 200 bytes each.
    for _ in range(16):
        if os.fork() == 0:
            start = libc.mmap(None, 65000 * 4096, 0, 0x4022, -1, 0)
            for number in range(0, 65000, 2):
                libc.mprotect(ctypes.c_void_p(start + number * 4096), 4096, 1)
            os.write(told, b"x" * (65000 * 200 // MIB))
            time.sleep(600)
            os._exit(0)
    wait_for(GOAL // MIB)


def inodes():
    for number in range(GOAL // 1024):
        os.close(os.open(f"/tmp/{number}", os.O_CREAT | os.O_WRONLY))


def pipes():
    import fcntl

    for _ in range(GOAL // MIB):
        read, write = os.pipe()
        fcntl.fcntl(write, 1031, MIB)  # F_SETPIPE_SZ
        os.set_blocking(write, False)
        while True:
            try:
                os.write(write, b"x" * 65536)
            except BlockingIOError:
                break
        keep.append((read, write))


def sockets():
    total = 0
    while total < GOAL:
        one, other = socket.socketpair()
        one.setblocking(False)
        try:
            while True:
                total += one.send(b"x" * 65536)
        except BlockingIOError:
            keep.append((one, other))


def descriptors():
    # Open files of tmpfs, event counters, timers, signal descriptors: 1000 in each of 24 processes.
    import select as select_module

    for number in range(24):
        if os.fork() == 0:
            os.close(0)
            try:
                poll = select_module.epoll()
                for _ in range(900):
                    fd = libc.eventfd(0, 0)
                    if fd < 0:
                        break
                    poll.register(fd, 1)
            finally:
                os.write(told, b"x")
                time.sleep(600)
                os._exit(0)
    wait_for(24)
    raise Held("24 processes with 900 descriptors each: the limits hold their number")


def locks(command=6, size=1):
    # 195 bytes each; the kernel looks through all of a file's for every new one, so few per file. In all half
    # as much again as the limit.
    import fcntl

    ranges = [struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 2 * number, size, 0) for number in range(500)]
    for number in range(1000):
        fd = os.open(f"/tmp/{number}", os.O_CREAT | os.O_RDWR)
        for each in ranges:
            fcntl.fcntl(fd, command, each)


def open_locks():
    locks(37)  # F_OFD_SETLK


def attributes():
    # User attributes of tmpfs (Linux 6.6).
    for number in range(GOAL // 60_000):
        path = f"/tmp/{number}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        os.setxattr(path, "user.bomb", b"x" * 60_000)


def signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
    info = ctypes.create_string_buffer(struct.pack("iiii", signal.SIGRTMIN, 0, -1, 0) + bytes(112))
    for number in range(GOAL // 80):
        syscall(129 if X86 else 138, os.getpid(), int(signal.SIGRTMIN), info)


arrived, told = os.pipe()


def wait_for(count):
    got, end = 0, time.monotonic() + 100
    while got < count and select.select([arrived], [], [], max(0, end - time.monotonic()))[0]:
        got += len(os.read(arrived, 4096))
    if got < count:
        raise Held(f"{got} of {count}")


EVERYWHERE = {"descriptors": "refused everywhere, at some number", "signals": "refused everywhere, at some number"}
if CONTROL:
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    try:
        os.setxattr("/tmp", "user.probe", b"1")
    except OSError:
        EVERYWHERE["attributes"] = "tmpfs has none before Linux 6.6"

for kind in ARGS["kind"].split(","):

    @attempt(kind, patience=120, always=EVERYWHERE.get(kind))
    def _():
        globals()[kind]()
        return f"it has what it wanted; the limit is {LIMIT >> 20} MiB"

    for name in os.listdir("/tmp"):
        os.unlink("/tmp/" + name)


done()
