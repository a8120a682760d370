"""What a person looks at after training: one HTML page about a run, or about several."""
