"""The rise of the loss when one layer or decoder block is changed alone, measured on a copy. No Streamlit here."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from torch import nn

import rose
from app import words
from app.jobs import Job, Run
from app.study.setup import INPUTS, Setup, check_memory
from app.study.study import LoadedModel
from rose.files import expand, reachable
from rose.layer.pattern import METHOD, THRESHOLD
from rose.layer.settings import LayerSettings
from rose.model.estimate import Cost, estimate_damage, sweeps_of
from rose.model.measure.damage import WHOLE, DamageRecord, DamageReport, dense_weights, units_of
from rose.model.network.network import Network
from rose.recipe.steps import Damage
from rose.rows import records_table


def recipe_of(
    setup: Setup, *, units: str = "blocks", method: str = METHOD, restore: str = "", threshold: float = THRESHOLD
) -> Damage:
    """The recipe of a measurement; `restore`: folder of a pruned checkpoint, whose units get their dense weights back.

    Raises RoseError for impossible values.
    """
    if setup.held_out < 1:
        raise rose.RoseError("Loss is measured on held-out samples; ask for some under Change.")
    how: dict[str, Any] = {"restore": restore}
    if not restore:
        how = setup.pick(("sparsity", "block_size", "damping")) | {"method": method, "threshold": threshold}
    return Damage.of(**setup.pick(INPUTS), units=units, output="damage", **how)


def estimate(request: Damage, model: nn.Module) -> Cost:
    """`model` may be a skeleton. Raises RoseError for an impossible request, before any work."""
    network = Network(model)
    network.check_length(request.length)
    if request.restore is None:
        network.to_prune(request.layers, request.pattern, request.in_columns(network.head_width).block_columns)
    elif not (place := reachable(request.restore)).exists():
        raise rose.RoseError(f"There is nothing at {place}; give the folder of a pruned checkpoint.")
    sizes: dict[str, Any] = {"samples": request.samples, "windows": request.held_out}
    sizes |= {"length": request.length, "window_length": request.length, "layers": request.layers}
    return estimate_damage(
        model, units=request.units, sweeps=0 if request.restore else sweeps_of([request.method]), **sizes
    )


def unit_names(request: Damage, model: nn.Module) -> list[str]:
    network = Network(model)
    return [unit.name for unit in units_of(network, network.select(request.layers), request.units)]


def says_changed(request: Damage, model: nn.Module) -> str:
    """How many layers of each decoder block are changed, in a sentence; "" where all layers of all units are."""
    chosen = {layer.name for layer in Network(model).select(request.layers)}
    every = [layer.name for layer in rose.prunable_layers(model)]
    blocks: dict[str, list[str]] = {}
    for unit in unit_names(request, model) if request.units == "blocks" else ():
        inside = [name for name in every if name.startswith(f"{unit}.")]
        share = words.out_of(len(chosen.intersection(inside)), len(inside), "layer")
        blocks.setdefault(share, []).append(words.short_layer(unit).rpartition(" ")[2])
    if all(share.startswith("all ") for share in blocks):
        return ""
    parts = [f"{share} of decoder block{'s' * (len(of) > 1)} {words.listing(of)}" for share, of in blocks.items()]
    return f"This changes {'; '.join(parts)}."


def layer_of(unit: str, layers: Sequence[str], chosen: str | None) -> str:
    """The layer of a unit: itself, or for a decoder block its layer of the chosen projection."""
    if unit in layers:
        return unit
    inside = [name for name in layers if name.startswith(unit + ".")]
    projection = words.place_of(chosen or "")[1]
    return next((name for name in inside if name == f"{unit}.{projection}"), inside[0])


class DamageRun(Run):
    """One measurement, growing while its job runs; a copy of the model is changed, and deleted at the end."""

    def __init__(self, request: Damage, load: Callable[[], LoadedModel], earlier: Sequence[DamageRecord] = ()) -> None:
        """`earlier`: records of the same measurement, which was stopped."""
        super().__init__()
        self.setup, self.request, self._load = Setup.of(request), request, load
        self.facts: dict[str, Any] = {}  # of the report
        self.records = tuple(earlier)

    @property
    def table(self) -> pd.DataFrame:
        return records_table([record for record in self.records if record.unit != WHOLE], DamageRecord)

    @property
    def report(self) -> DamageReport:
        return DamageReport.from_records(list(self.records), **self.facts)

    def _add(self, record: DamageRecord) -> None:
        self.records = (*self.records, record)

    def _run(self, job: Job) -> None:
        setup, request = self.setup, self.request
        self._say("Loading the model")
        loaded = self._load()
        cautions: list[str] = []
        tokens, held_out = setup.draw(loaded.tokenizer, cautions.append)
        assert held_out is not None  # as checked
        options: dict[str, Any] = request.pick({*LayerSettings.fields(), "units", "layers"})
        if request.restore:
            self._say("Reading the pruned model")
            model: Any = rose.load_model(str(expand(request.restore)), dtype=setup.dtype, tokenizer=setup.model)[0]
            options["restore"] = dense_weights(loaded.model, model)  # only read; the shared model stays as it is
        else:
            check_memory(estimate(request, loaded.model), setup.dtype)
            model = self._copy(loaded.model, loaded.lock)
        self.facts = setup.origin | {"text_cautions": cautions}
        self.facts |= {"restore": request.restore} if request.restore else {}
        self._say("Measuring units")
        done = {record.unit for record in self.records}
        following: dict[str, Any] = {"done": done, "record": self._add, "progress": self._follow()}
        self.facts |= rose.damage(model, tokens, held_out=held_out, **options, **following).summary
        self.fraction = 1.0
