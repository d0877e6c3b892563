"""ROSE: one-shot pruning of language models with reordered columns, and the analysis behind it.

Everything below is the public interface; the rest is private to its module.
"""

from rose.errors import Cancelled, RoseError
from rose.layer import alps, dsnot, measured, oats, refit  # noqa: F401  importing them registers their methods
from rose.layer.methods import METHODS, LayerResult, Settings, prune_layer, register
from rose.layer.order import Order, OrderPlan, make_order, move_block, plan_order
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import SweepTrace
from rose.model.calibration import load_tokens
from rose.model.capture import collect_statistics, visit_blocks
from rose.model.evaluation import perplexity
from rose.model.loading import load_model, save_model
from rose.model.pipeline import analyze_model, prune_model
from rose.model.progress import Progress
from rose.model.structure import prunable_layers
from rose.report import LayerRecord, RunReport

__all__ = [
    "METHODS",
    "Cancelled",
    "InputStatistics",
    "LayerRecord",
    "LayerResult",
    "Order",
    "OrderPlan",
    "Progress",
    "RoseError",
    "RunReport",
    "Settings",
    "SweepTrace",
    "analyze_model",
    "collect_statistics",
    "load_model",
    "load_tokens",
    "make_order",
    "move_block",
    "perplexity",
    "plan_order",
    "prunable_layers",
    "prune_layer",
    "prune_model",
    "register",
    "save_model",
    "visit_blocks",
]
