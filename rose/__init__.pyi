"""The public interface: `rose/__init__.py` imports each name at its first use, as torch takes seconds to import."""

from .errors import Cancelled as Cancelled
from .errors import RoseError as RoseError
from .layer.methods import prune_layer as prune_layer
from .layer.methods.toolkit import prune_by_score as prune_by_score
from .layer.methods.toolkit import prune_by_sweep as prune_by_sweep
from .layer.methods.toolkit import result_of as result_of
from .layer.order import Order as Order
from .layer.order import OrderPlan as OrderPlan
from .layer.order import make_order as make_order
from .layer.order import plan_order as plan_order
from .layer.order import register_order as register_order
from .layer.order import sort_columns as sort_columns
from .layer.registry import METHODS as METHODS
from .layer.registry import register as register
from .layer.result import LayerResult as LayerResult
from .layer.split import split_error as split_error
from .layer.statistics import InputStatistics as InputStatistics
from .model.check.check import check_checkpoint as check_checkpoint
from .model.load.models import load_model as load_model
from .model.load.models import save_model as save_model
from .model.load.tokens import load_tokens as load_tokens
from .model.measure.damage import damage as damage
from .model.measure.perplexity import perplexity as perplexity
from .model.network.layers import prunable_layers as prunable_layers
from .model.progress import Progress as Progress
from .model.run.prune import analyze_model as analyze_model
from .model.run.prune import prune_model as prune_model
from .model.tune.tuning import tune_model as tune_model
from .model.walk.walk import collect_statistics as collect_statistics
from .model.walk.walk import visit_blocks as visit_blocks
from .plugins import load_plugins as load_plugins
from .recipe.file import Recipe as Recipe
from .report import LayerRecord as LayerRecord
from .report import RunReport as RunReport
from .spec import Spec as Spec
from .spec import setting as setting
from .structured.slimming import prune_structured as prune_structured

__version__: str

def __dir__() -> list[str]: ...
