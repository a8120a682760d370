"""YAML to checked sections and blocks."""
