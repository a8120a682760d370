"""Training and evaluation, and their components."""
