"""Weighted choice among an alias's targets, without randomness: smooth weighted round robin."""

from collections.abc import Sequence

__all__ = ["Split"]


class Split:
    """Deals requests out so that any run of them comes as near the weights as can be.

    Each turn every target earns its weight; the richest is taken and pays the sum of all.
    """

    def __init__(self, choices: Sequence[tuple[str, float]]) -> None:
        """`choices`: (model, weight > 0), at least one."""
        if not choices or any(weight <= 0 for _, weight in choices):
            raise ValueError("a split needs targets, each with a weight above 0")
        self._names = [name for name, _ in choices]
        self._weights = [weight for _, weight in choices]
        self._credit = [0.0] * len(choices)
        self._total = sum(self._weights)

    @property
    def names(self) -> list[str]:
        """The targets."""
        return list(self._names)

    def next(self) -> str:
        """The target of the next request."""
        credit = self._credit
        for index, weight in enumerate(self._weights):
            credit[index] += weight
        richest = max(range(len(credit)), key=credit.__getitem__)
        credit[richest] -= self._total
        return self._names[richest]
