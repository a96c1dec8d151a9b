"""`pip install ./python`, without a network, and what is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import unittest
import venv
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def run(*command: str, **environ: str) -> str:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", timeout=180,
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environ},
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}:\n{done.stdout}")
    return done.stdout.strip()


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = tempfile.TemporaryDirectory(prefix="psi-install-")
        cls.addClassCleanup(cls.directory.cleanup)
        cls.bin = Path(cls.directory.name) / "venv" / "bin"
        venv.create(cls.bin.parent, with_pip=True)

    directory: "tempfile.TemporaryDirectory[str]"
    bin: Path

    def python(self, code: str) -> str:
        return run(str(self.bin / "python"), "-c", code, PYTHONPATH="")

    def test_with_and_without_build_isolation(self) -> None:
        for option in ((), ("--no-build-isolation",)):
            run(str(self.bin / "pip"), "install", "--force-reinstall", *option, str(HERE))
            where = self.python("import pyisolate; print(pyisolate.__file__)")
            self.assertTrue(where.startswith(str(self.bin.parent)), where)
            codec = Path(where).parent / "_codec.py"
            self.assertFalse(codec.is_symlink())
            self.assertEqual(codec.read_bytes(), (HERE / "pyisolate" / "_codec.py").read_bytes())
            self.assertTrue((Path(where).parent / "py.typed").exists())
        run(str(self.bin / "pip"), "check")
        run(str(self.bin / "pip"), "uninstall", "-y", "pyisolate")

    def test_editable(self) -> None:
        run(str(self.bin / "pip"), "install", "-e", str(HERE))
        where = self.python("import pyisolate; print(pyisolate.__file__)")
        self.assertEqual(where, str(HERE / "pyisolate" / "__init__.py"))
        run(str(self.bin / "pip"), "uninstall", "-y", "pyisolate")

    def test_the_same_sources_give_the_same_wheel(self) -> None:
        wheels = []
        for name in ("one", "two"):
            target = Path(self.directory.name) / name
            run(str(self.bin / "pip"), "wheel", "-w", str(target), str(HERE))
            (wheel,) = target.glob("*.whl")
            wheels.append(wheel.read_bytes())
            with zipfile.ZipFile(wheel) as archive:
                self.assertIsNone(archive.testzip())
                self.assertIn(b"Requires-Python: >=3.9", archive.read("pyisolate-0.1.0.dist-info/METADATA"))
        self.assertEqual(*wheels)

    def test_only_the_standard_library_is_imported(self) -> None:
        loaded = run(
            sys.executable, "-I", "-S", "-c",
            f"import sys; sys.path.append({str(HERE)!r}); import pyisolate; print(*sys.modules)",
        ).split()  # fmt: skip
        foreign = {name.split(".")[0] for name in loaded} - {"pyisolate", "__main__"}
        names = getattr(sys, "stdlib_module_names", None)
        if names is not None:
            self.assertEqual(foreign - set(names) - {"sitecustomize", "usercustomize"}, set())


if __name__ == "__main__":
    unittest.main()
