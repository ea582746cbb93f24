"""How a process of ours starts another Python process of ours."""

import os
import sys
import sysconfig
from pathlib import Path

import gateway

__all__ = ["python_module"]


def python_module(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run `module` with this interpreter and this code.

    Out of a source tree the tree goes onto PYTHONPATH: the child's working directory need not be
    the tree. An installed package finds itself.
    """
    env = dict(os.environ)
    root = str(Path(gateway.__file__).resolve().parent.parent)
    if root not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    return [sys.executable, "-m", module, *arguments], env
