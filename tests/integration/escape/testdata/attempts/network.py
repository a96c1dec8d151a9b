"""The network: one endpoint is allowed, everything else is out of reach.

The Go test listens on the host at several addresses and says a word to whoever connects (endpoint=…, forbidden=…,…),
on a unix socket by path and one in the abstract namespace, and on UDP. It also looks whether anybody came. Tried: other
ports and addresses of the same host (0.0.0.0, 127.1.2.3, ::1, IPv4 in IPv6, the machine's own, a cloud's metadata);
every other family and type of socket; ways around connect (TCP fast open, disconnect and connect again, unix pairs,
source routes); names that the name server must not know, and questions that are none; taking the endpoint's port over;
more connections than the proxy serves.
"""

WORD = b"hello from the host"
FORBIDDEN = [tuple(target.rsplit(":", 1)) for target in ARGS["forbidden"].split(",")]
ENDPOINT = tuple(ARGS["endpoint"].rsplit(":", 1))
UNIX, ABSTRACT, UDP = ARGS["unix"], "\0" + ARGS["abstract"], int(ARGS["udp"])


def address(host, port):
    return (socket.AF_INET6, (host, int(port), 0, 0)) if ":" in host else (socket.AF_INET, (host, int(port)))


def word(s):
    s.settimeout(5)
    got = s.recv(64)
    if got:
        return got.decode()
    raise Held("connected, and was cut off without a word")


def reach(host, port):
    family, where = address(host, port)
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(5)
        s.connect(where)
        return word(s)


@attempt("the endpoint itself answers", always="nothing to hold")
def _():
    if reach(*ENDPOINT) != WORD.decode():
        raise AssertionError("the allowed endpoint does not work, so this test shows nothing")
    raise Held("it does")


NOWHERE = "nobody answers there on this machine"
for host, port in FORBIDDEN:

    @attempt(f"connect to {host} port {port}")
    def _():
        return reach(host, port)


for host, port in (("169.254.169.254", 80), ("168.63.129.16", 80), ("fd00:ec2::254", 80), ("224.0.0.1", 80), ("255.255.255.255", 80), ("192.0.2.1", 443), ("2001:db8::1", 443)):

    @attempt(f"connect to {host} port {port}", always=NOWHERE)
    def _():
        return reach(host, port)


@attempt("ports of the host in /proc/net/tcp")
def _():
    listening = {line.split()[1].rpartition(":")[2] for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]}
    for host, port in FORBIDDEN:
        if f"{int(port):04X}" in listening and port != ENDPOINT[1]:
            return f"port {port}"
    raise Held("none")


def ask(question):
    """What the name server of the guest says to bytes: its reply, or nothing."""
    with socket.socket() as s:
        s.settimeout(5)
        s.connect(("127.65.128.0", 53))
        s.sendall(struct.pack(">H", len(question)) + question)
        return s.recv(4096)


def question(name, kind=1, flags=0x0100, count=1):
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".")) if name else b""
    return struct.pack(">6H", 7, flags, count, 0, 0, 0) + labels + struct.pack(">BHH", 0, kind, 1)


# The policy has *.example.org:443, and denies secret.example.org.
for name in ("localhost", "metadata.google.internal", "secret.example.org", "SECRET.example.org", "example.org", "xexample.org", "example.com", "1.0.0.127.in-addr.arpa"):

    @attempt(f"an address for {name}", always=NOWHERE)
    def _():
        reply = ask(question(name))
        if len(reply) > 8 and struct.unpack(">H", reply[8:10])[0]:
            return repr(reply)
        raise Held("no such name")


