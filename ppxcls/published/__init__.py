"""Published weights: what there is, where copies lie on this machine, and how a file is fetched."""
