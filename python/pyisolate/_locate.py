"""Where psi-shim, the root file system and a shared supervisor's socket are.

Each has an environment variable that decides alone, and then a list of usual places. What is not found
is an error that says what to run.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import List, Mapping, Optional

from .errors import SandboxError

DEFAULT_SOCKET = "/run/psi/psi.sock"
_ROOTFS_MARK = "usr/lib/psi/rootfs.json"


def package() -> Path:
    """The directory of this package."""
    return Path(__file__).resolve().parent


def checkout() -> Optional[Path]:
    """The source tree that this package is used from, if it is not installed."""
    root = package().parent.parent
    return root if (root / "go.mod").is_file() and (root / "cmd" / "psi-shim").is_dir() else None


def shim(environ: Mapping[str, str]) -> str:
    """The psi-shim to start: $PSI_SHIM, beside the package, the checkout's bin/, PATH."""
    given = environ.get("PSI_SHIM")
    if given:
        if not os.access(given, os.X_OK) or os.path.isdir(given):
            raise SandboxError(f"PSI_SHIM={given} is not a program that can be run; unset it or correct it")
        return os.path.abspath(given)
    source = checkout()
    places = [package() / "psi-shim", package() / "bin" / "psi-shim"]
    if source is not None:
        places.append(source / "bin" / "psi-shim")
    for place in places:
        if os.access(place, os.X_OK) and place.is_file():
            return str(place)
    found = shutil.which("psi-shim", path=environ.get("PATH"))
    if found:
        return os.path.abspath(found)
    what = f"run `make build` in {source}" if source else "install psi (`make install` in its source tree)"
    raise SandboxError(f"psi-shim was not found (PATH, {_listed(places)}): {what}, or set PSI_SHIM to the program")


def rootfs(environ: Mapping[str, str]) -> str:
    """The root file system of guests: $PSI_ROOTFS, the checkout's build/rootfs, /var/lib/psi/rootfs."""
    given = environ.get("PSI_ROOTFS")
    if given:
        if not os.path.isfile(os.path.join(given, _ROOTFS_MARK)):
            raise SandboxError(
                f"PSI_ROOTFS={given} holds no root file system of psi: run `psi-runtime rootfs build -o {given}`"
            )
        return os.path.abspath(given)
    source = checkout()
    places = [Path("/var/lib/psi/rootfs")]
    if source is not None:
        places.insert(0, source / "build" / "rootfs")
    for place in places:
        if (place / _ROOTFS_MARK).is_file():
            return str(place)
    what = f"run `make rootfs` in {source}" if source else f"run `psi-runtime rootfs build -o {places[-1]}`"
    raise SandboxError(f"no root file system for guests ({_listed(places)}): {what}, or set PSI_ROOTFS")


def shared_socket(environ: Mapping[str, str], is_root: bool) -> Optional[str]:
    """The socket of a shared supervisor to use, or None to start one of our own."""
    given = environ.get("PSI_SOCKET")
    if given:
        return given
    if is_root:
        return None
    if os.access(DEFAULT_SOCKET, os.R_OK | os.W_OK):
        return DEFAULT_SOCKET
    raise SandboxError(
        "starting containers takes root, and no shared supervisor can be reached: have root run "
        f"`psi-shim serve --socket {DEFAULT_SOCKET}` and add this user to the group psi "
        "(or set PSI_SOCKET to its socket), or run this program as root"
    )


def _listed(places: List[Path]) -> str:
    return ", ".join(map(str, places))
