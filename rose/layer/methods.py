"""The registry of pruning methods: one function per method, one signature.

A method takes a layer's weight, what calibration knows of its input, and the settings; it returns a
`LayerResult`. It knows nothing of models. `@register(...)` makes it available everywhere: `prune_layer`,
`prune_model`, the command line and the app read the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from torch import Tensor

from rose.errors import RoseError
from rose.layer import error
from rose.layer.hessian import FIRST_RESCUE, MAX_DAMPING, DampedHessian, check_damping, damp
from rose.layer.loss import block_sums, importance
from rose.layer.options import Option, Value, complete_options
from rose.layer.order import Order, OrderPlan, check_order_name, check_threshold, make_order, plan_order
from rose.layer.pattern import Pattern, parse_sparsity, smallest, smallest_per_group, smallest_per_row
from rose.layer.statistics import InputStatistics, as_statistics, is_finite
from rose.layer.sweep import SweepTrace, block_budget, layer_budget, sweep

BUDGETS = ("block", "layer")
# For whoever wants the pruned model and not the study of one method: the least error among our own, for the cost of
# about four sweeps. `python -m tests.benchmarks.orders` and `python -m rose compare` measure it.
RECOMMENDED = "rose_dealt"


@dataclass(frozen=True)
class Settings:
    """How to prune one layer.

    Attributes:
        pattern: what share of the weights goes, or N:M.
        block_size: columns per block.
        damping: λ relative to the mean of diag(H).
        threshold: a layer is columnar if its relative range is above this.
        order: overrides the method's order: a name, an `Order`, or a permutation of the columns.
        budget: overrides the method's budget: "block" or "layer".
        trace: keep the weights after every block.
        options: the method's own options, complete and checked; see `Method.options`.
        held_out: inputs that calibration has not seen, for methods that choose by measuring.
    """

    pattern: Pattern
    block_size: int = 128
    damping: float = 0.01
    threshold: float = 0.5
    order: str | Order | Tensor | Sequence[int] | None = None
    budget: str | None = None
    trace: bool = False
    options: Mapping[str, Value] = field(default_factory=dict)
    held_out: InputStatistics | None = None


@dataclass(frozen=True)
class LayerResult:
    """What became of one layer.

    Attributes:
        weight: Ŵ, (out, in), dtype of W.
        mask: True = removed, (out, in).
        sparsity: realised fraction removed, 1 − parameters / size; without factors, the mean of `mask`.
        relative_error: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) on calibration inputs, without damping.
        column_error: Σ_rows e², (in,), original column order, under the damped H; sums to tr(ΔW H ΔWᵀ) + λ‖ΔW‖².
        block_error: the same per block, in the order visited; its running sum is the error against pruned blocks.
        plan: losses, relative range and whether the layer is columnar.
        order: the columns and blocks as visited.
        budget: "block", "layer", or "row" where each output row gives up the same number.
        damping: what was used, relative to the mean of diag(H); above the request where H was singular.
        added_damping: λ, absolute.
        trace: the sweep as it went, where asked for.
        method: name in the registry.
        low_rank: factors (out, rank) and (rank, in) that `weight` contains besides its sparse part, None for
            every method that only removes weights; `mask` is then that of the sparse part.
    """

    weight: Tensor
    mask: Tensor
    sparsity: float
    relative_error: float
    column_error: Tensor
    block_error: Tensor
    plan: OrderPlan
    order: Order
    budget: str
    damping: float
    added_damping: float
    trace: SweepTrace | None = field(repr=False)
    method: str
    low_rank: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def parameters(self) -> int:
        """Numbers that must be stored: kept weights, and every entry of the factors."""
        factors = sum(factor.numel() for factor in self.low_rank or ())
        return self.mask.numel() - int(self.mask.sum()) + factors


Prune = Callable[[Tensor, InputStatistics, Settings], LayerResult]


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        name: as typed on the command line.
        label: as shown to people.
        summary: one sentence, with the source.
        prune: (W, statistics, settings) -> LayerResult.
        sweeps: whether `order` and `budget` apply.
        options: what else can be chosen, by name.
        work: how many sweeps take as long, for estimates of time; those of the project were measured on 576 × 576,
            1536 × 576 and 576 × 1536.
    """

    name: str
    label: str
    summary: str
    prune: Prune
    sweeps: bool
    options: Mapping[str, Option] = field(default_factory=dict)
    work: float = 1


METHODS: dict[str, Method] = {}


