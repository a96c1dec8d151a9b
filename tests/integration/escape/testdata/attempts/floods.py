"""Floods that a limit has to stop while the guest lives on: processes, threads, zombies, descriptors, cpu, /tmp.

The policy: pids 24, open_files 64, cpu 0.2, tmp 4 MiB. Each flood goes on until the kernel says no, or until
it has several times what the policy allows: that is the escape.
"""

PIDS, FILES, CPU, TMP = 24, 64, 0.2, 4 << 20
import _thread


def until_refused(make, most):
    """How many times `make` works, up to `most`."""
    for count in range(most):
        try:
            make()
        except (OSError, RuntimeError) as error:
            return count, error
    return most, None


def judge(count, error, limit, what):
    if count > limit:
        return f"{count} {what}, the limit is {limit}"
    if count < limit / 2:
        raise AssertionError(f"{count} {what}, then {error}: too early to be the limit, {limit}")
    raise Held(f"{count} {what}, then {error}")


def room():
    """Waits until the processes of the attempt before have been reaped."""
    end = time.monotonic() + PATIENCE / 2
    while len([name for name in os.listdir("/proc") if name.isdigit()]) > 2:
        if time.monotonic() > end:
            raise AssertionError("processes of another attempt are left")
        os.kill(1, signal.SIGCHLD)  # it looks for orphans whenever one of these comes
        time.sleep(0.05)


def forever():
    pid = os.fork()
    if pid == 0:
        clear()
        time.sleep(600)
        os._exit(0)
    children.append(pid)


def zombie():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    children.append(pid)


children = []


def reap():
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except OSError:
            pass


@attempt("fork bomb")
def _():
    room()
    count, error = until_refused(forever, 4 * PIDS)
    reap()
    return judge(count, error, PIDS, "processes")


@attempt("a fork bomb whose children fork")
def _():
    room()
    read, written = os.pipe()

    def grow(depth):
        for _ in range(3):
            try:
                pid = os.fork()
            except OSError:
                continue
            if pid == 0:
                clear()
                os.write(written, b"x")
                if depth:
                    grow(depth - 1)
                time.sleep(600)
                os._exit(0)

    grow(3)  # 3 + 9 + 27 + 81
    time.sleep(2)
    os.set_blocking(read, False)
    count = len(os.read(read, 4096))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    return judge(count, "no more came", PIDS, "processes")


@attempt("zombie flood")
def _():
    room()
    count, error = until_refused(zombie, 4 * PIDS)
    reap()
    return judge(count, error, PIDS, "zombies")


@attempt("thread bomb")
def _():
    room()
    count, error = until_refused(lambda: _thread.start_new_thread(time.sleep, (600,)), 4 * PIDS)
    return judge(count, error, PIDS, "threads")


@attempt("descriptor bomb")
def _():
    count, error = until_refused(lambda: os.dup(1), 16 * FILES)
    return judge(count, error, FILES, "descriptors")


@attempt("descriptors above the limit by number")
def _():
    import fcntl

    return f"descriptor {fcntl.fcntl(1, fcntl.F_DUPFD, FILES + 1)}"


@attempt("descriptors in flight on sockets")
def _():
    import array

    one, other = socket.socketpair()
    one.setblocking(False)
    fds = array.array("i", [os.open("/dev/null", os.O_RDONLY)] * 16)
    count, error = until_refused(lambda: one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]), 4 * FILES)
    return judge(16 * count, error, 2 * FILES, "descriptors")


def used():
    """Seconds of cpu time of the children that run."""
    total = 0
    for pid in children:
        fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


@attempt("cpu hog")
def _():
    room()
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            clear()
            while True:
                pass
        children.append(pid)
    # The first periods go by with what was saved up.
    time.sleep(0.5)
    start, before = time.monotonic(), used()
    time.sleep(2)
    share = (used() - before) / (time.monotonic() - start)
    reap()
    if share > CPU * 1.4:
        return f"{share:.2f} processors, the limit is {CPU}"
    raise Held(f"{share:.2f} processors")


@attempt("fill /tmp")
def _():
    with open("/tmp/full", "wb", 0) as file:
        count, error = until_refused(lambda: file.write(bytes(1 << 20)) == 1 << 20 or os.fsync(-1), 4 * (TMP >> 20))
    os.unlink("/tmp/full")
    return judge(count, error, TMP >> 20, "MiB in /tmp")


@attempt("fill /dev/shm")
def _():
    with open("/dev/shm/full", "wb", 0) as file:
        count, error = until_refused(lambda: file.write(bytes(1 << 20)) == 1 << 20 or os.fsync(-1), 64)
    os.unlink("/dev/shm/full")
    return judge(count, error, 16, "MiB in /dev/shm")


@attempt("a file without blocks, mapped and filled behind the limit of /tmp")
def _():
    import mmap

    fd = os.open("/tmp/sparse", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 8 * TMP)
    area = mmap.mmap(fd, 8 * TMP)
    pid = os.fork()
    if pid == 0:  # SIGBUS ends it
        for offset in range(0, 8 * TMP, 4096):
            area[offset] = 1
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    blocks = os.fstat(fd).st_blocks * 512
    os.unlink("/tmp/sparse")
    return judge(blocks >> 20, f"signal {status & 127}", TMP >> 20, "MiB in /tmp")


done()
