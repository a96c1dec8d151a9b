"""The engines' own commands with psi-runtime and with runc: podman, Docker and containerd, each started
here with a storage of its own, each running the same image. The storages are overlays: one that copies
the image for each container takes seconds for that, the same with every runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Iterator, List, Tuple

IMAGE = "localhost/psi-python:3.11"
SCRIPT = ["/usr/bin/python3", "-I", "-S", "-c", "print(1)"]


def quiet(*args: str) -> bool:
    """Run a command without a word; tell whether it succeeded."""
    return subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


@contextlib.contextmanager
def daemon(ready: List[str], *args: str) -> Iterator[None]:
    """A daemon that runs while the block does, and is ended by its pid."""
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not quiet(*ready):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"bench: {args[0]} did not start")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@contextlib.contextmanager
def commands(work: Path, runtime: Path, rootfs: Path) -> Iterator[List[Tuple[str, List[str], List[str]]]]:
    """Yield (name, command with psi-runtime, command with runc) of each engine."""
    runc = shutil.which("runc") or "/usr/sbin/runc"
    image = work / "python.tar"
    subprocess.run([str(runtime), "rootfs", "build", "--python", "/usr/bin/python3.11", "--format", "oci", "-o", str(image)], check=True, stdout=subprocess.DEVNULL)

    podman = ["podman", "--root", f"{work}/engine-podman", "--runroot", f"{work}/engine-podman-run", "--tmpdir", f"{work}/engine-libpod",
              "--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
    subprocess.run([*podman, "load", "-q", "-i", str(image)], check=True, stdout=subprocess.DEVNULL)
    limits = ["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]

    socket = f"unix://{work}/docker.sock"
    docker = ["/usr/bin/docker", "-H", socket]
    dockerd = ["dockerd", "--data-root", f"{work}/docker", "--exec-root", f"{work}/docker-run", "-H", socket, "--pidfile", f"{work}/docker.pid",
               "--iptables=false", "--bridge=none", "--storage-driver", "overlay2", "--add-runtime", f"psi={runtime}"]

    ctr = ["ctr", "--address", f"{work}/containerd.sock"]
    containerd = ["containerd", "--root", f"{work}/containerd", "--state", f"{work}/containerd-run", "--address", f"{work}/containerd.sock"]

    with daemon([*docker, "version"], *dockerd), daemon([*ctr, "version"], *containerd):
        pack = subprocess.Popen(["tar", "-C", str(rootfs), "-c", "."], stdout=subprocess.PIPE)
        subprocess.run([*docker, "import", "-", IMAGE], stdin=pack.stdout, check=True, stdout=subprocess.DEVNULL)
        pack.wait()
        subprocess.run([*ctr, "image", "import", "--snapshotter", "overlayfs", str(image)], check=True, stdout=subprocess.DEVNULL)

        def by_podman(program: str) -> List[str]:
            return [*podman, "--runtime", program, "run", "--rm", *limits, "--entrypoint", "", IMAGE, *SCRIPT]

        def by_docker(name: str) -> List[str]:
            return [*docker, "run", "--rm", "--network", "none", "--runtime", name, IMAGE, *SCRIPT]

        def by_ctr(program: str) -> List[str]:
            name = f"bench-{os.path.basename(program)}"
            return [*ctr, "run", "--rm", "--snapshotter", "overlayfs", "--runc-binary", program, IMAGE, name, *SCRIPT]

        try:
            yield [
                ("podman run --rm", by_podman(str(runtime)), by_podman(runc)),
                ("docker run --rm", by_docker("psi"), by_docker("runc")),
                ("ctr run --rm", by_ctr(str(runtime)), by_ctr(runc)),
            ]
        finally:
            quiet(*podman, "rm", "--all", "--force", "--time", "0")
