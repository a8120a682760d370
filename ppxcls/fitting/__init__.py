"""Trains a classifier on a folder of photographs: chooses the settings, writes a short YAML, and trains."""

STAGES = "stages.json"

# Files that this package writes to a run's folder, and those among them that describe ``best_model``.
RESULTS = (STAGES,)
RESULTS_OF_BEST = (STAGES,)
