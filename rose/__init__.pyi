"""The public interface: `rose/__init__.py` imports each name at its first use, as torch takes seconds to import."""

from .diffusion.evaluation import DiffusionScores as DiffusionScores
from .diffusion.evaluation import evaluate_diffusion as evaluate_diffusion
from .diffusion.evaluation import evaluation_trajectory as evaluation_trajectory
from .diffusion.evaluation import trajectory_drift as trajectory_drift
from .diffusion.loading import load_diffusion as load_diffusion
from .diffusion.loading import save_diffusion as save_diffusion
from .diffusion.pruning import collect_diffusion_statistics as collect_diffusion_statistics
from .diffusion.pruning import prune_diffusion as prune_diffusion
from .diffusion.pruning import step_diagonals as step_diagonals
from .diffusion.slimming import prune_diffusion_structured as prune_diffusion_structured
from .diffusion.steps import step_weights as step_weights
from .diffusion.trajectory import Trajectory as Trajectory
from .diffusion.trajectory import draw_pictures as draw_pictures
from .diffusion.trajectory import record_trajectory as record_trajectory
from .errors import Cancelled as Cancelled
from .errors import RoseError as RoseError
from .layer.defaults import RECOMMENDED as RECOMMENDED
from .layer.methods import LayerResult as LayerResult
from .layer.methods import Settings as Settings
from .layer.methods import prune_layer as prune_layer
from .layer.methods.toolkit import measured_result as measured_result
from .layer.methods.toolkit import prune_by_mask as prune_by_mask
from .layer.methods.toolkit import prune_by_score as prune_by_score
from .layer.methods.toolkit import prune_by_sweep as prune_by_sweep
from .layer.options import Option as Option
from .layer.order import Order as Order
from .layer.order import OrderPlan as OrderPlan
from .layer.order import make_order as make_order
from .layer.order import move_block as move_block
from .layer.order import plan_order as plan_order
from .layer.order import register_order as register_order
from .layer.order import sort_columns as sort_columns
from .layer.pattern import Pattern as Pattern
from .layer.registry import METHODS as METHODS
from .layer.registry import Method as Method
from .layer.registry import register as register
from .layer.statistics import InputStatistics as InputStatistics
from .layer.sweep import SweepTrace as SweepTrace
from .model.check.check import CheckpointCheck as CheckpointCheck
from .model.check.check import check_checkpoint as check_checkpoint
from .model.load.models import load_model as load_model
from .model.load.models import save_model as save_model
from .model.load.tokens import load_tokens as load_tokens
from .model.measure.damage import damage as damage
from .model.measure.damage_report import DamageReport as DamageReport
from .model.measure.perplexity import perplexity as perplexity
from .model.network.layers import prunable_layers as prunable_layers
from .model.progress import Progress as Progress
from .model.run.prune import analyze_model as analyze_model
from .model.run.prune import prune_model as prune_model
from .model.run.rotation import rotate_heads as rotate_heads
from .model.tune.parts import tune_model as tune_model
from .model.tune.task import TuneReport as TuneReport
from .model.walk.walk import collect_statistics as collect_statistics
from .model.walk.walk import visit_blocks as visit_blocks
from .plugins import load_plugins as load_plugins
from .recipe.file import Recipe as Recipe
from .report import LayerRecord as LayerRecord
from .report import RunReport as RunReport
from .structured.methods import STRUCTURED as STRUCTURED
from .structured.slimming import prune_structured as prune_structured

__version__: str

def __dir__() -> list[str]: ...
