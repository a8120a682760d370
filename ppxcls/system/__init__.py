"""Processes, devices, signals and logs; imports nothing else of the package."""
