"""A simulated engine: what a vLLM pod looks like from outside, without a GPU.

Shipped for tests, demonstrations and measurements of everything that talks to engines. `SimEngine`
serves HTTP; `Core` is the batching core beneath it, pure, for use on a virtual clock. Nothing here
knows who the clients are.
"""

from engines.profile import PROFILES, Profile, profile_named
from engines.sim.config import SimConfig
from engines.sim.core import Core, Event, KvStored, Limits, Step
from engines.sim.fault import Fault
from engines.sim.job import Job, Phase
from engines.sim.server import SimEngine
from engines.sim.text import detokenize, tokenize

__all__ = [
    "PROFILES",
    "Core",
    "Event",
    "Fault",
    "Job",
    "KvStored",
    "Limits",
    "Phase",
    "Profile",
    "SimConfig",
    "SimEngine",
    "Step",
    "detokenize",
    "profile_named",
    "tokenize",
]
