"""Turns a YAML into checked sections and blocks."""
