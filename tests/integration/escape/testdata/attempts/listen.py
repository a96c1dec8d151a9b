"""Listening: the policy exposes one port of the guest's loopback to the host, and a directory of the host may be written.

Tried: other ports and addresses, for TCP and UDP; a port of the kernel's choice, and to be reached there; the port of an
allowed endpoint; reaching its own exposed port; a socket of the host's file system at which the guest listens. The Go test
then looks at what was left in the directory: nobody listens at any of it.
"""

EXPOSED, ENDPOINT = int(ARGS["exposed"]), int(ARGS["endpoint"])
DIR = ARGS["dir"]


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@attempt("the exposed port can be listened at", always="nothing to hold")
def _():
    for host in ("127.0.0.1", "0.0.0.0", "::1", "::"):
        with socket.socket(family(host)) as s:
            s.bind((host, EXPOSED))
            s.listen()
    raise Held("it can")


for host in ("127.0.0.1", "0.0.0.0", "127.0.0.2", "::1", "::", "::ffff:127.0.0.1", "::ffff:127.0.0.2"):
    for port in (EXPOSED + 1, ENDPOINT, 0) if host not in ("127.0.0.2", "::ffff:127.0.0.2") else (EXPOSED, 0):

        @attempt(f"bind and listen at {host} port {'the kernel chooses' if not port else 'of the endpoint' if port == ENDPOINT else port - EXPOSED}")
        def _():
            with socket.socket(family(host)) as s:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                try:
                    s.bind((host, port))
                except OSError as error:
                    if CONTROL and error.errno == errno.EADDRINUSE:
                        return "past the gate"
                    raise
                s.listen()
                return f"listening at {s.getsockname()}"


@attempt("UDP at the exposed port")
def _():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", EXPOSED))
        return "bound"


def reached(listener, host):
    listener.listen()
    with socket.socket(family(host)) as s:
        s.settimeout(3)
        s.connect((host, listener.getsockname()[1]))
        return f"reached its own port {listener.getsockname()[1]}"


for host in ("127.0.0.1", "::1"):

    @attempt(f"listen without bind, and be reached there by {host}")
    def _():
        with socket.socket(family(host)) as listener:
            return reached(listener, host)

    @attempt(f"reach the exposed port by {host} from inside")
    def _():
        with socket.socket(family(host)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, EXPOSED))
            return reached(listener, host)


@attempt("a unix socket that listens")
def _():
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(DIR + "/made")
        s.listen()
        return "listening"


# An end of a pair can be bound to a path where the kernel has no programs for that. It stays connected to the other end.
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):

    @attempt(f"listen with one end of a pair of kind {int(kind)}", always="the kernel lets no connected socket listen")
    def _():
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        one.bind(f"{DIR}/pair-{int(kind)}")
        other.close()
        one.listen()
        return "listening"

    @attempt(f"accept with one end of a pair of kind {int(kind)}", always="nobody listens")
    def _():
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        one.bind(f"{DIR}/accept-{int(kind)}")
        return one.accept()


done()
