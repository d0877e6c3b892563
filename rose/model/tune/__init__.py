"""Training of the weights that pruning has kept, towards the dense model."""
