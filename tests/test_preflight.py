"""What a machine that lacks something is told before the build."""

import os
import subprocess
import sys
from pathlib import Path

PREFLIGHT = Path(__file__).parent.parent / ".ci" / "preflight"


def preflight(**env):
    return subprocess.run(
        [str(PREFLIGHT)], env={**os.environ, **env}, capture_output=True, text=True
    )


def tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_complete_machine_hears_so():
    done = preflight(PYTHON=sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "preflight: nothing is missing\n", "")


def test_all_that_is_missing_is_named_at_once(tmp_path):
    done = preflight(PYTHON="no-python", CC="no-compiler")
    assert done.returncode == 1
    assert "no-python, version 3.11 or newer" in done.stderr
    assert "a C compiler (no-compiler)" in done.stderr
    assert "sudo apt-get install python3 python3-venv python3-dev gcc libc6-dev\n" in done.stderr
    assert "sudo dnf install python3 python3-devel gcc glibc-devel\n" in done.stderr
    assert "sudo apk add python3 python3-dev gcc musl-dev\n" in done.stderr


def test_old_python_is_refused(tmp_path):
    old = tool(tmp_path, "python3", f'case "$2" in *3,*) exit 1;; esac; exec {sys.executable} "$@"')
    done = preflight(PYTHON=old, PATH=f"{tmp_path}:/bin:/usr/bin")
    assert done.returncode == 1
    assert "PYTHON=python3" in done.stderr


def test_headers_of_a_versioned_python_have_its_name(tmp_path):
    bare = tool(
        tmp_path,
        "python3.12",
        'case "$2" in *sysconfig*) echo /nowhere;; *venv*) exit 1;; esac; exit 0',
    )
    done = preflight(PYTHON=bare)
    assert "apt-get install python3.12-venv python3.12-dev\n" in done.stderr


def test_compiler_without_a_libc_is_told_apart(tmp_path):
    done = preflight(PYTHON=sys.executable, CC=tool(tmp_path, "cc", "exit 1"))
    assert "finds no stdio.h" in done.stderr
    assert "sudo apk add musl-dev\n" in done.stderr
