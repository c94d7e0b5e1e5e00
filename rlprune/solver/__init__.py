"""What to keep within a latency budget: the task as arrays, and the knapsack that solves it."""
