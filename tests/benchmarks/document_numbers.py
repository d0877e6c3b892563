"""The measured numbers of README.md and docs/, generated from the files that hold the measurements.

A document marks a region with `<!-- NAME -->…<!-- /NAME -->`, a table or a few words.
`python -m tests.benchmarks.document_numbers` writes every region again; a test compares.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from app.lessons import example
from app.study.setup import Setup
from rose import verdicts
from rose.layer.pattern import THRESHOLD
from rose.layer.target import correction_damping
from rose.model.measure.comparison import mean_and_spread, results_at
from rose.rows import read_records
from rose.smaller import Row
from rose.smaller.ways import AS_IS
from rose.verdicts.smaller import recommend
from rose.wording import listing, percent, size
from tests.benchmarks import methods as costs_of_methods
from tests.benchmarks.bits import first_draw
from tests.benchmarks.tuning import costs_and_worths

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs/results"
SPARSITIES = ("0.5", "0.6", "0.7", "0.8", "2:4")
QWEN_FILE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
MODELS = {"smollm2-135m": "SmolLM2-135M", "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B"}
REGION = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", re.DOTALL)


def render(text: str) -> str:
    """The document with every region as the files say."""

    def region(match: re.Match[str]) -> str:
        name = match[1]
        content = REGIONS[name]()
        content = f"\n{content}\n" if "\n" in content else content
        return f"<!-- {name} -->{content}<!-- /{name} -->"

    return REGION.sub(region, text)


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / name, dtype={"sparsity": str})


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])


def mean_of_draws(values: pd.Series, digits: int | None = None) -> str:
    """Mean ± half the range over draws; "–" for no row."""
    if values.empty:
        return "–"
    mean, spread = values.mean(), (values.max() - values.min()) / 2
    if digits is None:
        return mean_and_spread(mean, spread, len(values))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def with_bounds(interval: verdicts.Interval) -> str:
    """Value and bounds with two decimals; with more where a clear difference would otherwise print as none."""

    def text(value: float) -> str:
        decimals = next(
            (most for most in (2, 3, 4) if not interval.is_clear or round(value, most) != interval.neutral), 2
        )
        return f"{value:.{decimals}f}"

    return f"{text(interval.value)} ({text(interval.low)} to {text(interval.high)})"


def ratio(rows: pd.DataFrame, method: str, other: str) -> verdicts.Interval:
    """Perplexity of a method relative to another's, paired by draw."""
    logs = {m: np.log(rows[rows["method"] == m].set_index("seed")["perplexity"].sort_index()) for m in (method, other)}
    assert list(logs[method].index) == list(logs[other].index), (method, other)
    return verdicts.paired_ratio(logs[method], logs[other])


def window_ratio(rows: pd.DataFrame, method: str, other: str) -> verdicts.Interval:
    """The same, paired by evaluation window; each window's loss is a mean over draws."""
    losses = {result.method: result.losses for result in results_at(rows, str(rows["sparsity"].iloc[0]))}
    return verdicts.paired_ratio(losses[method], losses[other])


def relative(rows: pd.DataFrame, method: str, other: str = "sparsegpt") -> str:
    """Perplexity relative to another method's, in an interval that spans both intervals; bold where both exclude 1."""
    if method == other:
        return ""
    over_draws, over_windows = ratio(rows, method, other), window_ratio(rows, method, other)
    low, high = min(over_draws.low, over_windows.low), max(over_draws.high, over_windows.high)
    interval = replace(over_draws, low=low, high=high)
    bold = "**" if interval.is_clear else ""
    return f"{bold}{with_bounds(interval)}{bold}"


# Whole models


def rows_of_one_machine(name: str) -> pd.DataFrame:
    """Rows of a comparison whose dense perplexity, computed in each run, is that of SparseGPT's rows."""
    rows = read(name)
    own = rows[rows["method"] == "sparsegpt"].groupby("sparsity")["dense_perplexity"].first()
    fits = np.isclose(rows["dense_perplexity"], rows["sparsity"].map(own), rtol=1e-9)
    every = pd.Series(fits, index=rows.index).groupby([rows["method"], rows["sparsity"]]).transform("all")
    return rows[every]


def layer_target() -> str:
    """Perplexity with target layer, all published methods."""
    rows, shown = rows_of_one_machine("rows.csv"), ("0.5", "0.7", "2:4")
    drawn = {key: part["perplexity"] for key, part in rows.groupby(["method", "sparsity"])}
    lines = [
        [f"`{method}`", *(mean_of_draws(drawn.get((method, s), pd.Series(dtype=float))) for s in shown)]
        for method in read("rows.csv")["method"].unique()
        if method not in ("rose_admm", "measured")  # the first was measured on another machine
    ]
    return table(["method", *shown], lines)


def headline(sparsity: str, *, comparison: str = "headline") -> pd.DataFrame:
    """Rows of one finished comparison of tests.benchmarks.headline, all of one environment."""
    rows = read("headline.csv")
    rows = rows[(rows["comparison"] == f"{comparison} {sparsity}") & ~rows["tuned"]]
    assert rows["environment"].nunique() == 1
    assert (rows.groupby("method").size() == 3).all()
    return rows


def perplexities(rows_at: dict[str, pd.DataFrame]) -> str:
    methods = list(next(iter(rows_at.values()))["method"].unique())
    lines = [[f"`{m}`", *(drawn(rows, m) for rows in rows_at.values())] for m in methods]
    return table(["method", *rows_at], lines)


def relative_perplexities(rows_at: dict[str, pd.DataFrame]) -> str:
    methods = [m for m in next(iter(rows_at.values()))["method"].unique() if m != "sparsegpt"]
    lines = [[f"`{m}`", *(relative(rows, m) for rows in rows_at.values())] for m in methods]
    lines.append(["`rose_admm`, times ALPS's", *(relative(rows, "rose_admm", "alps") for rows in rows_at.values())])
    return table(["method", *rows_at], lines)


def beside_sparsegpt(rows_at: dict[str, pd.DataFrame]) -> str:
    head = [text for sparsity in rows_at for text in (sparsity, "times SparseGPT's")]
    lines = [
        [f"`{m}`", *(cell for rows in rows_at.values() for cell in (drawn(rows, m), relative(rows, m)))]
        for m in next(iter(rows_at.values()))["method"].unique()
    ]
    return table(["method", *head], lines)


def drawn(rows: pd.DataFrame, method: str) -> str:
    return mean_of_draws(rows[rows["method"] == method]["perplexity"])


