"""What pruning loses, in single groups and in whole plans: measured, or predicted from weights."""
