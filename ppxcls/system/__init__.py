"""Processes, devices, signals, logs and files. It imports nothing else of the package."""
