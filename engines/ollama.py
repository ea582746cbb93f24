"""Ollama: it has no metrics, and no health route but its model list."""

from engines.habits import Kind, Tell

__all__ = ["OLLAMA"]

OLLAMA = Kind(
    name="ollama",
    # of a model that somebody else published, `owned_by` is that person
    owned_by=("library",),
    tells=(Tell("/api/version", ("version",)),),
    health_path="/api/version",
    # Go's server closes idle connections only where it is told to; here it is not
    keep_alive_s=60.0,
)
