"""The sparsity of each layer of a model: the same, by outliers (OWL), by the curvature of the loss, or by damage.

The total is exact for layers of any sizes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rose.errors import RoseError
from rose.interrupt import is_stoppable, stop_point
from rose.layer.loss import importance
from rose.layer.pattern import Pattern
from rose.model.defaults import BY_DAMAGE, DENSITY_SPREAD
from rose.model.network.experts import ExpertLinear, experts_apart
from rose.model.network.layers import PrunableLayer
from rose.model.network.network import WEIGHTS, Network, check_same_model, read_norms
from rose.model.network.residence import evaluating, gradients_only_of
from rose.model.network.stand_ins import hooked
from rose.model.rules import DAMAGE_SPREAD, Allocation
from rose.model.run.one_layer import is_left_dense
from rose.model.walk.forward import hidden_of, no_input
from rose.model.walk.walk import BlockStatistics, statistics_of
from rose.verdicts import is_same_model

# Hutchinson's probes: one for each window, cut to this length. A second derivative takes about four forward passes, and
# keeps every attention matrix: 7 GB for 512 tokens of the packaged model.
TRACE_SAMPLES, TRACE_LENGTH = 16, 512

OUTLIER_FACTOR = 5.0  # M of OWL
OWL_SPREAD = 0.08  # λ of OWL
# How fast damage grows with sparsity, d(s) ∝ exp(g·s). From the loss of the whole packaged model in docs/results.md:
# SparseGPT's rises 3.7-fold from 50 to 70 %, g = 6.5, and 2.9-fold from 60 to 80 %, g = 5.3.
DAMAGE_GROWTH = 6.0


def allocate(
    network: Network,
    tokens: Tensor,
    layers: Sequence[PrunableLayer],
    pattern: Pattern,
    allocation: Allocation,
    dense_blocks: Callable[[], Iterable[BlockStatistics]],
    tick: Callable[[float], None] = lambda share: None,
) -> dict[str, Pattern]:
    """The pattern of each of the layers to prune; together they remove exactly round(ratio · weights).

    `dense_blocks` gives OWL statistics of the dense model by decoder block; `tick` takes the share done and may raise
    to stop. Raises RoseError for damages of another model, and for a layer without damage or finite curvature.
    """
    if allocation.rule == "uniform":
        return {layer.name: pattern for layer in layers}
    ratio, reach = pattern.ratio, 1.0
    if allocation.rule == "owl":
        shares = _outlier_shares(dense_blocks())
        ratios = owl_ratios([shares[layer.block_index] for layer in layers], ratio)
    elif allocation.rule == BY_DAMAGE:
        ratios, reach = damage_ratios(_damage_densities(network, allocation, layers), ratio), DAMAGE_SPREAD
    else:
        traces = hessian_traces(network, tokens[:TRACE_SAMPLES, :TRACE_LENGTH], layers, tick=tick)
        for layer, trace in zip(layers, traces, strict=True):
            if not math.isfinite(trace):
                raise RoseError(f"The loss has no finite curvature by {layer.name}; load the model in float32.")
        # The estimate and the trace itself may be negative, because the loss is not convex. The paper takes |mean|.
        per_weight = [abs(trace) / layer.weight.numel() for layer, trace in zip(layers, traces, strict=True)]
        ratios = sensitivity_ratios(per_weight, ratio, allocation.spread)
    exact = exact_ratios(ratios, [layer.weight.numel() for layer in layers], ratio, reach)
    return {layer.name: Pattern(share) for layer, share in zip(layers, exact, strict=True)}


def _outlier_shares(blocks: Iterable[BlockStatistics]) -> dict[int, float]:
    """Outlier share of each decoder block, by its index; the smallest share for a block that no token reached."""
    shares: dict[int, float] = {}
    unreached = []
    for block in blocks:
        inputs = [
            (layer.weight, statistics_of(layer, block.calibration).mean_square)
            for layer in block.layers
            if not is_left_dense(layer, block.calibration)
        ]
        if inputs:
            shares[block.block_index] = outlier_share([importance(w.to(x.device), x) for w, x in inputs])
        else:
            unreached.append(block.block_index)
    return shares | dict.fromkeys(unreached, min(shares.values(), default=0.0))


def hessian_traces(
    network: Network,
    tokens: Tensor,
    layers: Sequence[PrunableLayer],
    *,
    seed: int = 0,
    tick: Callable[[float], None] = lambda share: None,
) -> list[float]:
    """Hutchinson's estimate of the trace of the loss Hessian with respect to each layer's weights.

    The trace is the mean of vᵀ(∇²loss)v over random signs v; ∇²loss·v is a second backward pass. All layers share a
    probe: terms between layers have mean zero. The loss is the mean cross-entropy of next tokens in a window, averaged
    over windows. Raises RoseError for tokens too short to predict anything, or a layer that no token reaches.
    """
    network.check_tokens(tokens, "Sensitivity")
    weights = {layer.name: layer.parameter for layer in layers}
    model, generator = network.model, torch.Generator().manual_seed(seed)
    hooks = [block.register_forward_hook(_stop_behind) for block in network.blocks] if is_stoppable() else []
    # Not every kernel for fused experts has a second derivative.
    apart = experts_apart(model)
    with hooked(hooks), gradients_only_of(model, weights.values()), evaluating(model, network.device), apart:
        totals = torch.zeros(len(layers), dtype=torch.float64)
        for number, window in enumerate(tokens.clone()):  # tensors of inference mode cannot be saved for backward
            products = _probe(model, window.to(network.device), weights, generator)
            sums = []
            for layer, module in ((layer, layer.module) for layer in layers):
                part = products[layer.name]
                part = module.part_of(part) if isinstance(module, ExpertLinear) else part
                sums.append(float(part.sum(dtype=torch.float32)))
            totals += torch.tensor(sums, dtype=torch.float64)
            tick((number + 1) / len(tokens))
    return (totals / len(tokens)).tolist()


def _stop_behind(_block: nn.Module, _inputs: Any, output: Any) -> None:
    """Allows a stop where either backward pass leaves this decoder block."""

    def on_the_way(gradient: Tensor) -> None:
        stop_point()
        if gradient.requires_grad:  # a second backward pass goes through this pass
            gradient.register_hook(on_the_way)

    hidden = hidden_of(output)
    if hidden.requires_grad:
        hidden.register_hook(on_the_way)


def _probe(
    model: nn.Module, window: Tensor, parameters: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """v ⊙ (∇²loss)v of each layer's parameter, for one draw of signs v; its sums are vᵀ(∇²loss)v."""
    unique = {id(weight): weight for weight in parameters.values()}
    weights = list(unique.values())
    # The fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits.float(), window[1:].long())
        gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        missed = [weight for weight, gradient in zip(unique, gradients, strict=True) if gradient is None]
        for name, weight in parameters.items():
            if id(weight) in missed:
                raise no_input(name)
        signs = []
        for weight in weights:
            stop_point()
            signs.append(torch.randint(0, 2, weight.shape, generator=generator).mul(2).sub(1).to(weight))
        slope = torch.stack([(g * v).sum().float() for g, v in zip(gradients, signs, strict=True)]).sum()
        products = torch.autograd.grad(slope, weights)
    by_weight = {key: v * p for key, v, p in zip(unique, signs, products, strict=True)}
    return {name: by_weight[id(weight)] for name, weight in parameters.items()}


