"""The table of policies. To add one: a file in router/policies, a class, a line here."""

from router._table import Policy
from router.policies._least_requests import LeastRequests
from router.policies._round_robin import RoundRobin

__all__ = ["POLICIES", "make_policy"]

POLICIES: dict[str, type[Policy]] = {
    "least-requests": LeastRequests,
    "round-robin": RoundRobin,
}


def make_policy(name: str, seed: int = 0) -> Policy:
    """A fresh policy by its configured name. ValueError lists the names there are.

    `seed` spreads the starting points of several gateways or workers.
    """
    try:
        return POLICIES[name](name, seed)
    except KeyError:
        raise ValueError(f"no policy is called {name!r}; there are {', '.join(POLICIES)}") from None
