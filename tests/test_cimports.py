"""The layers, for what import-linter cannot see: the Cython sources.

gateway -> engines -> router, and within the gateway: proxy -> http
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("gateway", "router", "engines", "scaler", "bench")
SOURCES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.p*")
    if path.suffix in (".pyx", ".pxd")
)

# `from a.b cimport c`, `from a.b import c`, `cimport a.b`, `import a.b`; at any indentation.
FROM = re.compile(r"^\s*from\s+([\w.]+)\s+c?import\s+\(?([^#\n]*)", re.M)
PLAIN = re.compile(r"^\s*c?import\s+([\w., ]+?)(?:\s+as\s+\w+)?\s*(?:#.*)?$", re.M)

# What the sources below a prefix may name, of our packages; the longest prefix rules.
MAY_NAME = {
    "router": ("router",),
    "engines": ("engines", "router"),
    "gateway": ("gateway", "engines", "router"),
    "gateway.http": ("gateway.http",),
    "gateway.proxy": (
        "gateway.proxy",
        "gateway.http",
        "gateway._shared",
        "gateway.messages",
        "gateway.reasons",
        "gateway.version",
        "engines",
        "router",
    ),
    "gateway._shared": ("gateway._shared", "router"),
    "scaler": ("scaler", "engines", "router"),
    "bench": ("bench", "engines", "router"),
    # times the parts of the data path from inside
    "bench._micro": ("gateway.http", "gateway.proxy", "router"),
}

# Others' modules that sources below a prefix must not name.
MUST_NOT_NAME = {
    "router": ("asyncio", "logging", "os", "random", "socket", "time"),
    "gateway.http": ("asyncio", "logging", "os", "random", "socket"),
    "gateway.proxy": ("aiohttp", "httptools", "prometheus_client", "starlette", "uvicorn", "yaml"),
}


def named_in(text: str) -> set[str]:
    """Modules that a source names; of `from a import b` both `a` and `a.b`, as b may be one."""
    found = set()
    for module, names in FROM.findall(text):
        found.add(module)
        found |= {f"{module}.{name}" for name in re.findall(r"(\w+)(?:\s+as\s+\w+)?", names)}
    for names in PLAIN.findall(text):
        found |= {name.strip() for name in names.split(",")}
    return found


def is_below(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def faults_of(module: str, text: str) -> list[str]:
    """What a source of this module name must not say."""
    home = max((prefix for prefix in MAY_NAME if is_below(module, prefix)), key=len)
    banned = [
        name
        for prefix, names in MUST_NOT_NAME.items()
        if is_below(module, prefix)
        for name in names
    ]
    faults = []
    for module_or_name in sorted(named_in(text)):
        top = module_or_name.partition(".")[0]
        if top in banned:
            faults.append(module_or_name)
        elif top in (*PACKAGES, "headgate"):
            # `from gateway cimport x` names `gateway` beside `gateway.x`, which is judged.
            is_fine = any(is_below(module_or_name, allowed) for allowed in MAY_NAME[home])
            is_parent = any(is_below(allowed, module_or_name) for allowed in MAY_NAME[home])
            if not is_fine and not is_parent:
                faults.append(module_or_name)
    return faults


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_names_only_its_own_layer_and_those_below(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert faults_of(module, path.read_text()) == []


def test_there_are_sources() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize(
    ("module", "text", "faults"),
    [
        ("router._table", "from libc.stdint cimport int32_t\nimport mmap\n", []),
        ("router._x", "from gateway._shared cimport Shared\n", ["gateway._shared", ".Shared"]),
        ("router._x", "    from time import monotonic\n", ["time", ".monotonic"]),
        ("router._x", "cimport gateway._shared\n", ["gateway._shared"]),
        ("router._x", "import array, socket  # no\n", ["socket"]),
        ("gateway.http._x", "from gateway.proxy cimport _pool\n", ["gateway.proxy", "._pool"]),
        ("gateway.http._x", "from gateway.http cimport _head as h\n", []),
        ("gateway.http._x", "from gateway cimport _shared\n", ["gateway._shared"]),
        ("gateway.proxy._x", "from gateway.config import load\n", ["gateway.config", ".load"]),
        ("gateway.proxy._x", "from gateway.proxy import retry\nfrom router import State\n", []),
        ("gateway.proxy._x", "from router._table cimport (\n    Row,\n)\n", []),
    ],
)
def test_rules_find_what_they_forbid(module: str, text: str, faults: list[str]) -> None:
    wanted = [faults[0] + name if name.startswith(".") else name for name in faults]
    assert faults_of(module, text) == wanted