def register(
    name: str,
    label: str,
    summary: str,
    *,
    sweeps: bool = False,
    options: Mapping[str, Option] | None = None,
    work: float = 1,
) -> Callable[[Prune], Prune]:
    """Decorator that adds a method to the registry; the last registration of a name wins.

    Args:
        name, label, summary, sweeps, options, work: see `Method`; the name is one word, as typed on a command line.

    Raises:
        RoseError: a name that is not one word.
    """
    if not name.isidentifier():
        raise RoseError(f"A method cannot be named {name!r}; take one word of letters, digits and underscores.")

    def add(prune: Prune) -> Prune:
        METHODS[name] = Method(name, label, summary, prune, sweeps, options or {}, work)
        return prune

    return add


def get_method(name: str) -> Method:
    """Looks a method up.

    Raises:
        RoseError: unknown name.
    """
    if name not in METHODS:
        raise RoseError(f"There is no method named {name!r}; choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def make_settings(
    method: str,
    *,
    sparsity: float | str | Pattern = 0.7,
    block_size: int = 128,
    damping: float = 0.01,
    threshold: float = 0.5,
    order: str | Order | Tensor | Sequence[int] | None = None,
    budget: str | None = None,
    trace: bool = False,
    options: Mapping[str, Value] | None = None,
    held_out: InputStatistics | None = None,
) -> Settings:
    """Settings of a method, complete, and checked as far as that can be done without a layer.

    Args:
        method: a name in the registry.
        sparsity: a ratio, or N:M such as "2:4".
        block_size, damping, threshold, order, budget, trace, options, held_out: see `Settings`.

    Raises:
        RoseError: bad input, in one sentence.
    """
    chosen = get_method(method)
    pattern = parse_sparsity(sparsity)
    pattern.check(pattern.of, block_size)  # its own groups always fit; the block size may not
    check_damping(damping)
    check_threshold(threshold)
    if not chosen.sweeps and (order is not None or budget is not None):
        raise RoseError(f"{chosen.label} does not sweep over columns, so order and budget do not apply to it.")
    if isinstance(order, str) and order != "rose":  # two-level or natural, as the layer is columnar or not
        check_order_name(order)
    if budget is not None and budget not in BUDGETS:
        raise RoseError(f"The budget must be one of {', '.join(BUDGETS)}, not {budget!r}.")
    complete = complete_options(chosen.label, chosen.options, options)
    return Settings(pattern, block_size, damping, threshold, order, budget, trace, complete, held_out)


def prune_layer(
    weight: Tensor,
    hessian: Tensor | InputStatistics,
    *,
    method: str = "rose",
    sparsity: float | str | Pattern = 0.7,
    block_size: int = 128,
    damping: float = 0.01,
    threshold: float = 0.5,
    order: str | Order | Tensor | Sequence[int] | None = None,
    budget: str | None = None,
    trace: bool = False,
    options: Mapping[str, Value] | None = None,
    held_out: Tensor | InputStatistics | None = None,
) -> LayerResult:
    """Prunes one weight matrix; W is not changed.

    Args:
        weight: W, (out, in), any float dtype; the arithmetic is float32.
        hessian: H, (in, in), or the layer's `InputStatistics`.
        method: a name in the registry.
        sparsity: a ratio, or N:M such as "2:4".
        block_size, damping, threshold, order, budget, trace: see `Settings`.
        options: the method's own options by name, such as {"rank_ratio": 0.3} for OATS; see `METHODS[name].options`.
        held_out: H or statistics of inputs that calibration has not seen; only methods that choose by measuring
            ("measured") look at them.

    Raises:
        RoseError: bad input, in one sentence.
    """
    settings = make_settings(
        method,
        sparsity=sparsity,
        block_size=block_size,
        damping=damping,
        threshold=threshold,
        order=order,
        budget=budget,
        trace=trace,
        options=options,
    )
    if not weight.is_floating_point():
        raise RoseError(f"W must be real floating-point numbers, not {weight.dtype}; dequantize it first.")
    if weight.ndim != 2 or weight.numel() == 0:
        raise RoseError(f"W must be a non-empty (out, in) matrix, but its shape is {tuple(weight.shape)}.")
    if not is_finite(weight):
        raise RoseError("W holds NaN or infinity; reload the checkpoint, or load it in float32.")
    settings.pattern.check(weight.shape[1], block_size)
    if held_out is not None:
        settings = replace(settings, held_out=as_statistics(held_out, weight))
    # A model's own parameter would otherwise record every step for a backward pass.
    return get_method(method).prune(weight.detach(), as_statistics(hessian, weight), settings)


