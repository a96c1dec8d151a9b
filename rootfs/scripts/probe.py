"""Asks a CPython where it keeps itself; prints one JSON object.

Run by the rootfs builder as ``python -I -S -c``, so that neither the user's
environment nor site-packages can colour the answer.  Nothing is guessed from
paths: distributions move every one of these.  It keeps to the syntax of every
Python 3, so that the ones that are too old can say so.
"""

import sys

LOADED = sorted(sys.modules)  # before anything else is

import json  # noqa: E402
import os  # noqa: E402
import sysconfig  # noqa: E402
from typing import Tuple  # noqa: E402


def dynload(stdlib: str, platstdlib: str) -> str:
    """Directory of the extension modules, "" if all of them are built in."""
    configured = sysconfig.get_config_var("DESTSHARED")
    for candidate in (
        os.path.join(platstdlib, "lib-dynload"),
        os.path.join(stdlib, "lib-dynload"),
        configured if isinstance(configured, str) else "",
    ):
        if candidate and os.path.isdir(candidate):
            return candidate
    return ""


def openssl() -> Tuple[str, str]:
    """Certificate file OpenSSL opens by default, and one that exists here."""
    try:
        import ssl
    except ImportError:
        return "", ""
    paths = ssl.get_default_verify_paths()
    for found in (
        paths.openssl_cafile,
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
    ):
        if os.path.isfile(found):
            return paths.openssl_cafile, os.path.realpath(found)
    return paths.openssl_cafile, ""


def timezones() -> str:
    """First directory of the system's time zone database, "" if none."""
    try:
        import zoneinfo
    except ImportError:
        return ""
    for directory in zoneinfo.TZPATH:
        if os.path.isfile(os.path.join(directory, "UTC")):
            return os.path.realpath(directory)
    return ""


def main() -> None:
    stdlib = sysconfig.get_path("stdlib")
    platstdlib = sysconfig.get_path("platstdlib")
    executable = getattr(sys, "_base_executable", "") or sys.executable
    cafile, certificates = openssl()
    json.dump(
        {
            "implementation": sys.implementation.name,
            "version": list(sys.version_info[:3]),
            "cache_tag": sys.implementation.cache_tag or "",
            "executable": os.path.realpath(executable),
            "stdlib": stdlib,
            "dynload": dynload(stdlib, platstdlib),
            "platlibdir": getattr(sys, "platlibdir", "lib"),
            "abi_thread": "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else "",
            "cafile": cafile,
            "certificates": certificates,
            "timezones": timezones(),
            "builtin": sorted(sys.builtin_module_names),
            "loaded": LOADED,
        },
        sys.stdout,
    )


main()
