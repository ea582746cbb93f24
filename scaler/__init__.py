"""Sizes the fleet: signals in, desired replicas out. Never imports the gateway."""
