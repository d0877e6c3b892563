"""The cost of heads and channels, on the statistics of a study."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

import rose
from app.jobs import GivenBack
from app.study.study import Study
from rose import verdicts
from rose.model.estimate import matmul_rate
from rose.structured.configuration import can_bias, kinds_of
from rose.structured.parts import CHANNELS, HEADS, Part, Shape, find_parts
from rose.structured.plan import PRICING
from rose.structured.problem import Problem
from rose.structured.survey import PartSurvey, make_problem, price_part


class Structures:
    """Heads and channels of a finished study. Costs are relative to the projection's own output.

    `kinds` can go from this model; output projections of `parts` were measured, projections in `missing` were not.
    """

    def __init__(self, study: Study) -> None:
        if study.loaded is None:
            raise GivenBack
        self.study, model = study, study.loaded.model
        self.kinds = study.remember("structures that can go", lambda: kinds_of(model))
        if not self.kinds:
            raise rose.RoseError("This model has no heads or channels that can be removed; choose another model.")
        parts = find_parts(model, self.kinds)
        every = [part for of_block in parts for part in of_block]
        self.missing = [part.output.name for part in every if not study.has(part.output.name)]
        self.parts = {(part.kind, part.block_index): part for part in every if study.has(part.output.name)}
        can_go = partial(can_bias, model, parts)
        self.biased = study.remember("structures that may have a bias", lambda: tuple(filter(can_go, self.kinds)))

    def blocks(self, kind: str | None = None) -> list[int]:
        """Decoder blocks with a part of this kind, or of any."""
        return sorted({index for of, index in self.parts if kind in (None, of)})

    def cautions(self) -> list[str]:
        """How far costs can be trusted, by the inputs of the layers that they are of."""
        records, outputs = self.study.records(), [part.output.name for part in self.parts.values()]
        measured = records[records["layer"].isin(outputs)]
        of_layers = verdicts.cautions(measured[["layer", "tokens", "columns", "dead_columns"]])
        return [*self.study.calibration.cautions, *of_layers]

    def problem(self, part: Part) -> Problem:
        statistics = self.study.statistics(part.output.name)
        return make_problem(part, statistics, part.kind in self.biased, self.study.setup.damping)

    def priced(self, part: Part) -> PartSurvey:
        name, damping = part.output.name, self.study.setup.damping
        compute = partial(price_part, part, self.study.statistics(name), part.kind in self.biased, damping)
        return self.study.remember(("structure", name), compute)

    def pricing(self, parts: Sequence[Part]) -> float:
        """Estimated seconds until all of these are priced: updates of an inverse of all columns, one for each."""
        left = [part for part in parts if not self.study.knows(("structure", part.output.name))]
        return PRICING * sum(part.output.weight.shape[1] ** 3 for part in left) / matmul_rate()

    def head_costs(self) -> pd.DataFrame:
        """One row per decoder block and query head: relative cost of taking it away alone."""
        rows = []
        for (kind, block), part in self.parts.items():
            if kind == HEADS:
                prices = self.priced(part)
                for head, cost in enumerate(prices.unit_costs.tolist()):
                    group = head // part.shape.per_group
                    rows.append((block, head, group, part.output.name, cost / prices.energy))
        return pd.DataFrame(rows, columns=["block_index", "head", "group", "layer", "cost"])

    def channel_costs(self, block: int) -> pd.DataFrame:
        """One row per channel in the order in which they would go: cost alone, and the error once it and all before
        it are gone; both relative."""
        prices = self.priced(self.parts[CHANNELS, block])
        order = prices.order.tolist()
        units = len(order) + 1
        order += set(range(units)).difference(order)  # the last one, which stays
        together = [prices.costs[Shape(1, units - 1 - step)] / prices.energy for step in range(units - 1)]
        alone = (prices.unit_costs[order] / prices.energy).tolist()
        return pd.DataFrame({"channel": order, "alone": alone, "together": [*together, 1.0]})
