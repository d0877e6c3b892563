"""Settings as widgets, and the cost of a run."""
