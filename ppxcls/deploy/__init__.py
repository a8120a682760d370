"""Prediction, and export to files that run without this package."""
