"""The table of policies. To add one: a file in router/policies, a class, a line here."""

from router._policy import Policy
from router.policies._least_requests import LeastRequests
from router.policies._lmetric import Lmetric
from router.policies._marginal_cost import MarginalCost
from router.policies._power_of_two import PowerOfTwo
from router.policies._prefix_affinity import PrefixAffinity
from router.policies._round_robin import RoundRobin
from router.policies._weighted import Weighted

__all__ = ["POLICIES", "make_policy"]

POLICIES: dict[str, type[Policy]] = {
    "marginal-cost": MarginalCost,
    "lmetric": Lmetric,
    "weighted": Weighted,
    "prefix-affinity": PrefixAffinity,
    "power-of-two": PowerOfTwo,
    "least-requests": LeastRequests,
    "round-robin": RoundRobin,
}


def make_policy(name: str, seed: int = 0, **options: float) -> Policy:
    """A fresh policy by its configured name. ValueError lists the names there are.

    `seed` spreads the starting points of several gateways or workers; `options` are the policy's
    own (TypeError: it has none of that name).
    """
    try:
        policy = POLICIES[name]
    except KeyError:
        raise ValueError(f"no policy is called {name!r}; there are {', '.join(POLICIES)}") from None
    return policy(name, seed, **options)
