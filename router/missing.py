"""How much of what an endpoint is thought to have cached its engine does not find."""

from router._table import Table

__all__ = ["Missing"]

MEMORY = 0.98
"""Of what was seen before, kept per update: at one a second, half a minute."""
PRIOR_TOKENS = 4000.0
"""Found tokens that are taken for granted: the first few prompts decide nothing."""
LOST_TOKENS = 4096.0
"""Expected within one update, and hardly any of them found: the cache was emptied."""
LOST_SHARE = 0.1
MAX_MISSING = 0.95


class Missing:
    """Of the endpoint in `slot`, as the usage of its answers tells (`cached_tokens`); writes the
    row's `missing`."""

    def __init__(self, table: Table, slot: int) -> None:
        self._table = table
        self._slot = slot
        self._seen = table.hits(slot)
        self._expected = self._found = 0.0
        table.set_row(slot, missing=0.0)

    def update(self) -> bool:
        """Take in what is new since the last call. True: what was assumed is void, forget it."""
        expected, found = self._table.hits(self._slot)
        new_expected, new_found = expected - self._seen[0], found - self._seen[1]
        self._seen = (expected, found)
        is_lost = new_expected >= LOST_TOKENS and new_found < LOST_SHARE * new_expected
        if is_lost:
            self._expected = self._found = 0.0
        else:
            self._expected = MEMORY * self._expected + new_expected
            self._found = MEMORY * self._found + new_found
        missing = (self._expected - self._found) / (self._expected + PRIOR_TOKENS)
        self._table.set_row(self._slot, missing=min(max(missing, 0.0), MAX_MISSING))
        return is_lost
