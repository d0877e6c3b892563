"""Default settings of pruning, and their choices; needs no torch."""

METHOD = "rose"
RECOMMENDED = "rose_admm"
"""The method for people who want a pruned model rather than a comparison: of those that take at most twice SparseGPT's
time, the lowest perplexity. `python -m rose compare` measures it; see docs/results.md."""
SPARSITY = 0.7
BLOCK_SIZE = 128  # columns, as in SparseGPT's and ROSE's programs
DAMPING = 0.01  # relative to the mean of diag(H), as in theirs
THRESHOLD = 0.5  # on the relative range: a layer is columnar above it
BUDGETS = ("block", "layer")
BITS = (3, 4, 8)
GROUPS = (32, 64, 128, "row")  # input columns that share a scale
GROUP = 64
