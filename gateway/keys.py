"""Clients' keys: made once, shown once, kept as a digest."""

import hashlib
import re
import secrets
import string

__all__ = ["digest_of", "is_name", "new_key", "yaml_lines"]

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:\[\]-]{0,199}"
ALPHABET = string.digits + string.ascii_letters
ID_LENGTH = 12
SECRET_LENGTH = 40
"""238 bits: a plain SHA-256 of so much randomness needs no slow hash."""


def new_key() -> str:
    """`hg-<id>-<secret>`; the id names the key in places where the secret must not stand."""
    return f"hg-{_random(ID_LENGTH)}-{_random(SECRET_LENGTH)}"


def is_name(name: str) -> bool:
    """Whether the configuration takes it as a key's name."""
    return re.fullmatch(NAME_PATTERN, name) is not None


def digest_of(key: str) -> str:
    """SHA-256 of a key in hex, as the configuration has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def yaml_lines(name: str, key: str) -> str:
    """The lines that go under `keys:` in the configuration file."""
    return f"  - name: {name}\n    digest: {digest_of(key)}\n"


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
