"""A pruned module trained further, from plan to files."""
