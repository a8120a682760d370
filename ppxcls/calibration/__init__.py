"""How sure a network may be: the temperature of its scores, and what its scores are worth."""

CALIBRATION_FILE = "calibration.json"

# Files in a run's folder, and those among them that describe ``best_model``.
RESULTS = RESULTS_OF_BEST = (CALIBRATION_FILE,)
