"""The lab: the real router and simulated engines on a virtual clock, driven by request traces.

A simulated hour takes seconds, and the same seed gives the same figures. `python -m bench.lab`.
"""
