"""Runs on the host: has guests answer questions; argv is a list of jobs as JSON, and the answer one of replies."""
import ast
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse

ADDRESSED = ("tcp", "fast-open", "udp", "bind", "bind-listen", "listen")  # the path of such a row is an address
OF_MODULES = ("import", "import-around", "import-anew", "load")  # the path of such a row is a module, and to is its file


def real(base, name):
    if not name:
        return b""
    raw = urllib.parse.unquote_to_bytes(name)
    return raw if raw.startswith(b"/") else base + b"/" + raw


def names(base, case):
    """What the guest is told of a row, and the files that it is about, as both have them."""
    if case["do"] in ADDRESSED:
        return [case["path"].encode()], []
    if case["do"] in OF_MODULES:
        return [case["path"], case["to"]], [case["to"].encode()] if case["to"] else []
    path, second = real(base, case["path"]), case.get("to", "")
    if case["do"] in ("dirfd-read", "dirfd-create", "proc-cwd-read"):
        to = urllib.parse.unquote_to_bytes(second)
        return [path, to], [path + b"/" + to]
    paths = [path, real(base, second)] if second else [path]
    return paths, [path for path in paths if path]


class Spawned:
    """A guest of a supervisor."""

    def __init__(self, job, source):
        import pyisolate as psi

        self.events = psi.events
        self.sandbox = psi.spawn("decisions", policy=job["policy"])
        self.sandbox.exec(source, timeout=60)

    def answer(self, question):
        self.sandbox.exec(f"post({question})")
        return self.sandbox.recv(timeout=120)

    def end(self):
        """What its state says holds its rules, and what the kernel says that it refused, once it has ended."""
        enforced = self.sandbox.enforced
        self.sandbox.close()
        return enforced, *asyncio.run(self.refused())

    async def refused(self):
        told, untold = [], 0
        while True:
            try:
                _, who, event = await asyncio.wait_for(self.events.__anext__(), 1)
            except asyncio.TimeoutError:
                return told, untold
            if who is self.sandbox and event == "DENIED":
                untold += event.details["suppressed"]
                told.append(dict(event.details))


class Run:
    """A bundle, made from the same policy and run by psi-runtime: its script answers a line with a line."""

    LOOP = "\nwhile True:\n    try:\n        line = input()\n    except EOFError:\n        break\n    print(repr(eval(line)), flush=True)\n"

    def __init__(self, job, source):
        self.runtime, self.id = job["runtime"], "psi-decisions-%d" % os.getpid()
        self.directory = tempfile.TemporaryDirectory(prefix="psi-decisions-")
        here = self.directory.name
        os.chmod(here, 0o755)
        script, bundle, self.log = here + "/ask.py", here + "/bundle", here + "/log"
        with open(script, "w", encoding="utf-8") as file:
            file.write(source + self.LOOP)
        subprocess.run([self.runtime, "bundle", "--policy", job["policy"], "--rootfs", job["rootfs"], "--entry", script, "-o", bundle], check=True, stdout=sys.stderr)
        log = ["--debug", "--log", self.log, "--log-format", "json"]  # there each denial is
        self.process = subprocess.Popen(
            [self.runtime, *log, "run", "--bundle", bundle, self.id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def answer(self, question):
        try:
            print(question, file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            with open(self.log, encoding="utf-8") as file:
                raise EOFError(f"the bundle has ended with {self.process.returncode} when it was asked {question}: {file.read()[-2000:]}")
        return ast.literal_eval(line)

    def end(self):
        state = json.loads(subprocess.run([self.runtime, "state", self.id], check=True, stdout=subprocess.PIPE).stdout)
        self.process.stdin.close()
        if self.process.wait():
            raise ChildProcessError(f"the bundle has ended with {self.process.returncode}")
        told = []
        with open(self.log, encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                if record["msg"] == "DENIED":
                    told.append({key: str(record.get(key, "")) for key in ("command", "operation", "errno")} | {"suppressed": record["suppressed"]})
        self.directory.cleanup()
        return state["psi"]["enforced"], told, sum(denial["suppressed"] for denial in told)


def answers(job):
    """What a guest says to the questions of a job, and what is seen of who decided."""
    with open(os.path.join(os.path.dirname(__file__), job["ask"]), encoding="utf-8") as file:
        guest = (Run if job["runtime"] else Spawned)(job, file.read())
    base, seen = job["base"].encode(), []
    for number, case in enumerate(job["cases"]):
        if case["do"] == "appears":
            with open(real(base, case["path"]), "w", encoding="utf-8") as made:
                made.write("x")
        told, lying = names(base, case)
        there = [os.path.exists(job["root"].encode() + path) for path in lying]
        seen.append({**guest.answer(f"ask({number}, {case['do']!r}, {told!r}, {lying!r})"), "there": there})
    enforced, told, untold = guest.end()
    return {"seen": seen, "enforced": enforced, "told": told, "untold": untold}


print(json.dumps([answers(job) for job in json.loads(sys.argv[1])]))
