"""Measures: load, comparisons and reports. Talks to the product over sockets only."""
