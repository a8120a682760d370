"""Operators that Paddle has, done faster where it matters."""
