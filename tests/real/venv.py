"""Virtual environments for real engines: outside the checkout, each built once.

They lie under the user's cache folder, keyed by a hash of what they are made from, so that a change
builds anew and never touches an environment another checkout still uses. Nothing removes an old
one: the folders may be deleted at any time.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

MARK = "complete"

Progress = Callable[[str], None]


class UnavailableError(Exception):
    """This machine cannot have the environment; the text says what is missing."""


class BrokenError(Exception):
    """Everything could be fetched, and still the environment does not work."""


def ensure(
    name: str, sources: Sequence[Path], build: Callable[[Path, Progress], None], progress: Progress
) -> Path:
    """The folder of the complete environment made from `sources`; builds it where there is none.

    `build` fills a folder that does not exist yet, in place, because a virtual environment cannot
    be moved; a mark comes last. Blocks while another process builds the same one. `progress` gets
    lines for a human.
    """
    folder = cache_folder() / f"{name}-{key([Path(__file__), *sources])}"
    if not is_complete(folder):
        with exclusive(folder.with_suffix(".lock"), progress):
            if not is_complete(folder):
                if folder.exists():
                    progress(f"removing the unfinished {folder}")
                    shutil.rmtree(folder)
                build(folder, progress)
                write_mark(folder)
                progress(f"{folder.name} is complete")
    return folder


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headgate"


def key(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def is_complete(folder: Path) -> bool:
    return (folder / MARK).exists()


def write_mark(folder: Path) -> None:
    part = folder / f"{MARK}.part"
    part.write_text("")
    part.rename(folder / MARK)


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


def require_platform(what: str) -> None:
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise UnavailableError(f"{what} is pinned for Linux x86_64; this is {system} {machine}")


def require_disk(parent: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        gib = 1024**3
        raise UnavailableError(
            f"{parent} has {free / gib:.1f} GiB free, {needed_bytes / gib:.1f} GiB are needed; "
            "XDG_CACHE_HOME names another place"
        )


def find_pythons(versions: Sequence[str]) -> list[str]:
    """Interpreters of these minor versions, the earlier version first; may be empty."""
    found = []
    for version in versions:
        for name in (f"python{version}", sys.executable):
            path = shutil.which(name)
            if path and version_of(path) == version:
                found.append(path)
    return found


def version_of(python: str) -> str | None:
    # A name on PATH may be a shim that runs nothing: ask it rather than trust it.
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    result = subprocess.run([python, "-c", program], check=False, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None


def make(base: str, folder: Path) -> None:
    command = [base, "-m", "venv", str(folder)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        # Some distributions ship venv's pip as a package of its own.
        raise UnavailableError(f"{' '.join(command)} fails:\n{result.stdout}{result.stderr}")


def read_pins(pins: Path) -> dict[str, str]:
    lines = (line.strip() for line in pins.read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def install_pins(folder: Path, pins: Path, progress: Progress) -> None:
    """All packages that the file names, and none besides."""
    what = ["--requirement", str(pins)]
    code, tail = pip_install(folder, what, len(read_pins(pins)), progress)
    if code:
        raise UnavailableError(f"pip cannot get the pinned packages of {pins}:\n{tail}")


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


def main(ensure_it: Callable[[Progress], object]) -> int:
    """For an environment's own file run as a script: build or find it, print what it gives."""
    try:
        print(ensure_it(lambda line: print(line, file=sys.stderr, flush=True)))
    except (UnavailableError, BrokenError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
