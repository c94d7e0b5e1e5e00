"""What plans of a model lose, recorded for training."""
