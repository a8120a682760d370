"""Operators for training on the CPU, faster than Paddle's, with its parameters and state keys."""
