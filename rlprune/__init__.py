"""rlprune: model + device + milliseconds -> pruning plan."""
