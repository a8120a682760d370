"""Files of a run that can be continued; numpy only."""
