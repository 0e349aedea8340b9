"""Data, loop and distribution of a training run."""
