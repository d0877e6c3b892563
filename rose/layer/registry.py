"""The methods and orders by name, and the options of each; imports no torch. Plugins add theirs by
`rose.register` and `rose.register_order`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, TypeVar

from rose.errors import RoseError, check_named, check_word
from rose.layer.pattern import METHOD, Pattern
from rose.spec import Real, Spec, Whole, setting

Prune = TypeVar("Prune", bound=Callable[..., Any])  # see `Method.prune`
Value = float | str
Check = Callable[[Pattern, Mapping[str, Value]], None]
MAX_SEED_DIGITS = 18  # fits into 64 bits


@dataclass(frozen=True)
class Method:
    """An entry of the registry.

    Attributes:
        name: as typed on the command line.
        label, summary: shown to people; the summary is a sentence with the source.
        sweeps: whether `order` and `budget` apply.
        options: a class that declares its options as a recipe declares its fields.
        work: running time in sweeps, measured on 576 × 576, 1536 × 576 and 576 × 1536.
        matrices: for each stage that needs more than a sweep, how many float32 matrices (of H's size, of W's size) it
            holds; measured on 1536 × 1536, 4096 × 1024 and 1024 × 3072.
        check: raises RoseError for a pattern that the method cannot reach with these options.
        rounds: whether its kept weights can be rounded to a grid.
        module: the module of `rose.layer.methods` with its function, if it has another name.
        function: a plugin's.
    """

    name: str
    label: str
    summary: str
    sweeps: bool = False
    options: type[Spec] = Spec
    work: float = 1
    matrices: tuple[tuple[int, int], ...] = ()
    check: Check = lambda _pattern, _options: None
    rounds: bool = True
    module: str = ""
    function: Callable[..., Any] | None = None

    @property
    def prune(self) -> Callable[..., Any]:
        """(W, statistics, settings) -> LayerResult, which is checked: W is unchanged, Ŵ has W's shape and dtype, the
        mask is N:M if requested, and without factors Ŵ is 0 where the mask is True."""
        return self.function or getattr(import_module(f"rose.layer.methods.{self.module or self.name}"), self.name)

    def check_request(
        self, pattern: Pattern, *, options: Mapping[str, Value] | None, orders: bool, rounds: bool
    ) -> dict[str, Value]:
        """All options of a run by this method, with values or defaults, checked with its pattern. `orders`: whether the
        run names an order or a budget; `rounds`: whether kept weights will be rounded."""
        if orders and not self.sweeps:
            raise RoseError(f"{self.label} does not sweep over columns, so order and budget do not apply to it.")
        values = {} if options is None else options
        if not isinstance(values, Mapping):
            raise RoseError(f"Give options by name, such as {{'effort': 2}}, not as {values!r}.")
        for name in values:
            if name not in (fields := self.options.fields()):
                raise RoseError(f"{self.label} has no option {name!r}; it has {', '.join(fields) or 'none'}.")
        try:
            complete = self.options(**values).model_dump()
        except RoseError as problem:
            raise RoseError(f"The option {problem}") from None
        self.check(pattern, complete)
        if rounds and not self.rounds:
            raise RoseError(
                f"{self.label} keeps a part that no grid holds, so bits do not apply to it; choose another method."
            )
        return complete


class _Isc(Spec):
    inverse: Annotated[
        Literal["layer", "remaining"],
        setting("H⁻¹ of all columns, or, as in SparseGPT's sweep, of those not yet visited"),
    ] = "layer"


class _Dsnot(Spec):
    start: Annotated[Literal["wanda", "magnitude", "sparsegpt"], setting("saliency of the start mask")] = "wanda"


class _Oats(Spec):
    rank_ratio: Annotated[Real, setting("share of the parameters that goes to the low-rank part", ge=0, le=1)] = 0.25
    iterations: Annotated[Whole, setting("alternations between the two parts", ge=1, le=10_000)] = 80


class _RoseAdmm(Spec):
    effort: Annotated[Whole, setting("more iterations: 3 reaches most of the gain", ge=1, le=10)] = 1


def _check_oats(pattern: Pattern, options: Mapping[str, Value]) -> None:
    """Raises RoseError for an N:M pattern whose two parts would store more than the dense layer."""
    rank_ratio = float(options["rank_ratio"])
    if pattern.is_grouped and pattern.ratio > 0 and pattern.keep / pattern.of > 1 - rank_ratio:
        raise RoseError(
            f"OATS with {pattern} and a rank ratio of {rank_ratio:g} would store more than the dense layer; "
            "choose a sparser pattern or a smaller rank_ratio."
        )


_DECLARED = (
    Method(
        "rose",
        "ROSE",
        "SparseGPT with two-level column order on columnar layers (arXiv 2603.05878).",
        sweeps=True,
        module="sparsegpt",
    ),
    Method(
        "rose_global",
        "ROSE global",
        "Ours: global column order with a layer-wide budget.",
        sweeps=True,
        module="sparsegpt",
    ),
    Method(
        "sparsegpt",
        "SparseGPT",
        "Natural column order, the same ratio in every block, with compensation (Frantar and Alistarh 2023).",
        sweeps=True,
    ),
    Method(
        "isc",
        "ISC",
        "SparseGPT with masks chosen by w²·(H_jj + 1/[H⁻¹]_jj), the improved saliency criterion of Shao et al. 2024.",
        sweeps=True,
        options=_Isc,
        module="sparsegpt",
    ),
    Method(
        "wanda",
        "Wanda",
        "Smallest |W|·‖x‖ of every output row, no compensation (Sun et al. 2024).",
    ),
    Method(
        "magnitude",
        "Magnitude",
        "Smallest |W| of the layer, no calibration, no compensation (Han et al. 2015).",
        module="wanda",
    ),
    Method(
        "alps",
        "ALPS",
        "ADMM on the whole layer, then conjugate gradients on the kept weights (Meng et al. 2024); slow, low error.",
        work=18,
        matrices=((8, 6), (4, 15)),
    ),
    Method(
        "dsnot",
        "DSnoT",
        "A mask of Wanda, magnitude or SparseGPT, refined row by row without updating weights (Zhang et al. 2024).",
        options=_Dsnot,
        module="wanda",
    ),
    Method(
        "measured",
        "Measured order",
        "Ours: sweeps by several orders and budgets, and keeps the one with the least calibration error.",
        sweeps=True,
        work=8,
        matrices=((8, 6), (1, 15)),
        module="sparsegpt",
    ),
    Method(
        "oats",
        "OATS",
        "Sparse plus low rank on weights scaled by their inputs, both counted as parameters (Zhang and Papyan 2025).",
        options=_Oats,
        work=15,
        check=_check_oats,
        rounds=False,
    ),
    Method(
        "rose_admm",
        "ROSE ADMM",
        "Ours: revises the whole mask twenty times or more by ADMM under a rising penalty, and guards against "
        "over-fitting by tokens per column.",
        options=_RoseAdmm,
        work=5,
        matrices=((7, 5), (4, 10)),
    ),
    Method(
        "rose_dealt",
        "ROSE dealt",
        "Ours: costly columns dealt evenly over the blocks, then all kept weights refitted at once for the mask found.",
        sweeps=True,
        work=4,
        matrices=((4, 12),),
        module="sparsegpt",
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _DECLARED}
"""The methods by name, with plugins."""
ORDER_NAMES = [
    *("natural", "two_level", "columns", "blocks", "global", "dealt", "hessian"),
    *("inverse", "pivot", "pivot_weighted", "min_pivot", "greedy"),
]
"""Orders by name, with plugins; see `rose.layer.order`."""


def register(
    name: str,
    label: str,
    summary: str,
    *,
    sweeps: bool = False,
    options: type[Spec] = Spec,
    work: float = 1,
    matrices: tuple[tuple[int, int], ...] = (),
    check: Check = lambda _pattern, _options: None,
    rounds: bool = True,
) -> Callable[[Prune], Prune]:
    """Decorator that adds a method to the registry; the last registration of a name wins. Arguments: see `Method`.
    Raises RoseError: a name that is not one word, or options that are no class of `Spec`."""
    check_word(name, "A method")
    if not (isinstance(options, type) and issubclass(options, Spec)):
        raise RoseError(f"The options of {name} must be a class of rose.Spec, not {options!r}.")

    def add(prune: Prune) -> Prune:
        METHODS[name] = Method(name, label, summary, sweeps, options, work, matrices, check, rounds, function=prune)
        return prune

    return add


def get_method(name: str) -> Method:
    """The method of this name; raises RoseError for an unknown name."""
    if not isinstance(name, str):
        raise RoseError(f"A method is chosen by its name, such as {METHOD!r}, not by a {type(name).__name__}.")
    if name not in METHODS:
        check_named("method", name, METHODS)  # raises RoseError
    return METHODS[name]


def label_of(name: str) -> str:
    """The label of a method, or of an order that a run has compared like a method; any other name as words."""
    if name in METHODS:
        return METHODS[name].label
    return f"{name.replace('_', '-')} order" if name in ORDER_NAMES else name.replace("_", " ")


def order_names() -> list[str]:
    """Every name that `make_order` reads; "random" stands for all "random:SEED"."""
    return [*ORDER_NAMES, *(f"{name}_ascending" for name in ORDER_NAMES if name != "natural"), "random"]


def check_order_name(order: str) -> None:
    """Raises RoseError unless `make_order` reads this name: an order's, or "random:SEED"."""
    check_name_or_seed("order", order, order_names())


def check_name_or_seed(subject: str, name: str, names: Collection[str]) -> None:
    """Raises RoseError unless the name is in `names`, or "random:SEED"."""
    kind, colon, seed = name.partition(":")
    if not (kind == "random" and colon and seed.isdecimal() and len(seed) <= MAX_SEED_DIGITS):
        check_named(subject, name, names)
