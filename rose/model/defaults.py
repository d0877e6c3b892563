"""Defaults and choices of a run over a model; no torch."""

from typing import NamedTuple

OFFLINE = "smollm2-135m"  # the model that the app and the commands take by default
STORED = "auto"  # the number format that a checkpoint's weights are read in, see `rose.model.load.models.read_as`
COMPUTE = ("auto", "float32", "bfloat16")  # number formats of matrix products in forward passes
BOS = ("auto", "always", "never")  # whether windows begin with the beginning-of-sequence token
SOURCES = ("wikitext2", "c4", "ptb", "packaged")  # texts with a name
TARGETS = ("dense", "layer")
# How layers share the sparsity, and the share of a run that each rule takes, roughly; only the progress bar uses it.
ALLOCATIONS = {"uniform": 0.0, "owl": 0.25, "sensitivity": 0.4}
BY_DAMAGE = "damage"  # one more rule, which needs a folder: damage:FOLDER
DENSITY_SPREAD = 0.1  # α of the sensitivity-aware allocation
UNITS = ("layers", "blocks")  # what is pruned alone to measure damage
RATE = 0.001  # of tuning, at most
PRUNED = 0.01  # share of zeros from which on a layer is taken for pruned
CHECKED_AGAINST = ("magnitude", "wanda", "sparsegpt", "rose", "rose_admm")  # methods that a check runs beside a copy
COMPARED = ("magnitude", "wanda", "sparsegpt", "rose", "rose_global", "rose_admm")


class Draw(NamedTuple):
    """Windows to calibrate or train on, tokens in each, and further windows held out."""

    samples: int
    length: int
    held_out: int = 0


# Draws by purpose: results get better with tokens, and time grows in proportion to them.
PAPERS = Draw(128, 2048)  # what methods are published with; perplexity, too, is of windows so long
PRUNING = Draw(32, 1024, 4)  # an eighth of that; fewer leave large models no correction (docs/large-models.md)
TUNING = Draw(256, 512, 4)  # every window is trained on once, and 256 do better than 64 (docs/tuning.md)
DAMAGE = Draw(16, 512, 8)  # loss is measured on the held-out ones, for every unit, and its changes are small
CHECK = Draw(8, 512, 2)  # several methods are run beside the checkpoint
HELD_OUT = "held out"  # windows of the calibration text, in place of the name of a text
DECIDING = 12  # more windows that a check reads at most, for perplexity alone, until it is decided
STUDY = Draw(16, 512, 4)  # somebody waits for it in the app
SMALLER = Draw(16, 512, 12)  # every row of its table is a whole run
DRIFT = Draw(16, 256, 4)  # the app's two targets: enough for the correction to pay, and quick
