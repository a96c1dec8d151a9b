"""What the guest can see and do: one line of JSON."""
import json
import os
import socket

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
mounts = [line.split(" ")[1] + " " + line.split(" ")[3] for line in open("/proc/self/mounts").read().splitlines()]


def tried(action):
    try:
        action()
        return "done"
    except OSError as e:
        return os.strerror(e.errno)


print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "pid": os.getpid(),
    "capabilities": {k: status[k] for k in status if k.startswith("Cap")},
    "no_new_privs": status["NoNewPrivs"], "seccomp": status["Seccomp"],
    "env": dict(os.environ), "cwd": os.getcwd(), "hostname": socket.gethostname(),
    "root": sorted(os.listdir("/")), "sys": os.listdir("/sys"), "dev": sorted(os.listdir("/dev")),
    "interfaces": open("/proc/net/dev").read().count(":"),
    "uid_map": open("/proc/self/uid_map").read().split(), "gid_map": open("/proc/self/gid_map").read().split(),
    "mounts": mounts,
    "write root": tried(lambda: open("/usr/lib/x", "w")),
    "write dev": tried(lambda: open("/dev/x", "w")),
    "write proc": tried(lambda: open("/proc/sys/kernel/hostname", "w")),
    "write tmp": tried(lambda: open("/tmp/x", "w").write("x")),
    "write shm": tried(lambda: open("/dev/shm/x", "w").write("x")),
    "fill tmp": tried(lambda: open("/tmp/big", "wb").write(bytes(70 << 20))),
    "masked": os.path.getsize("/proc/cmdline") + len(open("/proc/cmdline").read()) + len(open("/proc/kallsyms").read(10)),
    "cgroup": open("/proc/self/cgroup").read(),
}))