MALFORMED = {
    "nothing": b"", "half a header": b"\0" * 5, "a pointer to itself": struct.pack(">6H", 7, 256, 1, 0, 0, 0) + b"\xc0\x0c\0\x01\0\x01", "a thousand questions": question("a.example.org", count=1000),
    "an answer": question("a.example.org", flags=0x8180), "a label without an end": struct.pack(">6H", 7, 256, 1, 0, 0, 0) + b"\x3f" + b"a" * 20, "a transfer of the zone": question("example.org", kind=252),
    "a dot in a label": struct.pack(">6H", 7, 256, 1, 0, 0, 0) + b"\x09a.example\x03org\0\0\x01\0\x01", "512 bytes and more": b"\xff" * 5000,
}
for name, bad in MALFORMED.items():

    @attempt(f"a malformed question: {name}", always=NOWHERE)
    def _():
        reply = ask(bad)
        if len(reply) > 8 and struct.unpack(">H", reply[8:10])[0]:
            return repr(reply)
        raise Held("no answer")


@attempt("the name server still answers", always=NOWHERE)
def _():
    reply = ask(question("a.example.org"))
    if socket.inet_aton("127.65.128.0")[:3] not in reply:
        raise AssertionError(f"the name server says {reply!r}, so what is above shows nothing")
    raise Held("it does")


names = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]


@attempt("interfaces other than the loopback", always="the machine has no other" if CONTROL and names == ["lo"] else None)
def _():
    if names != ["lo"]:
        return str(names)
    raise Held("lo")


@attempt("connect, disconnect, connect elsewhere")
def _():
    with socket.socket() as s:
        s.settimeout(5)
        s.connect((ENDPOINT[0], int(ENDPOINT[1])))
        syscall("connect", s.fileno(), ctypes.create_string_buffer(16), 16)  # AF_UNSPEC
        s.connect((FORBIDDEN[0][0], int(FORBIDDEN[0][1])))
        return word(s)


@attempt("TCP fast open")
def _():
    with socket.socket() as s:
        s.settimeout(5)
        try:
            s.sendto(b"x", socket.MSG_FASTOPEN, (FORBIDDEN[0][0], int(FORBIDDEN[0][1])))
        except BlockingIOError:
            pass  # it has begun to connect
        return word(s)


@attempt("an IPv4 address to an IPv6 socket")
def _():
    with socket.socket(socket.AF_INET6) as s:
        s.settimeout(5)
        try:
            name = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(int(FORBIDDEN[0][1])), socket.inet_aton(FORBIDDEN[0][0]))
            syscall("connect", s.fileno(), ctypes.create_string_buffer(name + bytes(16)), 28)
        except OSError:
            s.connect(("::ffff:" + FORBIDDEN[0][0], int(FORBIDDEN[0][1]), 0, 0))
        return word(s)


FAMILIES = {
    "unix": (1, 1, 0), "unix datagram": (1, 2, 0), "netlink": (16, 3, 0), "netlink audit": (16, 3, 9), "packet": (17, 3, 0x300), "packet datagram": (17, 2, 0x300),
    "vsock": (40, 1, 0), "kernel crypto": (38, 5, 0), "bluetooth": (31, 3, 1), "key": (15, 3, 2), "rds": (21, 5, 0), "tipc": (30, 1, 0), "can": (29, 3, 1),
    "smc": (43, 1, 0), "xdp": (44, 3, 0), "qrtr": (42, 2, 0), "kcm": (41, 5, 0), "ax25": (3, 2, 0), "appletalk": (5, 2, 0), "phonet": (35, 2, 0),
    "nfc": (39, 5, 0), "raw": (2, 3, 255), "raw v6": (10, 3, 255), "ping": (2, 2, 1), "udp": (2, 2, 0), "udp v6": (10, 2, 0), "udplite": (2, 2, 136),
    "sctp": (2, 1, 132), "mptcp": (2, 1, 262), "dccp": (2, 6, 33), "packet of the old kind": (2, 10, 0x300), "seqpacket v4": (2, 5, 0),
    "smc by protocol": (2, 1, 256),
}
for name, (family, kind, protocol) in FAMILIES.items():
    for shown, number in ((name, family), (name + " with an upper half", family | 1 << 32)):

        @attempt(f"socket: {shown}", gate=True, always="net.ipv4.ping_group_range decides" if name == "ping" else None)
        def _():
            return f"descriptor {syscall('socket', number, kind | socket.SOCK_CLOEXEC, protocol)}"


