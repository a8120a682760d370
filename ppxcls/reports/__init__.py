"""Reports after training: one HTML page about a run, or about several."""

REPORT, PER_CLASS, CARD = "report.html", "per_class.csv", "README.md"
CURVES, CALIBRATION, BALANCE, ROC = "curves.png", "calibration.png", "balance.png", "roc.png"
RISK = "risk.png"
STAGES = "stages.json"  # ``ppxcls fit`` writes it
FOLDS = "folds.json"  # ``ppxcls fit --folds`` writes it

# Files that this package writes to a run's folder, and those among them that describe ``best_model``.
RESULTS = (REPORT, PER_CLASS, CARD, CURVES, CALIBRATION, RISK, BALANCE, ROC, FOLDS)
RESULTS_OF_BEST = (REPORT, PER_CLASS, FOLDS)
