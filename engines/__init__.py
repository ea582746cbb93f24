"""Knows what each engine speaks: metric names, probe paths, dying answers, dialects.

No sockets here except in `engines.sim`, the simulated engine. Imports `router` at most.
"""