for name, where in (("path", UNIX), ("abstract name", ABSTRACT)):

    @attempt(f"connect a unix socket to the {name} of the host's")
    def _():
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(5)
            s.connect(where)
            return word(s)

    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):

        @attempt(f"one end of a pair of type {int(kind)}, to the {name} of a socket", always="a connected socket stays so")
        def _():
            one, other = socket.socketpair(socket.AF_UNIX, kind)
            other.close()
            tried = []
            for use in (lambda: one.connect(where), lambda: one.sendto(b"x", where), lambda: one.sendmsg([b"x"], [], 0, where)):
                try:
                    use()
                    return word(one)
                except OSError as error:
                    tried.append(error)
            raise tried[0]


@attempt("UDP to the host")
def _():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"escaped", ("127.0.0.1", UDP))
        s.settimeout(3)
        return s.recv(16)


OPTIONS = {
    "IP_OPTIONS (source route)": (0, 4), "IP_TRANSPARENT": (0, 19), "IP_FREEBIND": (0, 15), "IP_HDRINCL": (0, 3), "IPT_SO_SET_REPLACE (CVE-2021-22555)": (0, 64),
    "IPV6_RTHDR": (41, 57), "IPV6_ADDRFORM": (41, 1), "IPV6_HDRINCL": (41, 36), "IP6T_SO_SET_REPLACE": (41, 64), "SO_BINDTODEVICE": (1, 25), "SO_MARK": (1, 36), "SO_ATTACH_FILTER": (1, 26),
    "SO_ATTACH_BPF": (1, 50), "SO_ATTACH_REUSEPORT_EBPF": (1, 52), "SO_ZEROCOPY": (1, 60), "TCP_REPAIR": (6, 19), "TCP_ULP": (6, 31), "TCP_MD5SIG": (6, 14), "TCP_ZEROCOPY_RECEIVE": (6, 35),
    "MCAST_JOIN_GROUP": (0, 42), "IP_ADD_MEMBERSHIP (CVE-2021-3609)": (0, 35), "SO_SNDBUFFORCE": (1, 32), "SO_BUSY_POLL": (1, 46), "SO_TXTIME": (1, 61),
}
for name, (level, option) in OPTIONS.items():
    for shown, high in ((name, 0), (name + " with upper halves", 1 << 32)):

        @attempt(f"setsockopt {shown}", gate=True)
        def _():
            with socket.socket(socket.AF_INET6 if level == 41 else socket.AF_INET) as s:
                syscall("setsockopt", s.fileno(), level | high, option | high, None, 0)


for host in ("127.0.0.1", "0.0.0.0", "127.9.9.9", "::", "::1"):
    for port in (int(ENDPOINT[1]), 0):

        @attempt(f"bind {host} port {'of the endpoint' if port else 'of the kernel'}")
        def _():
            family, where = address(host, port)
            with socket.socket(family) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                try:
                    s.bind(where)
                except OSError as error:
                    # With the host's own network the endpoint is the test's listener: a port that is taken was looked at.
                    if CONTROL and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                        return "past the gate"
                    raise
                return "bound"


@attempt("listen without bind: the kernel chooses a port", gate=True)
def _():
    with socket.socket() as s:
        syscall("listen", s.fileno(), 1)
        return f"listening at {s.getsockname()}"


@attempt("more connections than the proxy serves", always="nothing to hold", patience=60)
def _():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    family, where = address(*ENDPOINT)
    held, refused = [], 0
    for _ in range(int(ARGS.get("flood", "1500"))):
        try:
            s = socket.socket(family)
            s.setblocking(False)
            s.connect_ex(where)
            held.append(s)
        except OSError:
            refused += 1
    time.sleep(1)
    for s in held:
        s.close()
    for _ in range(50):  # the proxy needs a moment to see the ends
        try:
            if reach(*ENDPOINT) == WORD.decode():
                raise Held(f"{len(held)} at once, {refused} refused here, and it still answers")
        except (OSError, Held) as why:
            if "still answers" in str(why):
                raise
        time.sleep(0.2)
    raise AssertionError("the endpoint does not answer any more")


done()