def dense(sparsity: str, comparison: str = "headline") -> str:
    return f"{headline(sparsity, comparison=comparison)['dense_perplexity'].iloc[0]:.2f}"


def gain_of_dense_target() -> str:
    """SparseGPT's perplexity with dense targets relative to that with target layer, in Qwen."""
    rows = read("models.csv").query("model == 'qwen.gguf' and method == 'sparsegpt'")
    return with_bounds(ratio(rows.assign(method=rows["target"]), "dense", "layer"))


# Layers


@cache
def errors_by_layer(name: str) -> pd.DataFrame:
    """Held-out errors relative to SparseGPT's on the same layer, a column a method."""
    errors = read(name).pivot(index="layer", columns="method", values="held_out_error")
    return errors.div(errors["sparsegpt"], axis=0)


def mean_error_by_method() -> str:
    means = errors_by_layer("layers-70.csv").mean().sort_values()
    return table([f"`{method}`" for method in means.index], [[f"{value:.2f}" for value in means]])


# Files of layers at 0.7 in blocks of 128, and the tokens of WikiText-2 that calibrated them
OUTPUTS = {
    "SmolLM2-135M": ("layers-70.csv", "16 × 512"),
    "Qwen2.5-Coder-0.5B": ("qwen2.5-coder-0.5b-o_proj.csv", "8 × 512"),
}


def output_ranges(file: str) -> pd.Series:
    """Relative ranges of the attention output projections by layer."""
    return read(file).drop_duplicates("layer").set_index("layer")["relative_range"].filter(like="o_proj")


def columnar_outputs() -> str:
    """ROSE's error in columnar output projections relative to SparseGPT's, and how many there are, by model."""
    errors, counts = [], []
    for name, (file, tokens) in OUTPUTS.items():
        ranges = output_ranges(file)
        columnar = ranges[ranges > THRESHOLD].index
        errors.append(f"{errors_by_layer(file)['rose'].loc[columnar].mean():.2f} in {name}")
        counts.append(f"{len(columnar)} of {len(ranges)} with {tokens}")
    return f"{listing(errors)}. Columnar are {listing(counts)} tokens"


COUNTED = re.compile(  # as `Analyze.conditions` and notebooks write it
    r"(\d+ of \d+ [a-z ]+?) are columnar(?:: | \(.*\)\s+)"
    r"sparsity (\S+), blocks of (\d+), (\d+ × \d+) tokens of ([^;\\\n]+)"
)


