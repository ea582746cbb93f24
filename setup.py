"""Build the Cython extensions; everything else stands in pyproject.toml.

HEADGATE_DEBUG=1 builds with bounds checks, overflow checks and C asserts. HEADGATE_EXTENSIONS=0
builds none: the Makefile installs so, and then builds in place what has changed. An editable
install by pip alone builds all of them each time.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
DEBUG = os.environ.get("HEADGATE_DEBUG") == "1"
WANTED = os.environ.get("HEADGATE_EXTENSIONS") != "0"
JOBS = os.cpu_count() or 1


def extensions() -> list[Extension]:
    """One extension per .pyx of the import packages."""
    sources = sorted(
        path.relative_to(ROOT)
        for package in ("router", "engines", "gateway", "bench")
        for path in (ROOT / package).rglob("*.pyx")
    )
    return [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            # -g0: Python's own flags ask for debug information, which triples the wheel.
            extra_compile_args=["-Wall", "-Wno-unused-function"]
            + (["-O0"] if DEBUG else ["-O2", "-DNDEBUG", "-g0"]),
        )
        for source in sources
    ]


# Cython's worker processes may import this file anew, and must not build then.
if __name__ == "__main__":
    setup(
        ext_modules=cythonize(
            extensions() if WANTED else [],
            nthreads=JOBS,
            compiler_directives={
                "language_level": 3,
                "boundscheck": DEBUG,
                "wraparound": False,
                "initializedcheck": DEBUG,
                "cdivision": not DEBUG,
                "embedsignature": True,
            },
        ),
        options={"build_ext": {"parallel": JOBS}},
    )
