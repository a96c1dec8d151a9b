"""The build backend of pyisolate (PEP 517 and 660), with the standard library alone.

Setuptools would do, were it always there: a virtual environment of Debian's has no `wheel`, and build
isolation wants to download. A wheel of pure Python is a zip file with three files of metadata. The same
sources give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

HERE = Path(__file__).resolve().parent
PACKAGE = "pyisolate"
_DATE = (2020, 1, 1, 0, 0, 0)  # of every entry, for the same bytes every time
_TAG = "py3-none-any"


def _project() -> Dict[str, str]:
    """The texts of [project]; tomllib came with 3.11 only, and plain `key = "text"` lines need no more."""
    section = (HERE / "pyproject.toml").read_text(encoding="utf-8").split("[project]\n", 1)[1].split("\n[", 1)[0]
    return dict(re.findall(r'^([a-z-]+) = "([^"]*)"$', section, re.MULTILINE))


def _sources() -> Dict[str, bytes]:
    """What is installed, by path; links are followed: a wheel holds the real files."""
    found = sorted(p for p in (HERE / PACKAGE).rglob("*") if p.suffix == ".py" or p.name == "py.typed")
    return {path.relative_to(HERE).as_posix(): path.read_bytes() for path in found}


def _metadata(project: Mapping[str, str]) -> bytes:
    return (
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        f"Summary: {project['description']}\nLicense: Apache-2.0\n"
        f"Requires-Python: {project['requires-python']}\n"
    ).encode()


def _write_wheel(directory: str, contents: Mapping[str, bytes]) -> str:
    project = _project()
    stem = f"{project['name']}-{project['version']}"
    info = f"{stem}.dist-info"
    files = dict(contents)
    files[f"{info}/METADATA"] = _metadata(project)
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {PACKAGE} build_wheel\nRoot-Is-Purelib: true\nTag: {_TAG}\n".encode()
    )
    record: List[str] = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(data)}\n")
    record.append(f"{info}/RECORD,,\n")
    files[f"{info}/RECORD"] = "".join(record).encode()
    name = f"{stem}-{_TAG}.whl"
    with zipfile.ZipFile(Path(directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path, _DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return name


def build_wheel(
    wheel_directory: str, config_settings: Optional[Any] = None, metadata_directory: Optional[str] = None
) -> str:
    """Write the wheel and return its name."""
    return _write_wheel(wheel_directory, _sources())


def build_editable(
    wheel_directory: str, config_settings: Optional[Any] = None, metadata_directory: Optional[str] = None
) -> str:
    """Write a wheel that points here, for `pip install -e`."""
    return _write_wheel(wheel_directory, {f"{PACKAGE}.pth": f"{HERE}\n".encode()})


def build_sdist(sdist_directory: str, config_settings: Optional[Any] = None) -> str:
    """Write the source archive and return its name."""
    project = _project()
    stem = f"{project['name']}-{project['version']}"
    files = _sources()
    for name in ("pyproject.toml", "build_wheel.py"):
        files[name] = (HERE / name).read_bytes()
    files["PKG-INFO"] = _metadata(project)
    with tarfile.open(Path(sdist_directory) / f"{stem}.tar.gz", "w:gz") as archive:
        for path, data in files.items():
            entry = tarfile.TarInfo(f"{stem}/{path}")
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    return f"{stem}.tar.gz"
