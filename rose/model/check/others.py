"""The tensors besides the layers: norms, biases, embeddings, the output head and ties; and the attention heads and
experts without any weight left."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from rose.model.check.agreement import COLUMN, ROW
from rose.model.check.change import UNLIKE, WeightChange, rounded_to
from rose.model.check.inputs import Pair
from rose.model.check.verdicts import LayerVerdict, Verdict
from rose.model.network.layers import PrunableLayer, head_width
from rose.model.network.network import Network
from rose.wording import count, listing, number, percent, sentence, short_text, whole

TELLING = 16  # fewest numbers whose cosine is judged
MUCH = 0.4  # of a tensor's norm, which no pruning or tuning moves it by
# Fields of configurations by which the same weights compute something else; others tell sizes, files and defaults.
COMPUTING = re.compile(
    r"rope_theta|\w*factor|\w*(_eps|epsilon|multiplier|scalar|scaling|softcapping)|\w*window|hidden_act\w*|activation\w*"
    r"|num_(attention|key_value)_heads|head_dim|num_experts_per_tok|norm_topk_prob|model_type"
)
COLUMNS = ("name", "kind", "change", "verdict", "reason", "is_wrong")
Row = dict[str, object]
Changes = Mapping[str, tuple[PrunableLayer, WeightChange]]  # by name of the layer


def table_of(rows: Sequence[Row]) -> pd.DataFrame:
    """Of what differs outside the layers: `kind` is "norm", "bias", "embedding", "output head", "configuration" or
    "other"; `change` is ‖now − before‖/‖before‖, NaN where that says nothing."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"is_wrong": bool})


def others_in_block(prefix: str, blocks: tuple[nn.Module, nn.Module], pairs: Sequence[Pair]) -> list[Row]:
    """Those of one decoder block, present in the dense model and in the other; `prefix`: its dotted name."""
    layers = {id(layer.parameter) for pair in pairs for layer in pair}
    before, after = (
        {f"{prefix}.{name}": value for name, value in parameters.items() if id(value) not in layers}
        for parameters in (dict(block.named_parameters(remove_duplicate=False)) for block in blocks)
    )
    kinds = {f"{prefix}.{name}": kind for block in blocks for name, kind in _kinds(block).items()}
    return _compare(before, after, kinds)


def others_outside(dense: Network, pruned: Network) -> list[Row]:
    """Those outside the decoder blocks, and ties that are torn."""
    head = dense.model.get_output_embeddings()  # type: ignore[operator]
    heads = {f"{name}.weight" for name, module in dense.model.named_modules() if module is head}
    kinds = {name: "output head" if name in heads else kind for name, kind in _kinds(dense.model).items()}
    first: dict[int, str] = {}
    every = dense.model.named_parameters(remove_duplicate=False)
    ties = {name: twin for name, value in every if (twin := first.setdefault(id(value), name)) != name}
    with _outside(dense) as before, _outside(pruned) as after:
        single = [{name: value for name, value in each.items() if name not in ties} for each in (before, after)]
        rows = _compare(single[0], single[1], kinds)
        for name, twin in ties.items():
            if name in after and twin in after and not torch.equal(after[name], after[twin]):
                reason = f"It is one tensor with {twin} in the dense model, and another one here."
                rows.append({"name": name, "kind": kinds[name], "change": nan})
                rows[-1] |= vars(LayerVerdict(Verdict.TIE_TORN, reason, True))
    return [*rows, *_configuration(dense.config.to_dict(), pruned.config.to_dict())]


def _configuration(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Row]:
    """A row for each field by which the models compute otherwise. GGUF files round numbers and lack fields."""
    dense, pruned = (fields | (fields.get("rope_parameters") or {}) for fields in (before, after))
    for name in filter(COMPUTING.fullmatch, dense):
        pair: Any = dense[name], pruned.get(name)
        is_number = all(isinstance(value, int | float) for value in pair)
        if None not in pair and not (math.isclose(*pair, rel_tol=1e-4) if is_number else pair[0] == pair[1]):
            reason = f"It is {short_text(pair[1])} here and {short_text(pair[0])} in the dense model."
            verdict = LayerVerdict(Verdict.OTHER_MODEL, reason, True)
            yield {"name": name, "kind": "configuration", "change": nan, **vars(verdict)}


