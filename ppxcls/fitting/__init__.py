"""From a folder of photographs to a classifier: chooses the settings, writes a short YAML, and trains by it."""
