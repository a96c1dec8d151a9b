# The entry of the hostile bundles: if the runtime starts one at all, this looks at where it is.
OUTSIDE = ARGS["outside"]


@attempt("the secret of the host")
def _():
    for prefix in ("", "/escape", "/proc/1/root", "/proc/1/cwd", "/proc/1/cwd/../../../../../..", "."):
        for path in (prefix + OUTSIDE + "/secret", prefix + "/secret", prefix + "/shown/secret"):
            try:
                return open(path).read()
            except OSError:
                pass
    return open(ARGS.get("shown", "/no") + "/secret").read()


@attempt("the ids")
def _():
    inside, outside, count = map(int, open("/proc/self/uid_map").read().split())
    if inside or count not in (1, 65536) or not 0x70000000 <= outside < 0x71000000:
        return f"{inside} {outside} {count}"
    raise Held("a range of the guest's own")


@attempt("/proc is a /proc, with its masks")
def _():
    if not os.path.exists("/proc/self/stat"):
        return "there is no proc at /proc"
    try:
        if os.read(os.open("/proc/kcore", os.O_RDONLY), 16):
            return "kcore can be read"
    except OSError:
        pass
    return f"descriptor {os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)}"


@attempt("the working directory")
def _():
    where = os.readlink("/proc/1/cwd")
    if where.startswith("(unreachable)") or not os.path.samefile("/proc/1/cwd", where):
        return where
    raise Held(where)


done()
