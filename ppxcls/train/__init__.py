"""Training: the loop, what it changes, evaluation, losses, metrics, schedules, trackers.

Evaluations may run a network as a compiled program of Paddle Inference (``paddle_inference.py``).
``ppxcls.deploy`` builds on the same module.
"""

METRICS_FILE, STARTS_FILE = "metrics.jsonl", "starts.jsonl"
PREDICTIONS, OTHER_PREDICTIONS = "predictions.csv", "predictions_other.csv"
TEST_PREDICTIONS = "test_predictions.csv"  # of the images that judge
TTA_PREDICTIONS, TEST_TTA_PREDICTIONS = "predictions_tta.csv", "test_predictions_tta.csv"
FOLD_PREDICTIONS = "fold_predictions.csv"  # of all images, each by the fold that was not trained on it
FIRST_BATCH = "first_batch.png"

# Files that this package writes to a run's folder, and those among them that describe ``best_model``.
RESULTS_OF_BEST = (PREDICTIONS, TEST_PREDICTIONS, TTA_PREDICTIONS, TEST_TTA_PREDICTIONS, FOLD_PREDICTIONS)
RESULTS = (*RESULTS_OF_BEST, METRICS_FILE, STARTS_FILE, OTHER_PREDICTIONS, FIRST_BATCH)