@contextmanager
def _outside(network: Network) -> Iterator[Mapping[str, Tensor]]:
    """Parameters outside the decoder blocks by name; a streamed model's are read."""
    inside = {id(parameter) for parameter in network.blocks.parameters()}
    with network.embedding():
        every = network.model.named_parameters(remove_duplicate=False)
        outside = {name: value for name, value in every if id(value) not in inside}
        stored = getattr(network.residence, "files", {})
        for name, value in list(outside.items()):
            if value.is_meta and name in stored:
                outside[name] = network.residence.read(name)  # type: ignore[attr-defined]
        yield {name: value for name, value in outside.items() if not value.is_meta}


def _kinds(module: nn.Module) -> dict[str, str]:
    """By name of parameter."""
    kinds = {}
    for owner_name, owner in module.named_modules():
        for leaf, value in owner.named_parameters(recurse=False, remove_duplicate=False):
            kind = "norm" if value.ndim == 1 else "other"
            kind = "embedding" if isinstance(owner, nn.Embedding) else "bias" if leaf.endswith("bias") else kind
            kinds[f"{owner_name}.{leaf}" if owner_name else leaf] = kind
    return kinds


def _compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor], kinds: Mapping[str, str]) -> list[Row]:
    """A row for each tensor that is not as it was."""
    rows: list[Row] = []
    for name in dict.fromkeys((*before, *after)):
        kind, dense, pruned = kinds.get(name, "other"), before.get(name), after.get(name)
        change, verdict = nan, None
        if dense is None:
            verdict = LayerVerdict(Verdict.NO_FAULT, "The dense model has no such tensor.", False)
        elif pruned is not None:
            change, verdict = _judge(kind, dense, pruned.to(dense.device))
        elif dense.any():
            verdict = LayerVerdict(Verdict.OTHER_MODEL, "The dense model has it, and this one does not.", True)
        if verdict is not None:
            rows.append({"name": name, "kind": kind, "change": change, **vars(verdict)})
    return rows


def _judge(kind: str, before: Tensor, after: Tensor) -> tuple[float, LayerVerdict | None]:
    """‖after − before‖/‖before‖ and a verdict; None where nothing changed but by rounding."""
    has_rows = kind in ("embedding", "output head")
    if has_rows and len(after) > len(before) and before.shape[1:] == after.shape[1:]:
        change, verdict = _judge(kind, before, after[: len(before)])
        longer = f"It has {whole(len(after) - len(before))} rows more than in the dense model."
        if verdict is None:
            return change, LayerVerdict(Verdict.NO_FAULT, longer, False)
        return change, replace(verdict, reason=f"{longer} {verdict.reason}")
    if before.shape != after.shape:
        reason = f"It is of shape {tuple(after.shape)} here and of {tuple(before.shape)} in the dense model."
        return nan, LayerVerdict(Verdict.OTHER_MODEL, reason, True)
    if broken := after.numel() - int(torch.isfinite(after).sum()):
        reason = f"{whole(broken)} of {whole(after.numel())} numbers are NaN or infinite."
        return nan, LayerVerdict(Verdict.NUMBERS_BROKEN, reason, True)
    if torch.equal(before, after) or rounded_to(before, after):
        return 0.0, None
    if not after.any():
        return 1.0, LayerVerdict(Verdict.NUMBERS_BROKEN, f"All {whole(after.numel())} numbers are zero.", True)
    dense, pruned = before.float().flatten(), after.float().flatten()
    norm = dense.norm().item()
    change = (pruned - dense).norm().item() / norm if norm else nan
    cosine = torch.cosine_similarity(dense, pruned, dim=0).item()
    if kind != "bias" and after.numel() >= TELLING and norm and cosine < UNLIKE:
        reason = f"It has a cosine of {number(cosine, 2)} with the dense one; {UNLIKE} is the least."
        return change, LayerVerdict(Verdict.OTHER_MODEL, reason, True)
    moved = f"It moved by {percent(change)} of its norm." if norm else "It moved from zero."
    if kind in ("bias", "other") or not norm:
        return change, LayerVerdict(Verdict.NO_FAULT, moved, False)
    parts = _odd_rows(*(each.float().reshape(len(each), -1) for each in (before, after)))
    fault = Verdict.OTHER_MODEL if change > MUCH else Verdict.PART_BROKEN if parts else Verdict.NO_FAULT
    return change, LayerVerdict(fault, f"{moved} {parts}".rstrip(), fault != Verdict.NO_FAULT)


