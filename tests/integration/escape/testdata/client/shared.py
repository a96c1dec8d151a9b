"""A client of a shared supervisor that is another user, and wants more than that user may have.

The supervisor runs as root; the client is the user nobody. Tried: files and directories that nobody may not open, shown by
a policy or as a root file system; links to them; policies by path; the guests of another user; the control protocol's own
weak places (no hello, huge and half frames, deep nesting, descriptors that nobody asked for, many connections). With
--control the client is root, who may do most of this.
"""

import array
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

CONTROL = "--control" in sys.argv
SLOW = float(os.environ.get("PSI_ESCAPE_PATIENCE", "1"))
USER = 0 if CONTROL else 65534
ATTACKS = []


class Escaped(Exception):
    """The attack worked."""


class Moot(Exception):
    """Without confinement there is nothing to try."""


def attack(function):
    ATTACKS.append(function)
    return function


class Client:
    """A raw connection."""

    def __init__(self, hello=True):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20 * SLOW)
        self.socket.connect(SOCKET)
        self.id = 0
        self.channels = []  # a guest ends when its channel is closed
        if hello:
            self.ask(op="hello", version=2)

    def ask(self, **fields):
        self.id += 1
        data = json.dumps({"id": self.id, **fields}).encode()
        self.socket.sendall(struct.pack("!I", len(data)) + data)
        while True:
            reply = self.read()
            if reply.get("id") == self.id:
                return reply

    def read(self):
        size = struct.unpack("!I", self.exactly(4))[0]
        return json.loads(self.exactly(size))

    def exactly(self, count):
        data = b""
        while len(data) < count:
            piece, rights, _, _ = self.socket.recvmsg(count - len(data), 1024)
            for _, _, content in rights:
                self.channels.append(socket.socket(fileno=array.array("i", content)[0]))
            if not piece:
                raise EOFError("the supervisor closed the connection")
            data += piece
        return data


def refused(reply, what):
    if "error" not in reply:
        raise Escaped(f"{what}: {reply}"[:300])


def grant(rule):
    client = Client()
    refused(client.ask(op="spawn", name="g", policy={"fs": [rule]}), str(rule))


@attack
def a_file_of_roots():
    grant(BASE + "/root-0600")


@attack
def a_directory_of_roots():
    grant(BASE + "/root-0700")


@attack
def a_file_below_a_directory_of_roots():
    grant(BASE + "/root-0700/readable")


@attack
def writing_to_what_may_only_be_read():
    grant({"write": BASE + "/root-0644"})


@attack
def writing_to_a_directory_that_may_only_be_read():
    grant({"write": BASE + "/root-0755"})


@attack
def a_link_of_ones_own_to_a_file_of_roots():
    grant(BASE + "/own/link")
    if CONTROL:
        raise Moot  # links in the literal part are refused to root as well


@attack
def a_link_of_ones_own_in_the_middle():
    grant(BASE + "/own/directory/readable")
    if CONTROL:
        raise Moot  # links in the literal part are refused to root as well


@attack
def a_glob_that_leads_to_them():
    client = Client()
    reply = client.ask(op="spawn", name="g", policy={"fs": [BASE + "/own/*"]})
    if "error" in reply:
        return
    code = f"import glob\npost([open(p).read() for p in glob.glob({BASE!r} + '/own/*')])\npost('end')".encode()
    client.channels[0].sendall(struct.pack("!IBBHI", len(code), 1, 0, 0, 1) + code)
    client.channels[0].settimeout(10 * SLOW)
    got = b""
    while b"Send" not in got:
        piece = client.channels[0].recv(65536)
        if not piece:
            raise AssertionError(f"the guest has ended: {got!r}")
        got += piece
    client.socket.close()
    if b"secret" in got:
        raise Escaped(got.decode("ascii", "replace")[:200])
    if CONTROL:
        raise Moot


@attack
def a_root_file_system_of_ones_own():
    client = Client()
    refused(client.ask(op="spawn", name="g", rootfs=os.environ["PSI_ROOTFS"] if CONTROL else BASE + "/own"), "a root")


@attack
def a_policy_by_path():
    client = Client()
    for name in ("../../../.." + BASE + "/policy", BASE + "/policy.yml", "./policy", "..", "defaults/../../x", "defaults\0"):
        refused(client.ask(op="spawn", name="g", policy_name=name), name)
    if CONTROL:
        raise Moot


@attack
def guests_of_another_user():
    mine = Client()
    listed = [each["guest"] for each in mine.ask(op="list")["ok"]["guests"]]
    if ROOTS in listed:
        raise Escaped(f"they are listed: {listed}")
    for op, more in (("stats", {}), ("kill", {}), ("close", {"timeout": 0}), ("reload", {"policy": {}}), ("report", {"error": "x"})):
        refused(mine.ask(op=op, guest=ROOTS, **more), op)
    if CONTROL:
        raise AssertionError(f"root does not find {ROOTS} among {listed}")


@attack
def events_of_another_user():
    client = Client(hello=False)
    client.ask(op="hello", version=2, watch=True)
    client.socket.settimeout(1.5 * SLOW)
    os.write(POKE, b"x")  # root kills a guest of its own
    try:
        while True:
            told = client.read()
            if told.get("name", told.get("exited", {}).get("name")) == "goes":
                raise Escaped(str(told))
    except socket.timeout:
        pass


