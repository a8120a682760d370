"""Reads a config: it turns sections and blocks into the objects that train and evaluate."""

EVALUATION, OTHER_EVALUATION = "eval.json", "eval_other.json"
TEST_EVALUATION = "test.json"  # of the images that judge
TTA_EVALUATION, TEST_TTA_EVALUATION = "eval_tta.json", "test_tta.json"  # with several views of each image
BAD_SAMPLES = "bad_samples.txt"

# Files that this package writes to a run's folder, and those among them that describe ``best_model``.
RESULTS_OF_BEST = (EVALUATION, TEST_EVALUATION, TTA_EVALUATION, TEST_TTA_EVALUATION)
RESULTS = (*RESULTS_OF_BEST, OTHER_EVALUATION, BAD_SAMPLES)
