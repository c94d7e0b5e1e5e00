"""Benchmarks: each file with a `main` is one, `scripts/bench NAME` runs it."""
