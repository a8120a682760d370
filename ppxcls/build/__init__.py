"""Reads a config: it turns sections and blocks into the objects that train and evaluate."""

EVALUATION, OTHER_EVALUATION = "eval.json", "eval_other.json"
TEST_EVALUATION = "test.json"  # of the images that judge
BAD_SAMPLES = "bad_samples.txt"

# Files that this package writes to a run's folder, and those among them that describe ``best_model``.
RESULTS = (EVALUATION, OTHER_EVALUATION, TEST_EVALUATION, BAD_SAMPLES)
RESULTS_OF_BEST = (EVALUATION, TEST_EVALUATION)