def damped_hessian(statistics: InputStatistics, damping: float) -> DampedHessian:
    """The damped Hessian of these inputs. Layers and methods that share inputs come one after another, so the last
    two are remembered."""
    return _damped(statistics, statistics.tokens, damping)


@lru_cache(maxsize=2)
def _damped(statistics: InputStatistics, _tokens: int, damping: float) -> DampedHessian:
    """`_tokens` tells statistics that have grown since from those that have not."""
    return damp(statistics.hessian, damping)


def forget_hessians() -> None:
    """Lets go of the remembered Hessians and their factors, the largest thing in memory."""
    _damped.cache_clear()


def _factorize(statistics: InputStatistics, damping: float, order: Order) -> tuple[DampedHessian, Tensor]:
    """The damped Hessian, and U for this order."""
    damped = damped_hessian(statistics, damping)
    while True:
        try:
            return damped, damped.natural_factor if order.is_natural else damped.inverse_factor(order.permutation)
        except RoseError:  # a column order changes rounding, so a barely definite H may fail in one and not in another
            if damped.damping >= MAX_DAMPING:
                raise
            damped = damped_hessian(statistics, min(MAX_DAMPING, max(10 * damped.damping, FIRST_RESCUE)))


def _plan(weight: Tensor, statistics: InputStatistics, settings: Settings) -> OrderPlan:
    return plan_order(
        weight,
        statistics,
        sparsity=settings.pattern,
        block_size=settings.block_size,
        threshold=settings.threshold,
    )


def prune_by_sweep(
    weight: Tensor,
    statistics: InputStatistics,
    settings: Settings,
    *,
    method: str,
    order: str,
    budget: str,
    sum_saliency: bool = False,
) -> LayerResult:
    """A sweep with this order and budget, unless the settings override them.

    `order` "rose" is the two-level order on columnar layers and natural order on the others. `sum_saliency` chooses
    masks by w² (H_jj + 1/U_jj²) instead of w²/U_jj².
    """
    return sweep_and_factor(
        weight, statistics, settings, method=method, order=order, budget=budget, sum_saliency=sum_saliency
    )[0]


def sweep_and_factor(
    weight: Tensor,
    statistics: InputStatistics,
    settings: Settings,
    *,
    method: str,
    order: str,
    budget: str,
    sum_saliency: bool = False,
) -> tuple[LayerResult, DampedHessian, Tensor]:
    """As `prune_by_sweep`; also the damped Hessian, and U for the order visited, for those who go on from there."""
    plan = _plan(weight, statistics, settings)
    wanted = settings.order if settings.order is not None else order
    if isinstance(wanted, str) and wanted == "rose":
        wanted = "two_level" if plan.is_columnar else "natural"
    visited = make_order(plan, wanted)
    budget = settings.budget or budget
    pattern = settings.pattern
    damped, factor = _factorize(statistics, settings.damping, visited)
    dense = weight.float()
    # Dead columns never carried a signal: their weights cost nothing, so they are the first to go.
    live = dense.masked_fill(damped.dead, 0) if pattern.ratio > 0 else dense
    divisor = None
    if sum_saliency:
        divisor = (damped.matrix.diagonal()[visited.permutation] + factor.diagonal() ** -2).rsqrt()
    if budget == "layer" and not pattern.is_grouped:
        counts = layer_budget(live, factor, pattern, visited, divisor)
    else:  # N:M fixes how many weights every group gives up, so both budgets are the same
        counts = block_budget(pattern, weight.shape[0], visited.widths)
    swept = sweep(live, factor, visited, pattern, counts, damped.matrix if settings.trace else None, divisor)
    pruned = swept.weight.to(weight.dtype)
    result = LayerResult(
        weight=pruned,
        mask=swept.mask,
        sparsity=float(swept.mask.float().mean()),
        relative_error=error.relative_error(weight, pruned, statistics.hessian),
        column_error=swept.column_error,
        block_error=swept.block_error,
        plan=plan,
        order=visited,
        budget=budget,
        damping=damped.damping,
        added_damping=damped.added,
        trace=swept.trace,
        method=method,
    )
    return result, damped, factor


def prune_by_score(
    weight: Tensor, statistics: InputStatistics, settings: Settings, score: Tensor, *, method: str, budget: str
) -> LayerResult:
    """Removes the weights with the smallest scores and leaves the others as they are; see `mask_by_score`."""
    mask = mask_by_score(score, settings.pattern, budget)
    return prune_by_mask(weight, statistics, settings, mask, method=method, budget=budget)


