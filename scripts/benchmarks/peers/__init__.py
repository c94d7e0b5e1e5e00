"""The searches and rules of others, over the same tasks and evaluations as our policy's plans.

Peers of a benchmark, not product. Each module names the published method it follows and where it
departs from it. All of them choose widths only; which channels stay, and the correction of what
remains, is the same for all.
"""
