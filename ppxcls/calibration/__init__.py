"""How sure a network may be: the temperature of its scores, and what its scores are worth."""
