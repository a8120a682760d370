"""Trains a classifier on a folder of photographs: chooses the settings, writes a short YAML, and trains."""
