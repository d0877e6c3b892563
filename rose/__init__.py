"""ROSE: one-shot pruning of language models with reordered columns, and the analysis behind it.

Everything below is the public interface; the rest is private to its module.
"""

# ruff: noqa: E402  what is below must be done before torch is imported
import os

from rose import interrupt

interrupt.guard()
if "OMP_WAIT_POLICY" not in os.environ:
    # Threads that have nothing to do give the processor back early: beside busy programs a run takes half as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from rose.diffusion.evaluation import DiffusionScores, evaluate_diffusion, evaluation_trajectory, trajectory_drift
from rose.diffusion.loading import load_diffusion, save_diffusion
from rose.diffusion.pruning import collect_diffusion_statistics, prune_diffusion, step_diagonals
from rose.diffusion.slimming import prune_diffusion_structured
from rose.diffusion.steps import step_weights
from rose.diffusion.trajectory import Trajectory, draw_pictures, record_trajectory
from rose.errors import Cancelled, RoseError
from rose.layer.methods import METHODS, RECOMMENDED, LayerResult, Method, Settings, prune_layer, register
from rose.layer.methods.options import Option
from rose.layer.methods.toolkit import measured_result, prune_by_mask, prune_by_score, prune_by_sweep
from rose.layer.order import Order, OrderPlan, make_order, move_block, plan_order, register_order, sort_columns
from rose.layer.pattern import Pattern
from rose.layer.statistics import InputStatistics
from rose.layer.sweep import SweepTrace
from rose.model.check.checkpoint import CheckpointCheck, check_checkpoint
from rose.model.load.models import load_model, save_model
from rose.model.load.tokens import load_tokens
from rose.model.measure.damage import damage
from rose.model.measure.damage_report import DamageReport
from rose.model.measure.perplexity import perplexity
from rose.model.network.layers import prunable_layers
from rose.model.progress import Progress
from rose.model.run.prune import analyze_model, prune_model
from rose.model.run.rotation import rotate_heads
from rose.model.tune.parts import tune_model
from rose.model.tune.task import TuneReport
from rose.model.walk.walk import collect_statistics, visit_blocks
from rose.plugins import load_plugins
from rose.report import LayerRecord, RunReport
from rose.structured.methods import STRUCTURED
from rose.structured.slimming import prune_structured

__version__ = "0.1.0"  # pyproject.toml reads it here

__all__ = [
    "METHODS",
    "RECOMMENDED",
    "STRUCTURED",
    "Cancelled",
    "CheckpointCheck",
    "DamageReport",
    "DiffusionScores",
    "InputStatistics",
    "LayerRecord",
    "LayerResult",
    "Method",
    "Option",
    "Order",
    "OrderPlan",
    "Pattern",
    "Progress",
    "RoseError",
    "RunReport",
    "Settings",
    "SweepTrace",
    "Trajectory",
    "TuneReport",
    "analyze_model",
    "check_checkpoint",
    "collect_diffusion_statistics",
    "collect_statistics",
    "damage",
    "draw_pictures",
    "evaluate_diffusion",
    "evaluation_trajectory",
    "load_diffusion",
    "load_model",
    "load_plugins",
    "load_tokens",
    "make_order",
    "measured_result",
    "move_block",
    "perplexity",
    "plan_order",
    "prunable_layers",
    "prune_by_mask",
    "prune_by_score",
    "prune_by_sweep",
    "prune_diffusion",
    "prune_diffusion_structured",
    "prune_layer",
    "prune_model",
    "prune_structured",
    "record_trajectory",
    "register",
    "register_order",
    "rotate_heads",
    "save_diffusion",
    "save_model",
    "sort_columns",
    "step_diagonals",
    "step_weights",
    "trajectory_drift",
    "tune_model",
    "visit_blocks",
]


def __dir__() -> list[str]:
    """What completion offers: the public interface, without modules that imports have left."""
    return [*__all__, "__version__"]