@attack
def no_hello():
    refused(Client(hello=False).ask(op="spawn", name="g"), "spawn")
    if CONTROL:
        raise Moot


@attack
def frames_that_are_none():
    for data in (b"\xff\xff\xff\xff", struct.pack("!I", (1 << 20) + 1) + b"x" * 100, struct.pack("!I", 4) + b"null", struct.pack("!I", 5) + b"{}{}{",
                 struct.pack("!I", 200001) + b"[" * 200001, struct.pack("!I", 600006) + b'{"a":' * 100001 + b"}", bytes(4), os.urandom(4096)):
        client = Client(hello=False)
        try:
            client.socket.sendall(data)
            client.socket.shutdown(socket.SHUT_WR)
            while client.socket.recv(65536):
                pass
        except OSError:
            pass
    if CONTROL:
        raise Moot


@attack
def descriptors_that_nobody_asked_for():
    before = supervisor_files()
    client = Client()
    for _ in range(30):
        client.id += 1
        data = json.dumps({"id": client.id, "op": "list"}).encode()
        client.socket.sendmsg([struct.pack("!I", len(data)) + data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 200))])
        client.read()
    if supervisor_files() > before + 20:
        raise Escaped(f"the supervisor has {supervisor_files() - before} more descriptors")
    if CONTROL:
        raise Moot


@attack
def many_connections_with_half_a_frame():
    before, held = supervisor_size(), []
    try:
        for _ in range(600):
            client = Client(hello=False)
            client.socket.setblocking(False)
            try:
                client.socket.send(struct.pack("!I", 1 << 20) + b"x" * 200000)
            except BlockingIOError:
                pass
            held.append(client)
    except OSError:
        pass
    time.sleep(1)
    grown = supervisor_size() - before
    os.write(POKE, b"p")  # root asks whether it is still served
    if os.read(ANSWER, 1) != b"y":
        raise Escaped(f"with {len(held)} connections of nobody root is not served any more")
    if grown > 200:
        raise Escaped(f"the supervisor grew by {grown:.0f} MiB for {len(held)} connections without a hello")
    if CONTROL:
        raise Moot


def supervisor_pids():
    return [SUPERVISOR] + [int(pid) for pid in open(f"/proc/{SUPERVISOR}/task/{SUPERVISOR}/children").read().split()]


def supervisor_size():
    return sum(int(open(f"/proc/{pid}/statm").read().split()[1]) for pid in supervisor_pids()) * 4096 / (1 << 20)


def supervisor_files():
    os.write(POKE, b"f")
    return struct.unpack("i", os.read(ANSWER, 4))[0]


def attacker():
    """The child: it becomes nobody and attacks."""
    if USER:
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
    for each in ATTACKS:
        try:
            each()
            kind, text = "held", "refused"
        except Escaped as escaped:
            kind, text = "ESCAPED", str(escaped)
        except Moot:
            kind, text = "held", "[holds everywhere: nothing that root may]"
        except BaseException:
            kind, text = "broken", traceback.format_exc()
        print(f"{kind}: {each.__name__.replace('_', ' ')}: {text}".replace("\n", " | ")[:1500], flush=True)
    print(f"done: {len(ATTACKS)} attempts", flush=True)


def landscape(base):
    os.chmod(base, 0o755)
    for name, mode in (("root-0600", 0o600), ("root-0644", 0o644), ("root-0700/readable", 0o644), ("root-0755/file", 0o644)):
        path = f"{base}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write("the secret of root")
        os.chmod(path, mode)
    os.chmod(base + "/root-0700", 0o700)
    os.makedirs(base + "/own")
    os.chown(base + "/own", USER, USER)
    os.symlink(base + "/root-0600", base + "/own/link")
    os.symlink(base + "/root-0700", base + "/own/directory")


def serve(poke, answer, client, guests):
    """Root's part while nobody attacks."""
    while True:
        what = os.read(poke, 1)
        if not what:
            return
        if what == b"x":
            client.ask(op="report", guest=guests.pop(), error="for the watchers")
        elif what == b"p":
            try:
                ok = "ok" in Client().ask(op="list")
            except (OSError, EOFError):
                ok = False
            os.write(answer, b"y" if ok else b"n")
        else:
            os.write(answer, struct.pack("i", sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in supervisor_pids())))


def main():
    global BASE, SOCKET, ROOTS, SUPERVISOR, POKE, ANSWER
    with tempfile.TemporaryDirectory(prefix="psi-escape-") as BASE:
        landscape(BASE)
        SOCKET = BASE + "/psi.sock"
        shim = subprocess.Popen([os.environ["PSI_SHIM"], "serve", "--socket", SOCKET, "--group", "nogroup", "--rootfs", os.environ["PSI_ROOTFS"],
                                 "--log-level", "error"])
        SUPERVISOR = shim.pid
        try:
            end = time.monotonic() + 20 * SLOW
            while not os.path.exists(SOCKET) and time.monotonic() < end:
                time.sleep(0.05)
            root = Client()
            guests = [root.ask(op="spawn", name=name)["ok"]["guest"] for name in ("stays", "goes")]
            ROOTS = guests[0]
            poke, POKE = os.pipe()
            ANSWER, answer = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(poke)
                try:
                    attacker()
                finally:
                    os._exit(0)
            os.close(POKE)
            serve(poke, answer, root, guests)
            os.waitpid(pid, 0)
        finally:
            shim.terminate()
            shim.wait()


main()
