"""Build the Cython extensions; everything else stands in pyproject.toml.

HEADGATE_DEBUG=1 builds with bounds checks, overflow checks and C asserts.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
DEBUG = os.environ.get("HEADGATE_DEBUG") == "1"


def extensions() -> list[Extension]:
    """One extension per .pyx of the four import packages."""
    sources = sorted(
        path.relative_to(ROOT)
        for package in ("router", "engines", "gateway", "bench")
        for path in (ROOT / package).rglob("*.pyx")
    )
    return [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            extra_compile_args=["-O0" if DEBUG else "-O2", "-Wall", "-Wno-unused-function"]
            + ([] if DEBUG else ["-DNDEBUG"]),
        )
        for source in sources
    ]


setup(
    ext_modules=cythonize(
        extensions(),
        nthreads=2,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": False,
            "initializedcheck": DEBUG,
            "cdivision": not DEBUG,
            "embedsignature": True,
        },
    )
)
