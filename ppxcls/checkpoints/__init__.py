"""Reads and writes checkpoint files and the metadata of a run. This package needs numpy alone."""
