"""The public interface: `rose/__init__.py` imports each name at its first use, as torch takes seconds to import."""

from .diffusion.loading import load_diffusion as load_diffusion
from .diffusion.loading import save_diffusion as save_diffusion
from .diffusion.pruning import prune_diffusion as prune_diffusion
from .diffusion.pruning import step_diagonals as step_diagonals
from .diffusion.steps import step_weights as step_weights
from .diffusion.trajectory import Trajectory as Trajectory
from .diffusion.trajectory import draw_pictures as draw_pictures
from .diffusion.trajectory import record_trajectory as record_trajectory
from .diffusion.trajectory import trajectory_drift as trajectory_drift
from .errors import Cancelled as Cancelled
from .errors import RoseError as RoseError
from .layer.forecast import Forecast as Forecast
from .layer.forecast import best_shares as best_shares
from .layer.forecast import forecast as forecast
from .layer.forecast import forecasts as forecasts
from .layer.forecast import price_columns as price_columns
from .layer.methods import Settings as Settings
from .layer.methods import prune_layer as prune_layer
from .layer.methods.toolkit import prune_by_mask as prune_by_mask
from .layer.methods.toolkit import prune_by_score as prune_by_score
from .layer.methods.toolkit import prune_by_sweep as prune_by_sweep
from .layer.methods.toolkit import result_of as result_of
from .layer.order import Order as Order
from .layer.order import OrderPlan as OrderPlan
from .layer.order import Prices as Prices
from .layer.order import make_order as make_order
from .layer.order import move_block as move_block
from .layer.order import plan_order as plan_order
from .layer.order import register_order as register_order
from .layer.order import sort_columns as sort_columns
from .layer.pattern import RECOMMENDED as RECOMMENDED
from .layer.pattern import Pattern as Pattern
from .layer.registry import METHODS as METHODS
from .layer.registry import Method as Method
from .layer.registry import register as register
from .layer.result import LayerResult as LayerResult
from .layer.statistics import InputStatistics as InputStatistics
from .layer.trace import SweepTrace as SweepTrace
from .model.check.check import check_checkpoint as check_checkpoint
from .model.check.result import CheckpointCheck as CheckpointCheck
from .model.load.models import load_model as load_model
from .model.load.models import save_model as save_model
from .model.load.tokens import load_tokens as load_tokens
from .model.measure.damage import DamageReport as DamageReport
from .model.measure.damage import damage as damage
from .model.measure.perplexity import perplexity as perplexity
from .model.network.layers import prunable_layers as prunable_layers
from .model.progress import Progress as Progress
from .model.run.prune import analyze_model as analyze_model
from .model.run.prune import prune_model as prune_model
from .model.tune.task import TuneReport as TuneReport
from .model.tune.tuning import tune_model as tune_model
from .model.walk.walk import collect_statistics as collect_statistics
from .model.walk.walk import visit_blocks as visit_blocks
from .plugins import load_plugins as load_plugins
from .recipe.file import Recipe as Recipe
from .report import LayerRecord as LayerRecord
from .report import RunReport as RunReport
from .spec import Spec as Spec
from .spec import setting as setting
from .structured.methods import STRUCTURED as STRUCTURED
from .structured.slimming import prune_structured as prune_structured

__version__: str

def __dir__() -> list[str]: ...