def outlier_share(scores: Sequence[Tensor]) -> float:
    """Share of importances above 5 times their mean, over all matrices of a decoder block (OWL, Yin et al. 2024,
    equation 1)."""
    size = sum(score.numel() for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / size
    return sum(int((score > OUTLIER_FACTOR * mean).sum()) for score in scores) / size


def owl_ratios(shares: Sequence[float], ratio: float) -> list[float]:
    """Ratios that fall with the outlier share of each layer's decoder block, in a band 2λ wide around their mean
    `ratio` (OWL, Yin et al. 2024, section 3.2)."""
    low, high = min(shares), max(shares)
    if high == low:
        return [ratio] * len(shares)
    scaled = [2 * OWL_SPREAD * (share - low) / (high - low) for share in shares]
    mean = sum(scaled) / len(scaled)
    return [ratio - value + mean for value in scaled]


def sensitivity_ratios(sensitivities: Sequence[float], ratio: float, spread: float = DENSITY_SPREAD) -> list[float]:
    """Densities from 1 − ratio − α to 1 − ratio + α, linear in the rank of |mean trace of the loss Hessian| / size
    (Shao et al. 2024, section 3.3). Ties by position; a single layer gets `ratio`. `spread` is α."""
    last = len(sensitivities) - 1
    if last < 1:
        return [ratio] * len(sensitivities)
    ratios = [0.0] * (last + 1)
    for rank, layer in enumerate(sorted(range(last + 1), key=lambda i: sensitivities[i])):
        ratios[layer] = ratio + spread * (1 - 2 * rank / last)
    return ratios


def _damage_densities(network: Network, allocation: Allocation, layers: Sequence[PrunableLayer]) -> list[float]:
    """Damage per weight of each layer, or of its decoder block, at least its standard error."""
    folder, wrong_model = allocation.place, f"The damages in {allocation.folder} are those of another model"
    if norms := read_norms(folder / "summary.json"):
        check_same_model(network, norms, wrong_model)
    weights = read_norms(folder / "settings.json", WEIGHTS)
    records = {record.unit: record for record in allocation.damages}
    densities = []
    for layer in layers:
        record = records.get(layer.name) or records.get(layer.name.removesuffix("." + layer.projection))
        if record is None:
            raise RoseError(f"The damage of {layer.name} has not been measured; measure it, or leave the layer out.")
        if not math.isfinite(record.damage):
            raise RoseError(f"The damage of {record.unit} is {record.damage}, so that nothing can be shared by it.")
        if record.unit == layer.name and record.weights != layer.weight.numel():
            raise RoseError(
                f"{layer.name} had {record.weights} weights when its damage was measured and has "
                f"{layer.weight.numel()} now; measure the damage of this model."
            )
        noise = 0.0 if math.isnan(record.standard_error) else record.standard_error
        densities.append(max(record.damage, noise) / record.weights)
    if weights and not is_same_model(network.weight_norms(), weights):
        raise RoseError(f"{wrong_model}: its weights differ, for example by pruning; measure this model.")
    return densities


def damage_ratios(densities: Sequence[float], ratio: float) -> list[float]:
    """Ratios that minimize the sum of damages if each grows as d·exp(g(s − ratio)) with its sparsity s.

    With n weights in a layer and one total of n·s, Lagrange's condition is g·d·exp(g(s − ratio)) = λn for every layer.
    So s falls with the logarithm of damage per weight: s = const − ln(d/n)/g. `exact_ratios` finds the constant.
    Damages of single layers are assumed to add up, which docs/damage.md checks. Our own.

    `densities`: d/n of each layer, measured at `ratio`; 0 if none was measured.
    """
    measured = [math.log(density) for density in densities if density > 0]
    if not measured:
        return [ratio] * len(densities)
    middle, least = sum(measured) / len(measured), min(measured)
    logs = [math.log(density) if density > 0 else least for density in densities]
    return [ratio - (log - middle) / DAMAGE_GROWTH for log in logs]


def exact_ratios(ratios: Sequence[float], sizes: Sequence[int], ratio: float, reach: float = 1.0) -> list[float]:
    """Shifts ratios by one amount so that round(ratio · total) weights go in all.

    Ratios may lie outside 0 to 1. Results lie inside, and at most `reach` from the target, within one weight of the
    layer. Each result is a whole number of weights over the layer's size. So methods that count over the layer meet the
    total exactly; methods that count per row or block round as usual.
    """
    if not 0 <= ratio <= 1:
        raise RoseError(f"The ratio must be a number from 0 to 1, not {ratio!r}.")
    total = round(ratio * sum(sizes))
    least, most = max(ratio - reach, 0.0), min(ratio + reach, 1.0)

    def removed(shift: float) -> list[float]:
        return [min(max(value + shift, least), most) * size for value, size in zip(ratios, sizes, strict=True)]

    # The total rises with the shift, from the least to the most that layers can give.
    low, high = least - max(ratios), most - min(ratios)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(removed(middle)) < total else (low, middle)
    exact = removed(high)
    counts = [int(count) for count in exact]
    # Largest remainders first, but not in layers that are already full.
    by_remainder = sorted(range(len(sizes)), key=lambda i: counts[i] - exact[i])
    missing = total - sum(counts)
    while missing:
        step = 1 if missing > 0 else -1
        for i in by_remainder if step > 0 else reversed(by_remainder):
            if missing and 0 <= counts[i] + step <= sizes[i]:
                counts[i] += step
                missing -= step
    return [count / size for count, size in zip(counts, sizes, strict=True)]
