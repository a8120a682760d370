"""Checkpoint files, and what they say about a run. This room needs numpy alone."""
