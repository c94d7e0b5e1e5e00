"""Makers of what ships and is fitted to recordings: `scripts/data NAME` runs one."""
