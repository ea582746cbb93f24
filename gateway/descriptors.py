"""How many files and connections this process may have open."""

import resource

__all__ = ["raise_limit"]


def raise_limit() -> None:
    """Take all that the system allows: a stream needs two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
