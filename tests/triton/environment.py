"""The environment a real Triton runs in, on a CPU and without a container. Run as a script it
builds (or finds) the environment and prints its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.real import venv
from tests.real.venv import BrokenError, Progress, UnavailableError

PINS = Path(__file__).with_name("requirements.txt")
# Of those that have both a stub of the Python backend and a wheel of numpy 1.
PYTHON_VERSIONS = ("3.11", "3.12", "3.10")
DISK_BYTES = 1024**3
LAYOUT = """
import json, sysconfig
get = sysconfig.get_config_var
print(json.dumps([sysconfig.get_paths()["purelib"], get("LIBDIR"), get("INSTSONAME")]))
"""


@dataclass(frozen=True)
class Installation:
    """Where things are in a complete environment."""

    folder: Path
    packages: Path
    # Where the shared library of its Python is: the stub is linked to it.
    python_libraries: Path

    @property
    def server(self) -> Path:
        return self._triton / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self._triton / "backends"

    @property
    def variables(self) -> dict[str, str]:
        """What the server's environment must have besides what it has."""
        libraries = [str(self.packages / "nvidia_pytriton.libs"), str(self.python_libraries)]
        return {
            "LD_LIBRARY_PATH": ":".join(libraries),
            # The stub finds numpy through the first Python of its PATH.
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }

    @property
    def _triton(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"


def ensure(progress: Progress) -> Installation:
    """A complete environment; builds it first where there is none."""
    return installation(venv.ensure("triton", [PINS, Path(__file__)], build, progress))


def installation(folder: Path) -> Installation:
    packages, libraries, _ = layout(str(venv.python_of(folder)))
    return Installation(folder, Path(packages), Path(libraries))


def layout(python: str) -> list[str]:
    """Its folder of packages, its folder of libraries, and its own library's name."""
    result = subprocess.run([python, "-c", LAYOUT], check=True, capture_output=True, text=True)
    return list(json.loads(result.stdout))


def build(folder: Path, progress: Progress) -> None:
    venv.require_platform("Triton's CPU build")
    base = find_python()
    venv.require_disk(folder.parent, DISK_BYTES)
    progress(f"building {folder} (less than a minute, 250 MB on disk)")
    venv.make(base, folder)
    venv.install_pins(folder, PINS, progress)
    made = installation(folder)
    place_stub(made, base)
    check_start(made)


def find_python() -> str:
    found = venv.find_pythons(PYTHON_VERSIONS)
    for path in found:
        _, libraries, name = layout(path)
        if (Path(libraries) / name).exists() and ".so" in name:
            return path
    why = f"{', '.join(found)}: built without a shared library" if found else "there is none"
    raise UnavailableError(
        f"Triton's Python backend wants Python {', '.join(PYTHON_VERSIONS)} with its shared "
        f"library ({why}); Debian has it as libpython3.11"
    )


def place_stub(made: Installation, base: str) -> None:
    """Put the stub for this Python where the backend looks for it."""
    version = venv.version_of(base)
    stubs = made.backends.parent / "python_backend_stubs"
    shutil.copy(
        stubs / str(version) / "triton_python_backend_stub",
        made.backends / "python" / "triton_python_backend_stub",
    )


def check_start(made: Installation) -> None:
    """It says its options: all of its libraries are there."""
    environment = {**os.environ, **made.variables}
    command = [str(made.server), "--help"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if "--model-repository" not in result.stdout + result.stderr:
        raise BrokenError(f"tritonserver does not start: {result.stderr[-2000:]}")


if __name__ == "__main__":
    raise SystemExit(venv.main(lambda progress: ensure(progress).folder))
