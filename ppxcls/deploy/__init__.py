"""From a trained network to predictions: files that run without this package, and what runs them."""
