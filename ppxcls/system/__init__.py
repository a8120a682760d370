"""Processes, devices, signals, logs and files. It imports nothing from the rest of the package."""
