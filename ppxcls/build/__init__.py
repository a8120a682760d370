"""The room that reads a config: it turns sections and blocks into the objects that train and evaluate."""
