"""Cold starts: one program in one fresh container, by psi-runtime and by its peers, and the programs themselves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterator, List

from figures import Row, command, first, interleaved, rest
from place import PYTHON, ROOT, ROOTFS, RUNTIME, SHIM

PROGRAM = ["/usr/bin/python3", "-I", "-S", "-c", "print(1)"]


def starts(runs: int, work: Path, with_podman: bool) -> List[Row]:
    """`psi-runtime run` with policy and eBPF, against the peers: same root, same program."""
    with actions(work, with_podman) as found:
        times = interleaved(runs, found)
    note = "what 0.7 × would take: ARCHITECTURE.md, A cold run"
    if "crun" not in found:
        note += "; crun refuses this host's hybrid cgroups: see the second kernel"
    return [Row("cold", "cold start, print(1)", "ms", first(times), rest(times), ratio_at_most=0.9, note=note)]


@contextlib.contextmanager
def actions(work: Path, with_podman: bool) -> Iterator[Dict[str, Callable[[], object]]]:
    bundle, plain = work / "bundle", work / "plain"
    make_bundle(bundle)
    loosened(bundle, plain)
    found: Dict[str, Callable[[], object]] = {"psi-runtime": command(str(RUNTIME), "run", "--bundle", str(bundle), "bench-psi")}
    for name in ("runc", "crun"):
        program = shutil.which(name)
        run = [str(program), "--root", f"{work}/{name}", "run", "--bundle", str(bundle), f"bench-{name}"]
        if program and works(run):
            found[name] = command(*run)
    runsc = shutil.which("runsc")
    run = [str(runsc), "--platform", "ptrace", "--network", "none", "--ignore-cgroups", "--root", f"{work}/runsc", "run", "--bundle", str(plain), "bench-runsc"]
    if runsc and works(run):
        found["runsc (ptrace)"] = command(*run)
    if shutil.which("bwrap"):
        found["bubblewrap"] = command("bwrap", "--unshare-all", "--ro-bind", str(ROOTFS), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--", *PROGRAM)
    podman = Podman(work)
    if with_podman and shutil.which("podman") and works(podman.load) and works(podman.run):
        found["podman run"] = command(*podman.run)
    found["python3 -I -S (floor)"] = command(PYTHON, *PROGRAM[1:])
    try:
        yield found
    finally:
        for name in ("bench-runc", "bench-crun"):
            subprocess.run([name[6:], "--root", f"{work}/{name[6:]}", "delete", "-f", name], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)


class Podman:
    """podman with a storage of its own."""

    def __init__(self, work: Path) -> None:
        own = ["podman", "--root", f"{work}/podman", "--runroot", f"{work}/podman-run", "--tmpdir", f"{work}/libpod",
               "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]  # fmt: skip
        self.load = ["sh", "-c", f"tar -C {ROOTFS} -c . | {' '.join(own)} import -q - localhost/bench"]
        self.run = [*own, "--runtime", "runc", "run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024",
                    "--ulimit", "nproc=1024:1024", "localhost/bench", *PROGRAM]  # fmt: skip


def works(run: List[str]) -> bool:
    return subprocess.run(run, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def make_bundle(path: Path) -> None:
    """What `psi-runtime bundle` makes of the default policy, with the program in place of the agent."""
    entry = path.with_suffix(".py")
    entry.write_text("print(1)\n")
    make = [str(RUNTIME), "bundle", "--policy", "defaults", "--rootfs", str(ROOTFS), "--entry", str(entry), "-o", str(path)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    config = json.loads((path / "config.json").read_text())
    config["process"]["args"] = PROGRAM
    (path / "config.json").write_text(json.dumps(config))


def loosened(bundle: Path, path: Path) -> None:
    """The same bundle for runsc, which has a kernel of its own: without id mappings, seccomp and cgroup."""
    path.mkdir()
    config = json.loads((bundle / "config.json").read_text())
    linux = config["linux"]
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] not in ("user", "cgroup")]
    for key in ("uidMappings", "gidMappings", "seccomp", "resources", "cgroupsPath"):
        linux.pop(key, None)
    config["process"].pop("rlimits", None)
    for each in config["mounts"]:
        if each.get("type") == "bind":
            each["source"] = os.path.join(bundle, each["source"])
    config["root"]["path"] = os.path.join(bundle, config["root"]["path"])
    (path / "config.json").write_text(json.dumps(config))


def second_kernel() -> List[Row]:
    """The same where crun runs, on the emulated machine of `make test-vm`: only the ratio means something."""
    command = ["go", "run", "-tags", "seccomp,netgo,osusergo,urfave_cli_no_docs", "./tests/vm", "tests/integration/peers"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("PEERS ")]
    if done.returncode or not lines:
        raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}: {done.stdout[-2000:]}")
    times: Dict[str, List[float]] = json.loads(lines[0][6:])
    return [Row("cold", "cold start, print(1), second kernel, emulated", "ms", times.pop("psi-runtime"), {"crun": times["crun"], "runc": times["runc"]})]


def programs(runs: int) -> List[Row]:
    """The size and the start-up time of both programs."""
    runc = shutil.which("runc") or "/usr/sbin/runc"
    rows = []
    for program in (RUNTIME, SHIM):
        times = interleaved(runs, {program.name: command(str(program), "--version"), "runc": command(runc, "--version")})
        rows.append(Row("programs", f"{program.name} --version", "ms", first(times), rest(times)))
        sizes = {"runc": [os.path.getsize(runc) / (1 << 20)]}
        rows.append(Row("programs", f"size of {program.name}", "MiB", [program.stat().st_size / (1 << 20)], sizes))
    return rows