def columnar_counts() -> str:
    """Counts of columnar layers in app, README and notebooks, with what they depend on."""
    smollm2, qwen = MODELS.values()
    study, analyzed = example.example_layers(), "qwen2.5-coder-0.5b-analyze.txt"
    counted = f"{study['is_columnar'].sum()} of {len(study)} layers are columnar: {Setup().conditions}"
    texts = [("app, lesson 9", smollm2, counted), ("README", qwen, (RESULTS / analyzed).read_text(encoding="utf-8"))]
    texts += [(path.name, smollm2, path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    counts = [
        (where, model, text, tokens, block, some, sparsity)
        for where, model, printed in texts
        for some, sparsity, block, tokens, text in COUNTED.findall(printed)
    ]
    for model, (file, tokens) in OUTPUTS.items():
        outputs = output_ranges(file)
        some = f"{(outputs > THRESHOLD).sum()} of {len(outputs)} output projections"
        counts.append(("README", model, "WikiText-2", tokens, "128", some, "0.7"))
    rows = read("prices-measured.csv")
    rows = rows.assign(is_columnar=rows["relative_range"] > THRESHOLD)
    for (name, sparsity, block), part in rows.groupby(["model", "sparsity", "block_size"]):
        draws = part.groupby("seed")["is_columnar"].sum()
        some = " to ".join(map(str, sorted({draws.min(), draws.max()})))
        some += f" of {part['layer'].nunique()} layers"
        counts.append(("three draws", MODELS[name], "WikiText-2", "16 × 512", str(block), some, sparsity))
    columns = ["where", "model", "text", "tokens", "blocks of", "columnar", "sparsity"]
    lines = pd.DataFrame(counts, columns=columns).groupby(columns[:-1], sort=False)["sparsity"].agg(", ".join)
    lines = lines.reset_index().sort_values(["model", "text"], ascending=False, kind="stable")
    shown = [*columns[:-2], "sparsity", "columnar"]
    return table(shown, lines[shown].to_numpy())


def analyze_output() -> str:
    """The beginning of what `rose analyze` prints, as a code block."""
    lines = [line for line in (RESULTS / "qwen2.5-coder-0.5b-analyze.txt").read_text().splitlines() if line.strip()]
    rule = next(at for at, line in enumerate(lines) if "──" in line)
    return "\n".join(["```", *lines[:rule], lines[rule + 1], " …", lines[rule + 5], "```"])


KEY = ("model", "seed", "layer", "sparsity", "block_size")  # of prices-measured.csv
PRICED = {  # of prices-measured.csv
    "natural/block": "natural / block (SparseGPT)",
    "two_level/block": "two-level / block",
    "random:0/block": "random / block",
    "dealt/block": "dealt / block",
    "natural/layer": "natural / layer",
    "two_level/layer": "two-level / layer",
    "random:0/layer": "random / layer",
    "dealt/layer": "dealt / layer",
    "hessian/layer": "diag(H) / layer",
    "global/layer": "global / layer (`rose_global`)",
    "greedy/layer": "greedy / layer",
    "pivot/layer": "pivot / layer",
    "pivot_weighted/layer": "weighted pivot / layer",
}


def _pair_names(pairs: Iterable[str]) -> list[str]:
    return [PRICED[pair].removesuffix(" (`rose_global`)") for pair in pairs]


UNSHOWN = ("two_level/layer", "dealt/layer", "random:0/layer", "hessian/layer", "greedy/layer")  # none wins
RANKED = ("two_level/block", "dealt/block", "global/layer", "pivot/layer")


@cache
def forecasted() -> pd.DataFrame:
    """Measured errors, and their forecasts with `:f` after the name; by layers of both models, draws and settings."""
    return read("prices-measured.csv").merge(read("prices-forecast.csv"), on=list(KEY), suffixes=("", ":f"))


@cache
def priced() -> pd.DataFrame:
    """The rows at 70 % with blocks of 128, of the draws in which every layer was measured."""
    rows = forecasted()
    rows = rows[(rows["sparsity"] == "0.7") & (rows["block_size"] == 128)]
    size = rows.groupby(["model", "seed"])["layer"].transform("size")
    rows = rows[size == size.groupby(rows["model"]).transform("max")]
    return rows.assign(is_output=rows["layer"].str.endswith("o_proj"))


def orders_by_price() -> str:
    """Held-out error by order and budget relative to SparseGPT's: means over layers and draws."""
    rows = priced()
    ratios = rows[list(PRICED)].div(rows["natural/block"], axis=0)
    means = ratios.groupby([rows["model"], rows["is_output"]]).mean()
    counts = rows.groupby(["model", "is_output"])["layer"].nunique()
    columns = [(model, is_output) for model in MODELS for is_output in (True, False)]
    head = [
        f"{MODELS[model]}, {counts[model, is_output]} {'outputs' if is_output else 'others'}"
        for model, is_output in columns
    ]
    shown = {pair: label for pair, label in PRICED.items() if pair not in UNSHOWN}
    lines = [[label, *(f"{means.loc[column, pair]:.3f}" for column in columns)] for pair, label in shown.items()]
    return table(["order / budget", *head], lines)


def _rank_correlations(rows: pd.DataFrame, pair: str) -> list[float]:
    """Spearman's correlation over layers of the held-out gain with what is known before a sweep: means of draws."""
    table = pd.DataFrame({
        "gain": rows[pair] / rows["natural/block"],
        "forecast": rows[f"{pair}:f"] / rows["natural/block:f"],
        "relative_range": -rows["relative_range"],
        "column_variation": -rows["column_variation"],
    })  # fmt: skip
    draws = [draw.corr(method="spearman")["gain"] for _, draw in table.groupby(rows["seed"])]
    return list(pd.concat(draws, axis=1).mean(axis=1)[1:])


def _parts_of_models() -> list[tuple[str, pd.DataFrame]]:
    """All layers of each model, then all without down projections, then output projections."""
    named = [(MODELS[str(model)], rows) for model, rows in priced().groupby("model", sort=False)]
    parts = [(f"{name}, {rows['layer'].nunique()} layers", rows) for name, rows in named]
    parts += [(f"{name}, without down", rows[~rows["layer"].str.endswith("down_proj")]) for name, rows in named]
    return parts + [(f"{name}, outputs", rows[rows["is_output"]]) for name, rows in named]


def forecast_ranks() -> str:
    """Rank correlations of the held-out gain: their ranges over orders and models."""
    parts = [rows for _, rows in _parts_of_models()][: len(MODELS)]
    correlations = [_rank_correlations(rows, pair) for rows in parts for pair in RANKED]
    told, relative_range, variation = (_span(np.array(each)) for each in zip(*correlations, strict=True))
    rest = f"{relative_range} with relative range and {variation} with column variation"
    return f"{told} with the forecast gain. It is {rest}"


def forecast_rank_table() -> str:
    """Rank correlations of the held-out gain, by order and budget."""
    parts = _parts_of_models()
    shown = {pair: label for pair, label in PRICED.items() if pair not in ("natural/block", "hessian/layer")}
    lines = [
        [label, *(" / ".join(f"{value:.2f}" for value in _rank_correlations(rows, pair)) for _, rows in parts)]
        for pair, label in shown.items()
    ]
    return table(["order / budget", *(name for name, _ in parts)], lines)


def forecast_in_down() -> str:
    """Rank correlations of the held-out gain over down projections: with the forecast, and with the forecast if the
    measured ratio of SparseGPT's held-out to its calibration error stands for its forecast ratio."""
    pairs, lines = ("natural/layer", "dealt/layer", "global/layer", "pivot/layer"), []
    rows = priced()[priced()["layer"].str.endswith("down_proj")].merge(read("prices-leverage.csv"), on=list(KEY[:3]))
    for model, part in rows.groupby("model", sort=False):
        ratio = {mark: part[f"natural/block{mark}"] / part[f"c natural/block{mark}"] for mark in ("", ":f")}
        draws = pd.DataFrame({"ratio": ratio[""], "leverage": part["inflation"]}).groupby(part["seed"])
        leverage = draws.corr(method="spearman").loc[(slice(None), "ratio"), "leverage"].mean()
        cells = [_span(each.groupby(part["layer"]).mean()) for each in ratio.values()]
        for pair in pairs:
            calibration = part[f"c {pair}:f"] / part["c natural/block:f"]
            held_out = part[f"{pair}:f"] / part["natural/block:f"]
            more = (held_out / calibration) ** (np.log(ratio[""]) / np.log(ratio[":f"]))
            better = part.assign(**{f"{pair}:f": calibration * more * part["natural/block:f"]})
            cells.append(
                ", ".join(f"{_rank_correlations(each, pair)[0]:.2f}".replace("-", "−") for each in (part, better))
            )
        lines.append([MODELS[str(model)], *cells[:2], f"{leverage:.2f}", *cells[2:]])
    names = _pair_names(pairs)
    return table(["model", "ratio, measured", "ratio, forecast", "ratio and leverage", *names], lines)


def forecast_ranks_by_setting() -> str:
    """Rank correlations over all layers of the held-out gain: ranges over orders and budgets, by setting."""
    lines = []
    for label, part in _settings():
        cells = []
        for model in MODELS:
            rows = part[part["model"] == model]
            pairs = [pair for pair in _pairs_of(rows) if pair != "natural/block"]
            parts = rows, rows[~rows["layer"].str.endswith("down_proj")]
            ranks, without = (np.array([_rank_correlations(each, pair) for pair in pairs]) for each in parts)
            leads = [(each[:, 0] > np.abs(each[:, 1:]).max(1)).sum() for each in (ranks, without)]
            cells += [*(_span(each) for each in ranks.T), f"{leads[0]} and {leads[1]} of {len(pairs)}"]
        lines.append([*label, *cells])
    known = ("forecast", "relative range", "column variation", "ahead")
    return table(["sparsity", "block", *(f"{model}, {name}" for model in MODELS.values() for name in known)], lines)


def _span(values: Any) -> str:
    return f"{values.min():z.2f} to {values.max():z.2f}".replace("-", "−")


def _pairs_of(rows: pd.DataFrame) -> list[str]:
    """Orders and budgets that every row has measured and forecast."""
    return [name[2:-2] for name in rows if name.startswith("c ") and name.endswith(":f") and rows[name].notna().all()]


def _ranks_within(first: str, second: str, rows: pd.DataFrame) -> str:
    """Median over layers of Spearman's correlation of all pairs, with its interval by resampling layers."""
    pairs = _pairs_of(rows)
    ranks = [rows[[part.format(pair) for pair in pairs]].rank(axis=1).to_numpy() for part in (first, second)]
    centred = [rank - rank.mean(1, keepdims=True) for rank in ranks]
    rho = (centred[0] * centred[1]).sum(1) / np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    rho = pd.Series(rho).groupby(rows["layer"].to_numpy()).mean().to_numpy()  # of a layer's draws
    drawn = np.random.default_rng(0).choice(rho, (2000, len(rho)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return f"{np.median(rho):.3f} ({low:.3f} to {high:.3f})"


WITHIN = (("c {}:f", "c {}"), ("{}:f", "{}"))  # forecasts and errors: calibration, held out


def forecast_within() -> str:
    """How a forecast ranks the pairs of one layer, against the rank that the measured calibration error gives them."""
    lines = [
        [name, *(_ranks_within(*columns, rows) for columns in (*WITHIN, ("c {}", "{}")))]
        for name, (_, rows) in zip(MODELS.values(), priced().groupby("model", sort=False), strict=True)
    ]
    heads = ["forecast, calibration", "forecast, held out", "calibration error, held out"]
    return table(["model", *heads], lines)


def _settings() -> list[tuple[list[str], pd.DataFrame]]:
    """Measured layers by sparsity and width of blocks, each with the first cells of its row."""
    parts = forecasted().groupby(["sparsity", "block_size"])
    return [
        ([sparsity if ":" in sparsity else percent(float(sparsity), 0), f"{width}"], part)
        for (sparsity, width), part in parts
    ]


def forecast_by_setting() -> str:
    """How a forecast ranks the pairs of one layer, by sparsity and width of blocks, over all draws."""
    lines = []
    for label, part in _settings():
        assert set(part["seed"]) == {0, 1, 2}
        lines.append([*label, *(_ranks_within(*c, part[part["model"] == model]) for model in MODELS for c in WITHIN)])
    heads = [f"{model}, {which}" for model in MODELS.values() for which in ("calibration", "held out")]
    return table(["sparsity", "block", *heads], lines)


def orders_by_setting() -> str:
    """Held-out error relative to SparseGPT's by sparsity and width of blocks: geometric means over layers and draws."""
    lines, pairs = [], ("two_level/block", "dealt/block", "global/layer", "pivot/layer")
    for label, part in _settings():
        if label != [percent(0.7, 0), "128"]:  # of other layers; in `orders_by_price`
            logs = np.log(part[list(pairs)].div(part["natural/block"], axis=0)).groupby(part["model"]).mean()
            cells = [f"{np.exp(logs.loc[model, pair]):.3f}" for model in MODELS for pair in pairs]
            lines.append([*label, *(cell.replace("nan", "") for cell in cells)])
    names = _pair_names(pairs)
    return table(["sparsity", "block", *(f"{model}, {name}" for model in MODELS.values() for name in names)], lines)


def decisions() -> str:
    """Mean held-out error of two-level order, block budget, and layers reordered, by rule: means of draws."""
    lines = []
    for model, rows in priced().groupby("model", sort=False):
        gain = np.log(rows["two_level/block"] / rows["natural/block"])
        told = rows["two_level/block:f"] / rows["natural/block:f"]
        always = pd.Series(data=True, index=rows.index)
        for rule, chosen in (
            ("relative range above 0.5 (ROSE)", rows["relative_range"] > 0.5),
            ("forecast below 0.99", told < 0.99),
            ("always", always),
        ):
            change, draws = np.exp((gain * chosen).mean()) - 1, rows["seed"].nunique()
            harmed = (chosen & (gain > 0)).sum() / draws
            error = f"{100 * change:+.1f} %".replace("-", "−")
            reordered = f"{chosen.sum() / draws:.0f} of {rows['layer'].nunique()}"
            lines.append([MODELS[str(model)], rule, reordered, f"{harmed:.0f}", error])
    return table(["model", "rule", "reordered", "harmed", "error"], lines)


def law_of_prices() -> str:
    rows = read("prices-law.csv")
    logs, sums = (rows.filter(regex=f"^{part} ") for part in ("log", "sum"))
    spread = (logs.max(axis=1) - logs.min(axis=1)) / logs.abs().max(axis=1)
    factor = sums.max(axis=1) / sums.min(axis=1)
    assert set(rows["model"]) == set(MODELS)
    return (
        f"In {logs.shape[1]} orders of {len(rows)} layers of both models, Σ log d agrees to {1e6 * spread.max():.2g} "
        f"millionths. Σ d differs by factors of {factor.min():.1f} to {factor.max():.0f}"
    )


def pivot_by_budget() -> str:
    """What the pivot order leaves of SparseGPT's error under both budgets, means over layers and draws."""
    rows = read("prices-rule.csv")
    ratios = rows[["pivot/layer", "pivot/block"]].div(rows["natural/block"], axis=0).groupby(rows["model"]).mean()
    threshold, equal = ([f"{ratios.loc[model, pair]:.2f}" for model in MODELS] for pair in ratios)
    return (
        f"In SmolLM2 and Qwen it leaves {threshold[0]} and {threshold[1]} of SparseGPT's held-out error with one "
        f"threshold, and {equal[0]} and {equal[1]} with equal shares"
    )


def forecast_times() -> str:
    """The largest share of a sweep's time that a forecast takes, by the number of columns."""
    rows = read("prices-times.csv")
    ratios = rows.groupby([rows["columns"], rows["pair"].str.contains(":")])["ratio"].max()
    return (
        f"at most {ratios[2048, False]:.2f} of a sweep's time on 2,048 columns ({ratios[2048, True]:.2f} under 2:4) "
        f"and {ratios[576, False]:.2f} on 576"
    )


WHOLE = {  # variants of prices-whole.csv that the document compares
    "sparsegpt": "SparseGPT", "rose": "ROSE's rule", "rose, threshold 0": "ROSE's order, always",
    "rose_global": "global / layer", "pivot/layer": "pivot / layer",
}  # fmt: skip


def whole_models() -> str:
    """Perplexity of whole models relative to SparseGPT's in the same draw: geometric mean, lowest and highest."""
    rows, lines = read("prices-whole.csv"), []
    for (name, target), group in rows.groupby(["model", "target"], sort=False):
        values = group.pivot_table(index="seed", columns="variant", values="perplexity").reindex(columns=list(WHOLE))
        first = listing([f"{value:.0f}" for value in values["sparsegpt"]])
        cells = []
        for variant in list(WHOLE)[1:]:
            ratios = (values[variant] / values["sparsegpt"]).dropna()
            mean = f"{np.exp(np.log(ratios).mean()):.2f}" if len(ratios) else "not run"
            cells.append(mean + (f" ({ratios.min():.2f}–{ratios.max():.2f})" if len(ratios) > 1 else ""))
        lines.append([f"{MODELS[str(name)]}, {target}", first, *cells])
    return table(["model, target", *WHOLE.values()], lines)


HEADS = {0.5: "½", 1.0: "1", 1.5: "1½", 2.0: "2", 4.0: "4"}
HEAD = 64  # columns, in both small models


def heads_by_block() -> str:
    """Output projections at 70 % by heads a block: how many are columnar, and SparseGPT's and ROSE's errors."""
    rows, lines = read("heads.csv").query("sparsity == '0.7'"), []
    for name, group in rows.groupby("model", sort=False):
        natural = group[group["sweep"] == "natural/block"]
        counts = natural.groupby(["block_size", "seed"])["is_columnar"].sum().unstack()
        of = natural["layer"].nunique()
        spans = [_count_span(list(counts.loc[size])) for size in counts.index]
        lines.append([f"{MODELS.get(str(name), str(name))}: columnar of {of}", *spans])
        wide = group.pivot_table(index=["block_size", "layer", "seed"], columns="sweep", values="held_out_error")
        base = wide.loc[2 * HEAD, "natural/block"]
        for label, sweep in (("SparseGPT's error", "natural/block"), ("two-level order's error", "two_level/block")):
            ratios = [(wide.loc[size, sweep] / base).mean() for size in counts.index]
            lines.append([label, *(f"{ratio:.3f}" for ratio in ratios)])
    return table(["heads a block", *HEADS.values()], lines)


def _count_span(counts: list[int]) -> str:
    return f"{min(counts):.0f}" + (f" to {max(counts):.0f}" if max(counts) > min(counts) else "")


SPLIT = {
    "natural/block": "natural / block (SparseGPT)",
    "two_level/block": "two-level / block (ROSE's order)",
    "random:0/block": "random / block",
    "natural/layer": "natural / layer",
    "global/layer": "global / layer (`rose_global`)",
    "pivot/layer": "pivot / layer",
    "rose_admm": "`rose_admm`",
}


def parts_of_sweeps() -> str:
    """Error, its mask's part and held-out error of each sweep, as parts of SparseGPT's; output projections, others."""
    rows = read("splits.csv")
    is_output = rows["layer"].str.endswith("o_proj")
    base = rows[rows["sweep"] == "natural/block"].set_index("layer")
    lines = []
    for sweep, label in SPLIT.items():
        cells = []
        for part in (rows[is_output], rows[~is_output]):
            own = part[part["sweep"] == sweep].set_index("layer")
            of = base.loc[own.index]
            ratios = own["mask_error"] / of["error"], own["error"] / of["error"]
            mask, error = (ratio.mean() for ratio in ratios)
            held_out = (own["held_out_error"] / of["held_out_error"]).mean()
            cells += [f"{mask:.2f}", f"{error - mask:.2f}", f"{held_out:.3f}"]
        lines.append([label, *cells])
    head = ["mask", "sequence", "held out"]
    return table(
        ["order / budget", *(f"outputs: {name}" for name in head), *(f"others: {name}" for name in head)], lines
    )


WHOLE_BY_HEADS = {
    "sparsegpt": "SparseGPT",
    "rose": "ROSE",
    "sparsegpt@two_level": "ROSE's order, always",
    "rose_global": "`rose_global`",
}


def whole_by_heads() -> str:
    """Perplexity of whole models by heads a block, in each draw."""
    rows, lines = read("heads-whole.csv").query("where == 'all'"), []
    for heads, group in rows.groupby("heads"):
        cells = []
        for method in WHOLE_BY_HEADS:
            values = group[group["method"] == method].sort_values("seed")["perplexity"]
            cells.append(", ".join(f"{value:.0f}" for value in values) or "not run")
        lines.append([HEADS[float(str(heads))], *cells])
    return table(["heads a block", *WHOLE_BY_HEADS.values()], lines)


def rose_by_heads(heads: float) -> str:
    """ROSE's perplexity with one head a block over SparseGPT's with so many: geometric mean and range of draws."""
    rows = read("heads-whole.csv").query("where == 'all'")
    table = rows.pivot_table(index="seed", columns=["method", "heads"], values="perplexity")
    ratios = table["rose", 1.0] / table["sparsegpt", heads]
    return f"{np.exp(np.log(ratios).mean()):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


@cache
def damaged(prefix: str, kind: str) -> pd.DataFrame:
    """Units that were pruned alone, without the row of all at once."""
    return read(f"{prefix}damage-{kind}.csv").query("unit != '*'")


def damage_correlations() -> str:
    """Spearman's correlation of damage with what is known before."""
    predictors, lines = ("held_out_error", "output_error", "drift"), []
    for prefix, name in (("", "SmolLM2"), ("qwen2.5-coder-0.5b-", "Qwen")):
        for kind, units in (("blocks", "decoder blocks"), ("layers", "layers")):
            rows = damaged(prefix, kind)
            cells = [str(verdicts.rank_correlation(rows[column], rows["damage"])) for column in predictors]
            lines.append([f"{name}, {units}", str(len(rows)), *cells])
        groups = [rows for _, rows in damaged(prefix, "layers").groupby("projection")]
        cells = []
        for column in predictors:
            each = [verdicts.rank_correlation(rows[column], rows["damage"]) for rows in groups]
            cells.append(str(verdicts.mean_interval([correlation.value for correlation in each if correlation])))
        lines.append(["within a projection, mean of seven", f"{len(groups[0])} each", *cells])
    return table(["ρ with damage", "units", "held-out error", "output error", "drift"], lines)


def damage_sums() -> str:
    """All units at once beside the sum of each alone."""
    lines = []
    for prefix, kind, name in (
        ("", "layers", "SmolLM2's layers"),
        ("", "blocks", "SmolLM2's decoder blocks"),
        ("qwen2.5-coder-0.5b-", "blocks", "Qwen's decoder blocks"),
    ):
        together = read(f"{prefix}damage-{kind}.csv").query("unit == '*'")["damage"].item()
        lines.append([name, f"{damaged(prefix, kind)['damage'].sum():.2f}", f"{together:.2f}"])
    return table(["nats a token", "sum of each alone", "all at once"], lines)


# Solvers and speed

KINDS = {"q_proj": "q, k, v", "k_proj": "q, k, v", "v_proj": "q, k, v", "o_proj": "o"}
KINDS |= {"gate_proj": "gate, up", "up_proj": "gate, up", "down_proj": "down"}
SOLVERS = ("rose_dealt", "rose_admm", "rose_admm, effort 3", "alps")


@cache
def solver_errors(name: str) -> pd.DataFrame:
    """Error and seconds relative to SparseGPT's on the same layer."""
    rows = read(name)
    base = rows[rows["variant"] == "sparsegpt"].set_index(["setting", "layer"])[["error", "seconds"]]
    joined = rows.join(base.add_prefix("base_"), on=["setting", "layer"])
    return rows.assign(error=joined["error"] / joined["base_error"], time=joined["seconds"] / joined["base_seconds"])


def solvers() -> str:
    """All layers at 70 %, by kind of layer."""
    rows, lines = solver_errors("solvers-70.csv"), []
    kinds = rows["projection"].str.rpartition(".")[2].map(KINDS)
    for variant in SOLVERS:
        part = rows[rows["variant"] == variant]
        means = part["error"].groupby(kinds, sort=False).mean()
        values = [part["error"].mean(), part["error"].max(), *means]
        lines.append([f"`{variant}`", *(f"{value:.3f}" for value in values), f"{part['time'].mean():.1f}"])
    return table(["method", "error", "highest", *means.index, "time"], lines)


def solver_table(name: str) -> str:
    """Means over layers, a column a setting."""
    means = solver_errors(name).pivot_table(index="variant", columns="setting", values="error", sort=False)
    lines = [[f"`{variant}`", *(f"{value:.3f}" for value in means.loc[variant])] for variant in SOLVERS]
    return table(["method", *(s.removeprefix("0.7, ").removesuffix(", 16 × 512") for s in means.columns)], lines)


def method_times() -> str:
    """Processor time by method and target, in units of SparseGPT's with dense targets."""
    rows = costs_of_methods.ratios(read("methods-times.csv")).set_index(["target", "method"])["ratio"]
    methods = ("wanda", "sparsegpt", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")
    lines = [[f"target {target}", *(f"{rows[target, m]:.2f}" for m in methods)] for target in ("layer", "dense")]
    return table(["", *(f"`{m}`" for m in methods)], lines)


def cost_of_dense_target() -> str:
    """Processor time with dense targets relative to target layer, a whole model."""
    shares = costs_of_methods.dense_over_layer(read("methods-times-whole.csv")).set_index("method")["dense over layer"]
    names = ("wanda", "sparsegpt", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")
    return table([f"`{name}`" for name in names], [[f"{shares[name]:.2f}" for name in names]])


def gain_of_correction() -> str:
    """SparseGPT at 70 % without the correction, with target layer, and with it, by model and tokens."""
    lines = []
    for model, tokens, rule in (
        ("smollm2-135m", 8192, "0.62"),
        ("smollm2-135m", 2048, "rule"),
        ("qwen.gguf", 2048, "4.85"),
    ):
        rows = read("targets-damping.csv")
        rows = rows[(rows["model"] == model) & (rows["tokens"] == tokens) & (rows["method"] == "sparsegpt")]
        rows = rows[rows["blocks"] == rows["blocks"].max()]
        pair = [rows[rows["damping"] == damping]["perplexity"] for damping in ("layer", rule)]
        assert all(len(values) == 3 for values in pair)
        lines.append([model.removesuffix(".gguf"), f"{tokens // 512} × 512", *(f"{v.mean():.1f}" for v in pair)])
    return table(["model", "tokens", "target layer", "target dense"], lines)


def damping_of_7b() -> str:
    few, default = (correction_damping(4096, tokens, 32) for tokens in (8 * 512, 32 * 1024))
    return f"8 × 512 tokens give a 7B LLaMA μ = {few:.0f}, and the default 32 × 1024 give μ = {default:.1f}"


def own_model() -> str:
    """Time and memory of a user's commands, from decoder blocks that were run."""
    rows = read("own-model.csv").set_index(["shapes", "command"])
    commands = {"analyze": "`analyze --layers '*o_proj'`", "prune, sparsegpt": "`prune --method sparsegpt`"}
    commands["prune"] = "`prune`, by default"
    return table(
        ["", *commands.values()],
        [[f"{shapes} shapes", *(_time_and_memory(rows.loc[(shapes, c)]) for c in commands)] for shapes in ("1B", "7B")],
    )


def _time_and_memory(row: pd.Series) -> str:
    minutes = row["seconds"] * row["of_blocks"] / row["blocks"] / 60
    time = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return f"{time}, {row['peak_memory'] / 1e9:.1f} GB"


def memory_of_llamas() -> str:
    """Peaks that the formula gives for LLaMA's sizes, GB."""
    rows = [line.split() for line in (RESULTS / "memory-table.txt").read_text().splitlines()[1:]]
    cells = {" ".join(row[:3]): [row[0], row[3], f"{row[1]}, {row[2]}", *row[-2:]] for row in rows}
    chosen = ("7B layer 128", "7B dense 128", "7B dense 16", "70B layer 128", "70B dense 16")
    return table(["model", "weights", "target, samples", "peak", "peak, states on disk"], [cells[n] for n in chosen])


# Smaller files and models


def four_bits() -> str:
    """Half of the weights zero, and 4 bits for the others, by way of rounding: perplexity of each draw."""
    ways = {
        ("joint", "-"): "alone",
        ("joint", "4"): "and 4 bits, together",
        ("sweep", "4"): "pruned, then rounded by a second sweep",
        ("rounding", "4"): "pruned, then rounded to the nearest",
    }
    rows = read("bits.csv").query("sparsity == '0.5' and group in ['-', '64'] and method == 'rose_admm'")
    rows = rows[rows["model"].str.startswith("smollm2")].sort_values("seed").set_index(["way", "bits"]).sort_index()
    lines = []
    for key, text in ways.items():
        part = rows.loc[[key]]
        assert list(part["seed"]) == [0, 1, 2]
        lines.append([text, f"{part['bits_a_weight'].iloc[0]:.2f}", mean_of_draws(part["perplexity"])])
    return table(["50 % zeros", "bits a weight", "perplexity"], lines)


def three_bits_or_half_zeros() -> str:
    """Perplexity of 3 bits for all weights, and of 4 bits for half of them: as many bits a weight."""
    rows = first_draw(read("bits-budget.csv")).set_index(["sparsity", "bits"])["perplexity"]
    return f"{rows['0', 3]:.1f} and {rows['0.5', 4]:.1f}"


def _is_better(row: Row, other: Row) -> bool:
    """Whether a copy needs, to one per cent, no more bytes than another one, and loses less on both texts."""
    is_as_small = getattr(row, row.smallest) <= 1.01 * getattr(other, other.smallest)
    losses = [(each.times or np.inf, each.second_times or np.inf) for each in (row, other)]
    return is_as_small and all(less < more for less, more in zip(*losses, strict=True))


def smaller_copies() -> str:
    """The measured rows of two tables of `rose smaller` that no other row beats, and what each is recommended for."""
    lines = []
    for model, name in (("smollm2", "SmolLM2"), ("qwen", "Qwen")):
        rows = read_records(RESULTS / f"smaller-{model}.csv", Row, "smaller copies")
        advice = recommend(rows)
        measured = [row for row in rows if row.is_measured]
        for row in (row for row in measured if not any(_is_better(other, row) for other in measured)):
            file = f"{size(row.bytes)} {row.smallest}"
            way = row.name if row.key != AS_IS else f"**{name}**, {row.name}"
            numbers = [f"{row.times:.3f}", f"{row.second_times:.3f}"]
            goals = listing([each.goal for each in advice if each.key == row.key]) or "–"
            lines.append([way, file, *numbers, goals])
    return table(["way", "smallest file", "perplexity", "second text", "best for"], lines)


def gguf_files() -> str:
    """Sizes of a model's GGUF files, and differences of losses in llama.cpp."""
    files = read("llama-cpp.csv").set_index(["model", "type"]).loc["half-4-bits, rounded embeddings"]
    lines = [[f"`{kind}`", f"{row.bytes / 1e6:.0f} MB", f"{row.mean_difference:.3f}"] for kind, row in files.iterrows()]
    head = ["file", "size", "mean difference of losses"]
    return table(head, lines)


REMOVED = (0.1, 0.2, 0.3, 0.4, 0.5)
VARIANTS = {
    "obs@uniform/exact": "**`obs`, uniform, the default**",
    "obs@uniform/exact+dense": "`obs`, uniform, `--target dense`",
    "slimllm@similarity/linear": "`slimllm`, similarity, as published",
    "wanda@uniform/bias": "`wanda`, uniform, with bias",
    "depth@uniform/none": "`depth`",
}


def slimmed(prefix: str, share: float, variant: str) -> pd.DataFrame:
    rows = read(f"{prefix}structured.csv")
    return rows[np.isclose(rows["ratio"], share) & (rows["variant"] == variant)]


def structured() -> str:
    """Perplexity by method and ratio; draws that agree have no ±."""
    default = next(iter(VARIANTS))
    sizes = [f"{slimmed('', share, default)['parameters'].mean() / 1e6:.1f}" for share in REMOVED]
    lines = [["parameters, millions", *sizes]]
    for variant, text in VARIANTS.items():
        each = [slimmed("", share, variant)["perplexity"] for share in REMOVED]
        lines.append([text, *(mean_of_draws(v if v.nunique() > 1 else v[:1]) for v in each)])
    return table(["removed", *(f"{share:.0%}".replace("%", " %") for share in REMOVED)], lines)


def obs_beside(other: str) -> str:
    """Perplexity of `obs` relative to another variant's, by model and ratio, over draws."""
    lines = []
    for prefix, name in (("", "SmolLM2"), ("qwen2.5-coder-0.5b-", "Qwen")):
        cells = []
        for share in (0.2, 0.5):
            logs = [
                np.log(slimmed(prefix, share, variant).groupby("seed")["perplexity"].mean())
                for variant in ("obs@uniform/exact", other)
            ]
            cells.append(with_bounds(verdicts.paired_ratio(*logs)))
        lines.append([name, *cells])
    return table(["", "20 %", "50 %"], lines)


def slim_speed() -> str:
    """What a quarter of the decoder blocks' parameters taken out gives."""
    text = (RESULTS / "structured-speed.txt").read_text()
    prefill, decode = (
        re.findall(rf"{name}: .* ratio ([\d.]+), of ideal ([\d.]+)", text)[0] for name in ("prefill", "decode")
    )
    size, peak = (float(re.findall(rf"{name}, bytes: .* ratio ([\d.]+)", text)[0]) for name in ("file", "peak memory"))
    cells = [f"{float(value):.2f} (ideal {float(ideal):.2f})" for value, ideal in (prefill, decode)]
    head = ["prefill, times as fast", "decoding, times as fast", "file, of its bytes", "peak memory"]
    return table(head, [[*cells, f"{size:.2f}", f"{peak:.2f}"]])


def tuned(model: str) -> str:
    """Perplexity before and after tuning, on the tuned text and on another one."""
    rows = read("tuning.csv").query("model == @model and samples == 16")
    sizes = [size for size in sorted(rows["windows"].unique()) if size]
    lines = []
    for (sparsity, method), part in rows.groupby(["sparsity", "method"], sort=False):
        if method.endswith(":layer") and not sparsity.startswith("slim"):
            continue  # lab notes compare targets
        by_draw, other = (part.pivot(index="seed", columns="windows", values=c) for c in ("perplexity", "other"))
        complete = [size for size in sizes if size in by_draw and by_draw[size].notna().all()]
        if not complete:
            continue
        cells = [mean_of_draws(by_draw[size]) if size in (0, *complete) else "" for size in (0, *sizes)]
        measured = other[[0, complete[-1]]].notna().all(axis=None)
        before_after = " → ".join(f"{other[size].mean():.1f}" for size in (0, complete[-1])) if measured else ""
        lines.append(
            [sparsity.replace("slim-", "`rose slim`, "), f"`{method.removesuffix(':layer')}`", *cells, before_after]
        )
    return table(["removed", "by", "before", *(f"{size} windows" for size in sizes), "other text"], lines)


def equal_time() -> str:
    """Calibration with more windows beside tuning, the default method at 70 %."""
    rows = read("tuning.csv").query("model == 'smollm2-135m'")
    results = {result.name: result for result in costs_and_worths(rows, "0.7")}
    few, many, trained = (results[f"ROSE ADMM {name}"] for name in ("16", "64", "16 + 64 tuned"))
    both = rows.query("sparsity == '0.7' and samples == 64 and windows == 64").iloc[0]
    lines = [
        [text, f"{value:.1f}", f"{seconds:.0f}"]
        for text, value, seconds in (
            ("16 windows of calibration", few.value, few.seconds),
            ("64 windows of calibration", many.value, many.seconds),
            ("16, and tuned on 64", trained.value, trained.seconds),
            ("64, and tuned on 64, one draw", both["perplexity"], many.seconds + both["processor_seconds"]),
        )
    ]
    return table(["70 %", "perplexity", "processor seconds"], lines)


# Diffusion


def diffusion() -> str:
    """Drift of the finished pictures, by method and sparsity."""
    rows = read("diffusion.csv").query("step_weights == 'uniform'")
    rows = rows.groupby(["method", "sparsity", "draw"], as_index=False)["drift"].mean()
    shown, lines = ("0.5", "0.7", "2:4"), []
    for method in ("wanda", "sparsegpt", "rose", "rose_dealt", "rose_admm"):
        parts = [rows.query(f"method == {method!r} and sparsity == {sparsity!r}") for sparsity in shown]
        lines.append([f"`{method}`", *(mean_of_draws(part["drift"], 4) for part in parts)])
    return table(["method", "drift, 50 %", "70 %", "2:4"], lines)


def programs_that_use_zeros() -> str:
    programs = pd.read_csv(ROOT / "rose/smaller/runtimes.csv").query("requires != 'ended'")
    lines = [
        [f"[{row.name}]({row.source})", row.uses, row.hardware, row.gain, row.state]
        for row in programs.itertuples(index=False)
    ]
    return table(["program", "uses", "hardware", "published gain", f"state on {programs['checked'].max()}"], lines)


def _headlines() -> dict[str, pd.DataFrame]:
    return {sparsity: headline(sparsity) for sparsity in SPARSITIES}


def _qwen() -> dict[str, pd.DataFrame]:
    return {sparsity: headline(sparsity, comparison=QWEN_FILE) for sparsity in ("0.5", "0.7")}


def headline_of_default(sparsity: str) -> str:
    rows = headline(sparsity).query("method == 'rose_admm'")
    return f"{rows['dense_perplexity'].iloc[0]:.1f} → {mean_of_draws(rows['perplexity'])}"


def as_typed(command: str, tokens: int = 512) -> str:
    """Perplexity before and after a command of README.md, with its defaults."""
    (row,) = read("commands.csv").query("command == @command and tokens == @tokens").itertuples()
    return f"{row.dense_perplexity:.1f} → {row.perplexity:.1f}"


def slimmed_by_a_fifth() -> str:
    before = read("structured.csv").query("variant == 'dense'").iloc[0]
    rows = slimmed("", 0.2, "obs@uniform/exact")
    return f"{before['perplexity']:.1f} → {mean_of_draws(rows['perplexity'])}"


def cost_of_four_bits() -> str:
    """Perplexity of half zeros and 4 bits relative to half zeros, over draws."""
    rows = read("bits.csv").query("model == 'smollm2-135m' and way == 'joint' and sparsity == '0.5'")
    rows = rows[rows["bits"].isin(["-", "4"])]
    assert rows["dense_perplexity"].nunique() == 1
    return with_bounds(ratio(rows.assign(method=rows["bits"]), "4", "-"))


def tuned_longest(sparsity: str, method: str) -> str:
    """Before and after tuning on the most windows."""
    rows = read("tuning.csv").query("model == 'smollm2-135m' and samples == 16")
    rows = rows[(rows["sparsity"] == sparsity) & (rows["method"] == method)]
    before, after = (rows[rows["windows"] == size]["perplexity"] for size in (0, rows["windows"].max()))
    assert len(before) == len(after) == 3
    return f"{mean_of_draws(before)} → {mean_of_draws(after)}"


REGIONS: dict[str, Callable[[], str]] = {
    "analyze_output": analyze_output,
    "columnar_counts": columnar_counts,
    "columnar_outputs": columnar_outputs,
    "cost_of_dense_target": cost_of_dense_target,
    "cost_of_four_bits": cost_of_four_bits,
    "damage_correlations": damage_correlations,
    "damage_sums": damage_sums,
    "damping_of_7b": damping_of_7b,
    "dense_of_headline": partial(dense, "0.7"),
    "dense_of_qwen": partial(dense, "0.7", QWEN_FILE),
    "diffusion": diffusion,
    "four_bits": four_bits,
    "gain_of_correction": gain_of_correction,
    "gain_of_dense_target": gain_of_dense_target,
    "gguf_files": gguf_files,
    "headline": lambda: perplexities(_headlines()),
    "headline_ratios": lambda: relative_perplexities(_headlines()),
    "layer_target": layer_target,
    "mean_error_by_method": mean_error_by_method,
    "memory_of_llamas": memory_of_llamas,
    "method_times": method_times,
    "obs_beside_slimllm": partial(obs_beside, "slimllm@similarity/linear"),
    "heads_by_block": heads_by_block,
    "parts_of_sweeps": parts_of_sweeps,
    "whole_by_heads": whole_by_heads,
    "rose_at_one_head": partial(rose_by_heads, 1.0),
    "rose_at_two_heads": partial(rose_by_heads, 2.0),
    "decisions": decisions,
    "forecast_ranks": forecast_ranks,
    "forecast_rank_table": forecast_rank_table,
    "forecast_within": forecast_within,
    "forecast_by_setting": forecast_by_setting,
    "forecast_in_down": forecast_in_down,
    "forecast_ranks_by_setting": forecast_ranks_by_setting,
    "orders_by_setting": orders_by_setting,
    "law_of_prices": law_of_prices,
    "forecast_times": forecast_times,
    "pivot_by_budget": pivot_by_budget,
    "whole_models": whole_models,
    "orders_by_price": orders_by_price,
    "own_model": own_model,
    "qwen_headline": lambda: beside_sparsegpt(_qwen()),
    "programs_that_use_zeros": programs_that_use_zeros,
    "pruned_2_4": partial(headline_of_default, "2:4"),
    "pruned_50": partial(headline_of_default, "0.5"),
    "slim_speed": slim_speed,
    "smaller_copies": smaller_copies,
    "three_bits_or_half_zeros": three_bits_or_half_zeros,
    "slimmed_by_a_fifth": slimmed_by_a_fifth,
    "solvers": solvers,
    "solvers_by_tokens": partial(solver_table, "solvers-samples.csv"),
    "solvers_by_pattern": partial(solver_table, "solvers-patterns.csv"),
    "structured": structured,
    "typed_50": partial(as_typed, "prune --sparsity 0.5"),
    "typed_50_long": partial(as_typed, "prune --sparsity 0.5", 2048),
    "tuned_70": partial(tuned_longest, "0.7", "rose_admm"),
    "tuned": partial(tuned, "smollm2-135m"),
    "tuned_equal_time": equal_time,
    "tuned_qwen": partial(tuned, "qwen.gguf"),
}


def main() -> None:
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if (new := render(text)) != text:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
