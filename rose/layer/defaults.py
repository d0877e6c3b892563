"""What a layer is pruned by where nobody says otherwise: the same for the engine, the command line and the app."""

METHOD = "rose"
SPARSITY = 0.7
BLOCK_SIZE = 128  # columns, as in SparseGPT's and ROSE's programs
DAMPING = 0.01  # relative to the mean of diag(H), as in theirs
THRESHOLD = 0.5  # on the relative range: a layer is columnar above it
