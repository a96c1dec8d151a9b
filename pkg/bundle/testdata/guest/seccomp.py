"""Make system calls and compare their errno. argv[1]: JSON [[name, number, [args], "EPERM"|"ENOSYS"|"any"|"allowed"], ...]."""
import ctypes
import errno
import json
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

bad = 0
cases = json.loads(sys.argv[1])
for name, number, args, want in cases:
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_uint64(a) for a in args])
    got = errno.errorcode.get(ctypes.get_errno(), "0") if result == -1 else "0"
    if got != want and not (want == "allowed" and got not in ("EPERM", "ENOSYS")):
        print(f"{name} {args}: {got}, want {want}")
        bad = 1
print(len(cases), "calls made")
sys.exit(bad)
