"""Reports after training: one HTML page about a run, or about several."""

REPORT, PER_CLASS, CARD = "report.html", "per_class.csv", "README.md"
CURVES, CALIBRATION, BALANCE = "curves.png", "calibration.png", "balance.png"
STAGES = "stages.json"  # ``ppxcls fit`` writes it

# Files that this package writes to a run's folder, and those among them that describe ``best_model``.
RESULTS = (REPORT, PER_CLASS, CARD, CURVES, CALIBRATION, BALANCE)
RESULTS_OF_BEST = (REPORT, PER_CLASS)
