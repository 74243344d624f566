"""Whether a cluster would carry a run: what is looked at on every node, and what follows from it."""
