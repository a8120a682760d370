"""Searches for the settings of a training: a learning rate, a batch size. Nothing here trains a run."""
