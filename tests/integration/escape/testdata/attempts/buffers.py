"""Memory of the host by way of an endpoint: many connections to a server that does not read.

What the guest sends waits in socket buffers and pipes of the proxy, which are the host's. The policy's memory limit is
64 MiB; the Go test looks how much the host's TCP memory grows.
"""

ENDPOINT = tuple(ARGS["endpoint"].rsplit(":", 1))
SECONDS = float(ARGS["seconds"])


def fill():
    held, sent, piece = [], 0, bytes(1 << 18)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if len(held) < 1000:
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex((ENDPOINT[0], int(ENDPOINT[1])))
            held.append(s)
        for s in held[-50:] if len(held) < 1000 else held:
            try:
                sent += s.send(piece)
            except OSError:
                pass
    raise Held(f"{sent >> 20} MiB sent over {len(held)} connections")


@attempt("fill every buffer on the way", patience=10 * SECONDS)
def _():
    try:
        fill()
    except Held:
        if CONTROL:
            return "as much as the host gives"
        raise


done()
