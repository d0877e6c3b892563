"""The rise of the loss when one layer or decoder block is changed alone, measured on a copy. No Streamlit here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

import rose
from app import words
from app.jobs import Job, Run
from app.study.setup import Setup, check_memory
from app.study.study import LoadedModel
from rose.files import expand, reachable
from rose.layer.pattern import THRESHOLD, parse_sparsity
from rose.layer.registry import get_method
from rose.model.estimate import Cost, estimate_damage, sweeps_of
from rose.model.measure.damage import WHOLE, DamageRecord, DamageReport, dense_weights, units_of
from rose.model.network.network import Network
from rose.rows import records_table


@dataclass(frozen=True)
class DamageRequest:
    """Which units are changed one at a time, and how; the set-up has the sparsity."""

    units: str = "blocks"  # or "layers"
    method: str = "sparsegpt"
    restore: str = ""  # folder of a pruned checkpoint, whose units get their dense weights back; "" prunes
    threshold: float = THRESHOLD

    def check(self, setup: Setup, model: nn.Module) -> None:
        """Raises RoseError for an impossible request, before any work; `model` may be a skeleton."""
        if setup.held_out < 1:
            raise rose.RoseError("Loss is measured on held-out samples; ask for some on the start page.")
        network = Network(model)
        network.check_length(setup.length)
        if self.restore:
            place = reachable(self.restore)
            if not place.exists():
                raise rose.RoseError(f"There is nothing at {place}; give the folder of a pruned checkpoint.")
        else:
            get_method(self.method)
            network.to_prune(setup.layers, parse_sparsity(setup.sparsity), setup.block_size)

    def estimate(self, setup: Setup, model: nn.Module) -> Cost:
        """`model` may be a skeleton."""
        sizes: dict[str, Any] = {"samples": setup.samples, "windows": setup.held_out}
        sizes |= {"length": setup.length, "window_length": setup.length, "layers": setup.layers}
        return estimate_damage(model, units=self.units, sweeps=0 if self.restore else sweeps_of([self.method]), **sizes)

    def names(self, setup: Setup, model: nn.Module) -> list[str]:
        network = Network(model)
        return [unit.name for unit in units_of(network, network.select(setup.layers), self.units)]

    def changed(self, setup: Setup, model: nn.Module) -> str:
        """How many layers of each decoder block are changed, in a sentence; "" where all layers of all units are."""
        chosen = {layer.name for layer in Network(model).select(setup.layers)}
        every = [layer.name for layer in rose.prunable_layers(model)]
        blocks: dict[str, list[str]] = {}
        for unit in self.names(setup, model) if self.units == "blocks" else ():
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

    def __init__(
        self,
        setup: Setup,
        request: DamageRequest,
        load: Callable[[], LoadedModel],
        earlier: Sequence[DamageRecord] = (),
    ) -> None:
        """`earlier`: records of the same measurement, which was stopped."""
        super().__init__()
        self.setup, self.request, self._load = setup, request, load
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
        options: dict[str, Any] = {"units": request.units, "layers": setup.layers}
        if request.restore:
            self._say("Reading the pruned model")
            model: Any = rose.load_model(str(expand(request.restore)), dtype=setup.dtype, tokenizer=setup.model)[0]
            options["restore"] = dense_weights(loaded.model, model)  # only read; the shared model stays as it is
        else:
            check_memory(request.estimate(setup, loaded.model), setup.dtype)
            model = self._copy(loaded.model, loaded.lock)
            options |= setup.pick(("sparsity", "block_size", "damping"))
            options |= {"method": request.method, "threshold": request.threshold}
        self.facts = setup.origin | {"text_cautions": cautions}
        self.facts |= {"restore": request.restore} if request.restore else {}
        self._say("Measuring units")
        done = {record.unit for record in self.records}
        following: dict[str, Any] = {"done": done, "record": self._add, "progress": self._follow()}
        self.facts |= rose.damage(model, tokens, held_out=held_out, **options, **following).summary
        self.fraction = 1.0