def mask_by_score(score: Tensor, pattern: Pattern, budget: str) -> Tensor:
    """Mask of the smallest scores, True = removed, (out, in) bool.

    Args:
        score: (out, in) float, finite.
        budget: "layer" compares scores over the whole layer, "row" within each output row; under N:M either compares
            within each group.
    """
    if pattern.is_grouped:
        return smallest_per_group(score, pattern)
    if budget == "row":
        return smallest_per_row(score, pattern.count(score.shape[1]))
    return smallest(score, pattern.count(score.numel()))


def prune_by_mask(
    weight: Tensor, statistics: InputStatistics, settings: Settings, mask: Tensor, *, method: str, budget: str
) -> LayerResult:
    """Sets the masked weights to zero and leaves the others as they are; measured like a sweep in natural order."""
    return measured_result(
        weight, weight.masked_fill(mask, 0), mask, statistics, settings, method=method, budget=budget
    )


def measured_result(
    weight: Tensor,
    pruned: Tensor,
    mask: Tensor,
    statistics: InputStatistics,
    settings: Settings,
    *,
    method: str,
    budget: str,
    low_rank: tuple[Tensor, Tensor] | None = None,
) -> LayerResult:
    """The result of a method that does not sweep: its errors are accounted as by a sweep in natural order.

    Args:
        weight, pruned: W and Ŵ, (out, in), same dtype.
        mask: True = removed, of the sparse part where there are factors.
    """
    plan = _plan(weight, statistics, settings)
    damped = damped_hessian(statistics, settings.damping)
    live_change = (weight.float() - pruned.float()).masked_fill(damped.dead, 0)
    columns = error.column_error(live_change, damped.natural_factor)
    natural = make_order(plan, "natural")
    result = LayerResult(
        weight=pruned,
        mask=mask,
        sparsity=0.0,
        relative_error=error.relative_error(weight, pruned, statistics.hessian),
        column_error=columns,
        block_error=block_sums(columns, natural.widths),
        plan=plan,
        order=natural,
        budget=budget,
        damping=damped.damping,
        added_damping=damped.added,
        trace=None,
        method=method,
        low_rank=low_rank,
    )
    return replace(result, sparsity=1 - result.parameters / mask.numel())


@register(
    "rose",
    "ROSE",
    "SparseGPT with two-level column order on columnar layers (arXiv 2603.05878).",
    sweeps=True,
)
def rose(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Two-level order where the layer is columnar, else natural; block budget."""
    return prune_by_sweep(weight, statistics, settings, method="rose", order="rose", budget="block")


@register(
    "rose_global",
    "ROSE global",
    "Ours: global column order with a layer-wide budget.",
    sweeps=True,
)
def rose_global(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Global order, descending column loss of a layer-wide pre-pruning; layer budget."""
    return prune_by_sweep(weight, statistics, settings, method="rose_global", order="global", budget="layer")


@register(
    "sparsegpt",
    "SparseGPT",
    "Natural column order, the same ratio in every block, with compensation (Frantar and Alistarh 2023).",
    sweeps=True,
)
def sparsegpt(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget."""
    return prune_by_sweep(weight, statistics, settings, method="sparsegpt", order="natural", budget="block")


@register(
    "sensitivity",
    "Sensitivity-aware",
    "SparseGPT with masks chosen by w²·(H_jj + 1/[H⁻¹]_jj), the improved saliency of Shao et al. 2024.",
    sweeps=True,
)
def sensitivity(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """Natural order, block budget; the sum of the saliencies of Optimal Brain Damage and Surgeon decides.

    As in SparseGPT's sweep, [H⁻¹]_jj is that of the columns not yet visited, which is U_jj².
    """
    return prune_by_sweep(
        weight, statistics, settings, method="sensitivity", order="natural", budget="block", sum_saliency=True
    )


@register("wanda", "Wanda", "Smallest |W|·‖x‖ of every output row, no compensation (Sun et al. 2024).")
def wanda(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """|W|·sqrt(mean x_j²), compared within each output row (Sun et al. 2024, section 3)."""
    score = importance(weight, statistics.mean_square)
    return prune_by_score(weight, statistics, settings, score, method="wanda", budget="row")


@register("magnitude", "Magnitude", "Smallest |W| of the layer, no calibration, no compensation (Han et al. 2015).")
def magnitude(weight: Tensor, statistics: InputStatistics, settings: Settings) -> LayerResult:
    """|W|, compared over the whole layer."""
    return prune_by_score(weight, statistics, settings, weight.float().abs(), method="magnitude", budget="layer")
