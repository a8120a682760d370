"""Searches for training settings: a learning rate, a batch size. Nothing here trains a run."""