def _odd_rows(before: Tensor, after: Tensor) -> str:
    """Rows of an embedding, or numbers of a norm, (numbers, 1), reversed or of another size: a sentence, or "".
    Rows that were small before may have been for no token."""
    noun, size = (ROW if before.shape[1] > 1 else "number"), before.norm(dim=1)
    odd = torch.cosine_similarity(before, after) < UNLIKE
    odd |= (after.norm(dim=1) / size).log().abs() > math.log(2)
    places = [whole(int(place)) for place in (odd & (size > size.median() / 2)).nonzero().flatten()]
    names = f"{sentence(noun)}{'s' * (len(places) > 1)} {listing(places)}"
    return f"{names} turned round, or changed in size by more than 2 times." if places else ""


@dataclass(frozen=True)
class Gone:
    """Parts without any weight left that had weights in the dense model."""

    heads: dict[str, list[int]]  # numbers of attention heads by output projection
    experts: list[str]  # names, such as "model.layers.0.mlp.experts.3"
    outputs: dict[str, int]  # columns of a head by output projection

    @classmethod
    def find(cls, changes: Changes, config: Any) -> Gone:
        """`config` belongs to the language model."""
        outputs, heads = _output_projections(changes, config), {}
        for name, width in outputs.items():
            change = changes[name][1]
            sizes = Counter(column // width for column in change.empty_columns)
            numbers = [number for number, size in sizes.items() if size == width]
            if numbers and change.zeros < change.size:
                heads[name] = numbers
        left: dict[str, bool] = {}  # experts, up to their number, that have a nonzero layer
        for name, (layer, change) in changes.items():
            parts = layer.projection.split(".")
            place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
            if place is not None:
                expert = name.removesuffix("." + ".".join(parts[place + 1 :]))
                was_empty = change.zeros_before == change.size
                left[expert] = left.get(expert, False) or change.zeros < change.size or was_empty
        return cls(heads, [expert for expert, is_left in left.items() if not is_left], outputs)

    def row(self, changes: Iterable[WeightChange]) -> dict[str, Any]:
        """For a summary; rows and columns of layers that have weights."""
        live = [change for change in changes if change.zeros < change.size]
        return {
            "rows": sum(len(change.empty_rows) for change in live),
            "columns": sum(len(change.empty_columns) for change in live),
            "heads": [f"{layer}: {number}" for layer, numbers in self.heads.items() for number in numbers],
            "experts": self.experts,
        }

    def says(self, layer: str, change: WeightChange) -> str:
        """Sentences on one layer: in which heads its misfits lie, and what is gone; "" without either."""
        parts = []
        if change.zeros < change.size:
            sizes = {"row": len(change.empty_rows), "column": len(change.empty_columns)}
            parts += [count(size, noun) for noun, size in sizes.items() if size]
        parts += [_heads(numbers) for numbers in [self.heads.get(layer)] if numbers]
        parts += ["this expert"] if any(layer.startswith(f"{expert}.") for expert in self.experts) else []
        return self._says_misfits(layer, change) + (f" Nothing is left of {', '.join(parts)}." if parts else "")

    def _says_misfits(self, layer: str, change: WeightChange) -> str:
        """Heads own columns of an output projection, and rows of the layers beside it."""
        module = layer.rpartition(".")[0]
        beside = next((width for name, width in self.outputs.items() if name.rpartition(".")[0] == module), 0)
        axis, width = (COLUMN, self.outputs[layer]) if layer in self.outputs else (ROW, beside)
        numbers: set[int] = set()
        for part in change.misfits:
            first, last = part.columns if axis == COLUMN else part.rows
            if width and part.axis == axis and not part.may_be_lawful:
                numbers |= {*range(-(-first // width), (last + 1) // width)}  # whole heads
        return f" {axis.capitalize()}s of {_heads(numbers)}." if numbers else ""


def _heads(numbers: Iterable[int]) -> str:
    names = [*map(str, sorted(numbers))]
    return f"head{'s' if len(names) > 1 else ''} {listing(names)}"


def _output_projections(changes: Changes, config: Any) -> dict[str, int]:
    """Columns of a head, by name of the layers that read all heads: the last layer of a module that has others."""
    try:
        heads, width = config.num_attention_heads, head_width(config)
    except (AttributeError, RuntimeError):  # of transformers, where decoder blocks have different ones
        return {}
    modules: dict[str, list[str]] = {}
    for name in changes:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    last = [names[-1] for names in modules.values() if len(names) > 1]
    return {name: width for name in last if width and changes[name][1].shape[1] == width * heads}
