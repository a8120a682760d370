"""From a list file to batches of pixels."""
