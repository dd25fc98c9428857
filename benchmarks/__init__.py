"""Timings and memory against the peers: `make bench`, or `python -m benchmarks.attention --help`."""
