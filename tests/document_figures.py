"""What README.md and documents say in numbers, from the files that hold the measurements.

`texts()` has, for each document, the tables and phrases that it must hold word for word; tests/test_documents.py looks
for them, and finds every other number of README.md and docs/results.md that has no file. After a new measurement
`python -m tests.document_figures` prints what to put into them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rose import verdicts
from rose.model.estimate.tuning import tuning_memory
from rose.model.measure.comparison import mean_and_spread, results_of
from rose.model.network.network import Network
from rose.wording import listing, percent
from tests.benchmarks.bits import first_draw
from tests.benchmarks.tuning import costs_and_worths

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"
SPARSITIES = ("0.5", "0.6", "0.7", "0.8", "2:4")
HEADLINE = {"0.5": "at 50 %", "0.6": "at 60 %", "0.7": "at 70 %", "0.8": "at 80 %", "2:4": "under 2:4"}
SECOND, SECOND_AT = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", ("0.5", "0.7")  # the second model, and where

# Numbers that are no measurements: names, versions, settings of runs that stand in their commands, minutes of teaching.
# What a first start downloads and takes was added up over the packages of requirements.txt, for torch 2.13.
SETTINGS = {
    "docs/results.md": [
        r"SmolLM2(?:-135M)?",
        r"Qwen2\.5-Coder-0\.5B",
        r"WikiText-2",
        r"95 % interval",
        r"three draws",
        r"the 24 test windows",
        r"first 24 × 512 tokens",
        r"16 × 512 tokens",
        r"8 × 512",
        r"(?:[Aa]t|and) 0\.[67]",
        r"excludes? 1",
        r"80 %",
        r"2:4",
        r"70 %",
        r"all 210 layers",
    ],
    "README.md": [
        r"SmolLM2(?:-135M)?",
        r"Qwen2\.5-Coder-0\.5B",
        r"Qwen3",
        r"Llama-3\.2-1B",
        r"arXiv 2603\.05878",
        r"Apache 2\.0",
        r"Python 3\.11",
        r"0\.5 GB",
        r"1\.4 GB",
        r"7B next to no correction: \[?give it the default 32 × 1024",
        r"16 × 512 tokens",
        r"4-bit",
        r"WikiText-2",
        r"layer 9",
        r"layer 16",
        r"2:4",
        r"50 to 80 %",
        r"70 %",
        r"\| \d+(?: each)? \|",
        r"(?<= )[1-5]\.(?= )",
        r"(?:below )?[34] bits",
    ],
}


@cache
def read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / name, dtype={"sparsity": str})


def runs(name: str) -> pd.DataFrame:
    """Rows of a comparison that may be compared: at each sparsity those of the environment in which SparseGPT ran.

    The dense model's perplexity tells environments apart, as it is computed anew in each.
    """
    table = read(name)
    own = table[table["method"] == "sparsegpt"].groupby("sparsity")["dense_perplexity"].first()
    fits = np.isclose(table["dense_perplexity"], table["sparsity"].map(own), rtol=1e-9)
    every = pd.Series(fits, index=table.index).groupby([table["method"], table["sparsity"]]).transform("all")
    return table[every]


def cell(values: pd.Series, digits: int | None = None) -> str:
    """Mean ± half the range over draws; "–" for none."""
    if values.empty:
        return "–"
    mean, spread = values.mean(), (values.max() - values.min()) / 2
    if digits is None:
        return mean_and_spread(mean, spread, len(values))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]])


NOTES = {"oats": "oats, of which 2:4 removes a third"}  # what would mislead in a table without them


def perplexities(name: str, methods: Sequence[str]) -> str:
    rows = runs(name)
    of = {key: found["perplexity"] for key, found in rows.groupby(["method", "sparsity"])}
    lines = [[NOTES.get(m, m), *(cell(of.get((m, s), pd.Series(dtype=float))) for s in SPARSITIES)] for m in methods]
    return table(["method", *SPARSITIES], lines)


def ratio(rows: pd.DataFrame, one: str, other: str) -> verdicts.Interval:
    """How many times the perplexity of `other` that of `one` is, draw by draw."""
    logs = {m: np.log(rows[rows["method"] == m].set_index("seed")["perplexity"].sort_index()) for m in (one, other)}
    assert list(logs[one].index) == list(logs[other].index), (one, other)
    return verdicts.paired_ratio(logs[one], logs[other])


def window_ratio(rows: pd.DataFrame, one: str, other: str) -> verdicts.Interval:
    """Times the other's perplexity at one sparsity, by evaluation windows, whose losses are means over draws."""
    losses = {found.method: found.losses for found in results_of(rows, str(rows["sparsity"].iloc[0]))}
    return verdicts.paired_ratio(losses[one], losses[other])


def at(name: str, sparsity: str) -> pd.DataFrame:
    rows = runs(name)
    return rows[rows["sparsity"] == sparsity]


def digits(found: verdicts.Interval) -> tuple[str, str]:
    """Value and bounds with two decimals, and with more where a clear difference would be printed as none: "0.995" and
    "0.992 to 0.999"."""

    def text(one: float) -> str:
        decimals = next((most for most in (2, 3, 4) if not found.is_clear or round(one, most) != found.neutral), 2)
        return f"{one:.{decimals}f}"

    return text(found.value), f"{text(found.low)} to {text(found.high)}"


def says(found: verdicts.Interval) -> str:
    return "{} ({})".format(*digits(found))


def ratios() -> str:
    """Times SparseGPT's perplexity with target layer, by method and sparsity."""
    some, lines = {s: at("rows.csv", s) for s in SPARSITIES}, []
    for method in ("rose", "rose_global", "rose_dealt", "alps"):
        lines.append([method, *(says(ratio(rows, method, "sparsegpt")) for rows in some.values())])
    return table(["method", *some], lines)


def headline(sparsity: str, *, model: str = "headline", tuned: bool = False) -> pd.DataFrame:
    """Rows of one finished comparison of tests.benchmarks.headline, all of one environment."""
    rows = read("headline.csv")
    rows = rows[(rows["comparison"] == f"{model} {sparsity}") & (rows["tuned"] == tuned)]
    assert rows["environment"].nunique() == 1
    assert (rows.groupby("method").size() == 3).all()
    return rows


def controls(target: str) -> pd.DataFrame:
    """Rows of the controls at 70 %, those towards one target, under the names of their methods."""
    rows = headline("0.7", model="controls")
    is_layer = rows["method"].str.endswith(":layer")
    rows = rows[is_layer if target == "layer" else ~is_layer]
    return rows.assign(method=rows["method"].str.removesuffix(":layer"))


def chosen_by_validation() -> str:
    """SparseGPT's perplexity with each μ on windows of the validation text, means over draws."""
    found = controls("dense").groupby("method")["perplexity_held_out"].mean()
    low, rule, high = (found[f"sparsegpt{one}"] for one in (", 0.3 μ", "", ", 3 μ"))
    return f"{low:.1f} with a third of the rule's μ, {rule:.1f} with it and {high:.1f} with three times as much"


def of_methods(rows_at: dict[str, pd.DataFrame]) -> str:
    """Perplexity by method and sparsity."""
    lines = [[f"`{m}`", *(drawn(rows, m) for rows in rows_at.values())] for m in methods_of(rows_at)]
    return table(["method", *rows_at], lines)


def times_sparsegpt(rows_at: dict[str, pd.DataFrame]) -> str:
    """Times SparseGPT's perplexity, by method and sparsity."""
    methods = [method for method in methods_of(rows_at) if method != "sparsegpt"]
    lines = [[f"`{m}`", *(times(rows, m) for rows in rows_at.values())] for m in methods]
    lines.append(["`rose_admm`, times ALPS's", *(times(rows, "rose_admm", "alps") for rows in rows_at.values())])
    return table(["method", *rows_at], lines)


def beside_sparsegpt(rows_at: dict[str, pd.DataFrame]) -> str:
    """Both in one table, of few sparsities."""
    heads = [head for sparsity in rows_at for head in (sparsity, "times SparseGPT's")]
    lines = []
    for method in methods_of(rows_at):
        found = ((drawn(rows, method), times(rows, method)) for rows in rows_at.values())
        lines.append([f"`{method}`", *itertools.chain.from_iterable(found)])
    return table(["method", *heads], lines)


def methods_of(rows_at: dict[str, pd.DataFrame]) -> list[str]:
    return list(next(iter(rows_at.values()))["method"].unique())


def drawn(rows: pd.DataFrame, method: str) -> str:
    return cell(rows[rows["method"] == method]["perplexity"])


def times(rows: pd.DataFrame, method: str, other: str = "sparsegpt") -> str:
    """Times the other's perplexity: bounds over draws, and by windows, whose losses are means over draws. Bold where
    both are clear."""
    if method == other:
        return ""
    found = [made(rows, method, other) for made in (ratio, window_ratio)]
    (value, over_draws), (_, by_windows) = map(digits, found)
    bold = "**" if all(one.is_clear for one in found) else ""
    return f"{bold}{value} ({over_draws}; {by_windows}){bold}"


def differs(rows: pd.DataFrame, other: str) -> bool:
    """Whether our recommended method does clearly from another, by draws and by windows."""
    return all(made(rows, "rose_admm", other).is_clear for made in (ratio, window_ratio))


def default_beside_others() -> str:
    """Where the recommended method is clearly below SparseGPT and ALPS."""
    others = [at for s, at in HEADLINE.items() if not differs(headline(s), "sparsegpt")]
    below = [at for s, at in HEADLINE.items() if differs(headline(s), "alps")]
    for sparsity in HEADLINE:
        drawn = headline(sparsity).pivot(index="seed", columns="method", values="perplexity")
        assert (drawn[["rose_admm", "alps"]].max(axis=1) < drawn["sparsegpt"]).all()
        assert drawn["rose_admm"].mean() < drawn["alps"].mean()
    return (
        f"is better than SparseGPT in every draw, clearly except {listing(others)}, and clearly better than ALPS "
        f"{listing(below)} alone"
    )


def odd_draw() -> str:
    """The draw of SparseGPT at 80 % that one window sets apart."""
    rows = headline("0.8").query("method == 'sparsegpt'").sort_values("seed")
    *usual, odd = rows["perplexity"]
    losses = np.array([[float(loss) for loss in one.split()] for one in rows["losses"]])
    more = np.sort(losses[-1] - losses[:-1].mean(axis=0))
    assert more[-2] < 1
    return (
        f"the third draw of SparseGPT has {odd:.1f}, the others {usual[0]:.1f} and {usual[1]:.1f}: one test window "
        f"loses {more[-1]:.1f} nats a token more"
    )


def second_beside_alps() -> str:
    """The same of the second model, and whether any method is clearly below SparseGPT there at 50 %."""
    half, less = (headline(s, model=SECOND) for s in SECOND_AT)
    assert not any(differs(rows, "alps") for rows in (half, less))
    assert not any(ratio(half, method, "sparsegpt").is_clear for method in ("rose_admm", "alps"))
    first, second = (says(ratio(rows, "rose_admm", "alps")) for rows in (half, less))
    return (
        f"at {first} times ALPS's at 50 %, and at {second} times ALPS's at 70 %, no clear difference. At 50 % neither "
        "is clearly below SparseGPT over three draws"
    )


def second_beside_sparsegpt() -> str:
    half, less = (differs(headline(s, model=SECOND), "sparsegpt") for s in SECOND_AT)
    assert less
    assert not half
    return "it is clearly better than SparseGPT at 70 %, not at 50 %, and does not clearly differ from ALPS"


def model(name: str, target: str) -> pd.DataFrame:
    rows = read("models.csv")
    return rows[(rows["model"] == name) & (rows["target"] == target)]


def of_target() -> verdicts.Interval:
    """How many times SparseGPT's perplexity with target layer that with target dense is, in Qwen."""
    rows = read("models.csv").query("model == 'qwen.gguf' and method == 'sparsegpt'")
    return ratio(rows.assign(method=rows["target"]), "dense", "layer")


def second_model() -> str:
    """Qwen's perplexities with both targets."""
    methods, lines = ("sparsegpt", "rose", "rose_admm"), []
    for target in ("layer", "dense"):
        rows = model("qwen.gguf", target)
        cells = (cell(rows[rows["method"] == m]["perplexity"], 1) for m in methods)
        lines.append([f"{rows['dense'].iloc[0]:.1f}", target, *cells])
    return table(["dense", "target", *methods], lines)


@cache
def by_layer(name: str) -> pd.DataFrame:
    """Held-out errors of layers relative to SparseGPT's on the same layer, a column a method."""
    errors = read(name).pivot(index="layer", columns="method", values="held_out_error")
    return errors.div(errors["sparsegpt"], axis=0)


def layers() -> str:
    """Means over all 210 layers, the same inputs: layers-70.csv."""
    means = by_layer("layers-70.csv").mean()
    assert f"{means['measured']:.2f}" == f"{means['rose_global']:.2f}"
    named = {"rose_global": "`rose_global` and `measured`"}
    *most, last = [
        f"{means[m]:.2f} for {named.get(m, f'`{m}`')}"
        for m in ("alps", "rose_dealt", "rose_global", "rose", "oats", "dsnot", "wanda", "magnitude")
    ]
    return f"{', '.join(most)} and {last}"


def ranges(name: str) -> pd.Series:
    return read(name).drop_duplicates("layer").set_index("layer")["relative_range"].filter(like="o_proj")


def columnar(name: str) -> list[str]:
    """Output projections above the threshold of 0.5."""
    of = ranges(name)
    return list(of[of > 0.5].index)


def rose_where(name: str) -> pd.Series:
    """ROSE's error relative to SparseGPT's where it reorders."""
    return by_layer(name)["rose"].loc[columnar(name)]


def texts() -> dict[str, list[str]]:
    """For each document what it must say, tables and phrases."""
    more = [by_order("2:4"), *map(by_block_size, MODELS), in_bases(), rotated_models()]
    of_orders = {"docs/orders.md": orders(), "docs/lab-notes/orders.md": more}
    return {"docs/results.md": results(), "README.md": readme(), **of_orders}


def tables() -> dict[str, list[str]]:
    """The same of documents of which the tables alone are compared."""
    return {
        "docs/lab-notes/check.md": [planted(), sane_layers(), faults_within()],
        "docs/check.md": [faults_found()],
        "docs/shipping.md": shipping(),
        "docs/lab-notes/shipping.md": [beside_llama_cpp(), beside_published(), four_bits(qwen_half())],
        "docs/tuning.md": tuning(),
        "docs/lab-notes/models.md": [
            moved(),
            *states_and_damage(),
            late_columns(),
            *states_and_damage("sparsegpt")[:1],
        ],
    }


def tuning() -> list[str]:
    said = [tuning_seconds(), equal_time(), in_their_time(), *map(dense_on_both_texts, ("smollm2-135m", "qwen.gguf"))]
    whole, part = tuning_memory_of_1b()
    said += [f"{whole} for shapes of Llama-3.2-1B in bfloat16", f"{part} for Llama-3.2-1B in four"]
    after = {s: headline(s, tuned=True) for s in HEADLINE}
    return [tuned(), tuned("qwen.gguf"), of_methods(after), times_sparsegpt(after), *said]


def shipping() -> list[str]:
    smol = half_and_four("bits.csv", "smollm2", "rose_admm")
    together, apart, nearest = costs_of_four_bits(smol, ("joint", "sweep", "rounding"))
    ours, later = costs_of_four_bits(qwen_half(), ("joint", "sweep"))
    return [
        *(four_bits(smol), zeros_and_bits(), round_in_each_draw(), packed()),
        f"4 bits cost {together} where pruning and rounding are made good together, {apart} one after the other, and "
        f"{nearest} where rounding is not made good",
        f"4 bits cost {ours} together and {later} one after the other",
        files_in_llama_cpp(),
    ]


def planted() -> str:
    """Faults planted in checkpoints, and what the check said."""
    lines = []
    for row in pd.read_csv(RESULTS / "planted.csv", dtype=str, keep_default_na=False).itertuples():
        target = ", towards the dense model" if row.target == "dense" else ""
        whose = f"{row.method}{target} ({row.agreement}, by chance {row.by_chance})" if row.method else ""
        lines.append([row.fault, row.expected, row.found, row.accused, row.accused_besides, whose])
    return table(["planted", "expected", "found", "accused", "besides", "masks are those of"], lines)


def sane_layers() -> str:
    """Layers by every method, and whether a check accuses a part of one."""
    rows = read("check-within-sane.csv")
    lines = []
    for method, of in rows[rows["accused"].notna()].groupby("method", sort=False):
        lowest = [f"{of[name].min():.2f}" for name in ("row_cosine", "column_cosine")]
        slopes = f"{of['row_slope_low'].min():.2f} to {of['row_slope_high'].max():.2f}"
        lines.append(
            [method, str(len(of)), *(f"{of[name].sum():.0f}" for name in ("accused", "may_be_lawful")), *lowest]
        )
        lines[-1].append(slopes)
    head = ["method", "layers", "parts accused", "may be lawful", "lowest row cosine", "lowest column cosine"]
    return table([*head, "slopes of rows"], lines)


def faults_within() -> str:
    """Faults within layers by method and size: found, and called lawful perhaps, of how many places."""
    rows = read("check-within-planted.csv")
    methods = list(rows["method"].unique())
    lines = []
    for (axis, fault), of in rows.groupby(["axis", "fault"], sort=False):
        line = [axis, fault, ", ".join(of["size"].unique())]
        for method in methods:
            sums = of[of["method"] == method].groupby("size", sort=False)[["found", "may_be_lawful", "missed"]].sum()
            line.append(
                ", ".join(
                    f"{each.found}{f' + {each.may_be_lawful}' * bool(each.may_be_lawful)}" for each in sums.itertuples()
                )
            )
        line.append(str(sums.sum(axis=1).max()))
        lines.append(line)
    return table(["part", "fault", "sizes", *methods, "of"], lines)


def faults_found() -> str:
    """How many of the planted faults were found, one sentence."""
    rows = pd.read_csv(RESULTS / "planted.csv")
    found, besides = (rows["found"] == "yes").sum(), rows["accused_besides"].sum()
    return (
        f"Of {len(rows)} checkpoints, with one fault planted or none, {found} were judged as expected, and {besides} "
        f"layers were accused besides"
    )


def results() -> list[str]:
    layer, low = "rows.csv", "low-sparsities.csv"
    methods = list(read(layer)["method"].unique())
    methods.remove("rose_admm")  # ran elsewhere than the others
    pruned = {s: headline(s) for s in HEADLINE}
    return [
        perplexities(layer, methods),
        *(f"whose dense perplexity is {headline(s)['dense_perplexity'].iloc[0]:.2f}" for s in HEADLINE),
        of_methods(pruned),
        times_sparsegpt(pruned),
        *(beside_sparsegpt({"0.7": controls(one)}) for one in ("dense", "layer")),
        chosen_by_validation(),
        odd_draw(),
        ratios(),
        second_model(),
        beside_sparsegpt({s: headline(s, model=SECOND) for s in SECOND_AT}),
        *(f"its dense perplexity is {headline(s, model=SECOND)['dense_perplexity'].iloc[0]:.2f}" for s in SECOND_AT),
        second_beside_alps(),
        layers(),
        f"dense model's perplexity is {at(layer, '0.7')['dense_perplexity'].iloc[0]:.2f}",
        f"dense perplexity of {at(layer, '0.7')['dense_perplexity'].iloc[0]:.5f}",
        f"0.3 it is at {says(ratio(at(low, '0.3'), 'rose_admm', 'sparsegpt'))} times SparseGPT's, at 0.4 at "
        f"{says(ratio(at(low, '0.4'), 'rose_admm', 'sparsegpt'))}",
        f"SparseGPT's perplexity with dense targets is {says(of_target())} times that with `--target layer` in Qwen",
        f"`rose_admm` is at {says(ratio(model('qwen.gguf', 'dense'), 'rose_admm', 'sparsegpt'))} times SparseGPT's",
        f"`rose` at {says(ratio(model('qwen.gguf', 'layer'), 'rose', 'sparsegpt'))} with `--target layer` and "
        f"{says(ratio(model('qwen.gguf', 'dense'), 'rose', 'sparsegpt'))} with dense targets",
    ]


@cache
def outputs_by_order() -> pd.DataFrame:
    """Errors of output projections relative to SparseGPT's on the same layer, basis as given and blocks of 128."""
    rows = pd.read_csv(RESULTS / "orders-outputs.csv", dtype={"sparsity": str, "block_size": str})
    same = ["model", "seed", "layer", "sparsity"]
    base = rows[(rows["basis"] == "as given") & (rows["block_size"] == "128")].set_index(same)["natural/block"]
    tried = [name for name in rows if "/" in name or name.startswith("rose")]
    rows[tried] = rows[tried].div(rows.join(base.rename("base"), on=same)["base"], axis=0)
    return rows


MODELS = {"smollm2-135m": "SmolLM2-135M", "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B"}
ORDERS = {
    "natural/block": "natural / block (SparseGPT)",
    "two_level/block": "two-level / block, forced",
    "rose": "two-level where columnar / block (ROSE)",
    "random:0/block": "random / block",
    "dealt/block": "dealt / block",
    "global/block": "global / block",
    "natural/layer": "natural / layer",
    "two_level/layer": "two-level / layer",
    "random:0/layer": "random / layer",
    "dealt/layer": "dealt / layer",
    "global/layer": "global / layer (`rose_global`)",
    "rose_dealt": "dealt / block, refitted (`rose_dealt`)",
    "rose_admm": "mask revised, no order (`rose_admm`)",
}


def by_order(sparsity: str) -> str:
    """Every order and budget, as given and in the learned basis, means over layers and draws."""
    rows = outputs_by_order().query(f"sparsity == {sparsity!r} and block_size == '128'")
    found = rows.groupby(["model", "basis"], sort=False)[list(ORDERS)].mean()
    bases = {"as given": "as given", "learned": "rotated"}
    columns = [(model, basis) for model in MODELS for basis in bases]
    head = ["order / budget", *(f"{MODELS[model]}, {bases[basis]}" for model, basis in columns)]
    lines = [
        [shown, *(f"{found.loc[one, name]:.3f}" for one in columns)]
        for name, shown in ORDERS.items()
        if found[name].notna().all()
    ]
    return table(head, lines)


def draws_apart() -> str:
    """By how much means of one draw differ, at most; those of the worst order apart."""
    rows = outputs_by_order().query("block_size == '128'")
    means = rows.groupby(["model", "sparsity", "basis", "seed"])[list(ORDERS)].mean()
    most = means.groupby(["model", "sparsity", "basis"]).agg(np.ptp).max()
    rest = most.drop("global/block").max()
    return f"means of single draws lie within {rest:.2f} of each other, those of global / block within {most.max():.2f}"


def by_block_size(model: str) -> str:
    """Orders by the size of blocks, as given at 70 %, relative to SparseGPT with blocks of 128: means over draws."""
    rows = outputs_by_order().query(f"model == {model!r} and sparsity == '0.7' and basis == 'as given'")
    found = rows.groupby("block_size")[list(ORDERS)].mean().reindex(["32", "64", "128", "256", "whole"])
    lines = [
        [shown, *(f"{one:.3f}" for one in found[name])] for name, shown in ORDERS.items() if found[name].notna().all()
    ]
    return table(["order / budget", *("whole layer" if size == "whole" else size for size in found.index)], lines)


def in_bases() -> str:
    """Each basis against the basis as given, by the same method: mean and range over output projections."""
    rows = read("rotation.csv")
    key = ["model", "seed", "layer", "method"]
    given = rows[rows["basis"] == "as given"].set_index(key)["error"].rename("given")
    rows = rows[rows["basis"] != "as given"].join(given, on=key)
    of = {one: part["error"] / part["given"] for one, part in rows.groupby(["model", "basis", "method"], sort=False)}
    lines = [
        [
            MODELS[model],
            basis,
            *(
                f"{r.mean():.3f} ({r.min():.2f} to {r.max():.2f})"
                if (r := of.get((model, basis, m))) is not None
                else ""
                for m in ("sparsegpt", "rose", "rose_admm")
            ),
        ]
        for model, basis in dict.fromkeys(one[:2] for one in of)
    ]
    return table(["model", "basis", "SparseGPT", "ROSE", "`rose_admm`"], lines)


def rotated_models() -> str:
    """Whole models with rotated heads against those without: means over draws, and their ratio."""
    rows, lines = read("rotation-whole.csv"), []
    for (sparsity, method, target), part in rows.groupby(["sparsity", "method", "target"]):
        drawn = part.pivot(index="seed", columns="rotated", values="perplexity").dropna()
        if len(drawn) > 1:
            found = verdicts.paired_ratio(np.log(drawn[True]), np.log(drawn[False]))
            each = ", ".join(f"{ratio:.3f}" for ratio in drawn[True] / drawn[False])
            said = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
            means = (f"{drawn[one].mean():.1f}" for one in (False, True))
            lines.append([sparsity, f"`{method}`, target {target}", *means, each, said])
    return table(["sparsity", "", "as given", "rotated", "ratio in each draw", "mean, 95 % interval"], lines)


def pairs_rotated() -> str:
    """In how many runs rotated heads give the lower perplexity."""
    key = ["seed", "sparsity", "target", "method"]
    drawn = read("rotation-whole.csv").pivot(index=key, columns="rotated", values="perplexity")
    return f"Perplexity is lower with rotated heads in {(drawn[True] < drawn[False]).sum()} of {len(drawn)} pairs"


def outputs_of(model: str, sparsity: str) -> pd.DataFrame:
    """Output projections as given, blocks of 128, a row for each draw and layer."""
    rows = outputs_by_order().query(f"model == {model!r} and sparsity == {sparsity!r} and block_size == '128'")
    return rows[rows["basis"] == "as given"]


def orders_compared() -> tuple[str, str, list[int]]:
    """In how many output projections, as given, an order is below another, at 70 % and at 2:4, and by model how often
    a random order is below two-level order."""
    said, kept, by_chance = [], [], []
    for model, name in MODELS.items():
        drawn = outputs_of(model, "0.7")
        columnar = int((drawn["relative_range"] > 0.5).groupby(drawn["seed"]).sum().median())  # in most draws
        free, grouped = (one.groupby("layer")[list(ORDERS)].mean() for one in (drawn, outputs_of(model, "2:4")))
        helped = (free["two_level/block"] < free["natural/block"]).sum()
        by_chance.append((free["random:0/block"] < free["two_level/block"]).sum())
        where = f"{helped} of {len(free)} layers"
        where = f"In {name} it does so in {where}" if said else f"Forced, it lowers the error of {where} of {name}"
        said.append(
            f"{where}, of which ROSE takes {columnar} for columnar; a random order is below it in {by_chance[-1]}"
        )
        kept.append(f"{(grouped['random:0/block'] > grouped['two_level/block']).sum()} of {len(grouped)} layers")
    return ". ".join(said), " and in ".join(kept), by_chance


def learned_basis() -> str:
    """What the learned basis leaves of a method's error, one sentence of the table of bases."""
    rows = read("rotation.csv")
    of = rows.pivot(index=["model", "seed", "layer"], columns=["basis", "method"], values="error")
    left = of["learned"].div(of["as given"]).groupby("model").mean()
    smol, qwen = (left.loc[model].map("{:.3f}".format) for model in MODELS)
    return (
        f"It leaves {smol['sparsegpt']} of SparseGPT's held-out error in SmolLM2's output projections at 70 %, "
        f"{smol['rose']} of ROSE's and {smol['rose_admm']} of `rose_admm`'s; in Qwen's {qwen['sparsegpt']} of "
        f"SparseGPT's and {qwen['rose']} of ROSE's"
    )


def columnar_layers() -> str:
    """How many layers are columnar in two models, and how high relative ranges go."""
    every = read("layers-70.csv").drop_duplicates("layer").set_index("layer")["relative_range"]
    outputs, qwen = ranges("layers-70.csv"), ranges("qwen2.5-coder-0.5b-o_proj.csv")
    others = every.drop(outputs.index)
    assert (others <= 0.5).all()
    return (
        f"Among all {len(every)} layers of SmolLM2-135M {(outputs > 0.5).sum()} of {len(outputs)} output projections "
        f"are columnar at 70 %, with a relative range of up to {outputs.max():.2f}, and none of the {len(others)} "
        f"others, which reach {others.max():.2f} ([rows](results/layers-70.csv)). In Qwen2.5-Coder-0.5B "
        f"{(qwen > 0.5).sum()} of {len(qwen)} output projections are, with up to {qwen.max():.2f}"
    )


def orders() -> list[str]:
    sentences = [columnar_layers(), *orders_compared()[:2], draws_apart(), learned_basis(), *order_after_tuning()]
    return [by_order("0.7"), *sentences, pairs_rotated()]


def own_model() -> str:
    """Hours and memory of a user's commands on models of two sizes, from decoder blocks that were run."""
    commands = ("analyze", "prune, sparsegpt", "prune")
    lines = [[f"{one} shapes", *(", ".join(hours_and_memory(one, command)) for command in commands)] for one in LLAMAS]
    return table(["", "`analyze --layers '*o_proj'`", "`prune --method sparsegpt`", "`prune`, by default"], lines)


LLAMAS = ("1B", "7B")


def hours_and_memory(shapes: str, command: str) -> tuple[str, str]:
    """Of all decoder blocks."""
    row = read("own-model.csv").set_index(["shapes", "command"]).loc[(shapes, command)]
    minutes = row["seconds"] * row["of_blocks"] / row["blocks"] / 60
    time = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return time, f"{row['peak_memory'] / 1e9:.1f} GB"


def streamed() -> str:
    """The default method on models of two sizes."""
    return " and ".join(f"{' and '.join(hours_and_memory(one, 'prune'))} with {one} shapes" for one in LLAMAS)


def packed_share(sparsity: str, bits: int) -> float:
    """Of what layers take in bfloat16, packed."""
    return float(read("packed.csv").set_index(["sparsity", "bits"]).loc[(sparsity, bits), "share"])


def packed() -> str:
    """The same by sparsity and bits of the kept weights, lines of a table."""
    lines = [
        [percent(float(one), 0), *(f"{packed_share(one, bits):.3f}" for bits in (16, 4))]
        for one in read("packed.csv")["sparsity"].unique()
    ]
    return table(["zeros", "not rounded", "4 bits"], lines)


def files_of_half() -> str:
    """Size and speed of half of the weights zero and 4 bits for the others, by the type of the GGUF file."""
    rows = read("llama-cpp.csv").query("model == 'half-4-bits'").set_index("type")
    (small, fast), (large, slow) = (
        (f"{rows.loc[one, 'bytes'] / 1e6:.0f} MB", f"{rows.loc[one, 'tokens_per_second']:.0f}")
        for one in ("q4_0", "f16")
    )
    return (
        f"packed layers {packed_share('0.5', 4):.2f}; GGUF `q4_0` {small} for {large} in `f16`, {fast} for {slow} "
        f"tokens a second"
    )


def speed_of_slim() -> str:
    """What a quarter of the decoder blocks' parameters taken out gives."""
    said = (RESULTS / "structured-speed.txt").read_text()
    size, prefill, decode = (
        float(re.findall(rf"{what}: .* ratio ([\d.]+)", said)[0]) for what in ("file, bytes", "prefill", "decode")
    )
    return f"with a quarter taken out {size:.2f} of the bytes, prefill {prefill:.2f} and decoding {decode:.2f} times"


def tuning_memory_of_1b() -> tuple[str, str]:
    """What tuning takes besides both models of Llama-3.2-1B's shapes in bfloat16, at once and in four parts."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    config = LlamaConfig(vocab_size=128256, num_key_value_heads=8, tie_word_embeddings=True, **sizes)
    with torch.device("meta"):
        network = Network(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))
    weights = sum(layer.weight.numel() for layer in network.layers)
    whole, part = (tuning_memory(network, 512, weights // parts) / 1e9 for parts in (1, 4))
    return f"{whole:.0f} GB", f"{part:.0f} GB"


def slimmed(ratio: float) -> pd.DataFrame:
    rows = read("structured.csv")
    return rows[(rows["variant"] == "obs@uniform/exact") & (rows["ratio"] == ratio)]


def of_bits() -> str:
    """What 4 bits cost besides half of the weights zero, draw by draw in one environment."""
    rows = read("bits.csv").query("model == 'smollm2-135m' and way == 'joint' and sparsity == '0.5'")
    rows = rows[rows["bits"].isin(["-", "4"])]
    assert rows["dense_perplexity"].nunique() == 1
    return f"{says(ratio(rows.assign(method=rows['bits']), '4', '-'))} times that, {rows['seed'].nunique()} draws"


def zeros_and_bits() -> str:
    """Perplexity by what is zero and how many bits the others have, most bits first."""
    rows = first_draw(read("bits-budget.csv"))
    zeros = {"0": "none", "0.5": "50 %", "0.7": "70 %", "2:4": "2:4"}
    lines = [
        [f"{row.bits_a_weight:.2f}", zeros[row.sparsity], str(row.bits or 16), f"{row.perplexity:.2f}"]
        for row in rows.sort_values(["bits_a_weight", "perplexity"], ascending=[False, True]).itertuples()
    ]
    return table(["bits a weight", "zeros", "bits of the others", "perplexity"], lines)


def round_or_prune() -> str:
    """The same bits a weight, spent in two ways."""
    rows = first_draw(read("bits-budget.csv")).set_index(["sparsity", "bits"])
    rounded, both = rows.loc[("0", 3)], rows.loc[("0.5", 4)]
    assert f"{rounded['bits_a_weight']:.2f}" == f"{both['bits_a_weight']:.2f}"
    size, three, four = both["bits_a_weight"], rounded["perplexity"], both["perplexity"]
    return (
        f"with {size:.2f} bits a weight, perplexity is {three:.1f} where all weights have 3 bits, and {four:.1f} where "
        f"half are zero and the others have 4"
    )


def round_in_each_draw() -> str:
    """The same bits a weight in two ways, draw by draw."""
    rows = read("bits-budget.csv").query("way == 'joint' and method == 'rose_admm' and model == 'smollm2-135m'")
    rows = rows.set_index(["sparsity", "bits", "seed"])["perplexity"].sort_index()
    rounded, both = (", ".join(f"{value:.2f}" for value in rows.loc[key]) for key in (("0", "3"), ("0.5", "4")))
    return f"{rounded} against {both} in draws 0, 1 and 2"


HALF_AND_FOUR = {  # half of the weights zero, by way and bits of tests.benchmarks.bits
    ("joint", "-"): "alone",
    ("joint", "4"): "and 4 bits, together",
    ("sweep", "4"): "pruned, then rounded by a sweep of its own",
    ("rounding", "4"): "pruned, then rounded to the nearest",
}


def half_and_four(name: str, model: str, method: str) -> pd.DataFrame:
    """Rows of half of the weights zero, without bits and with 4 in groups of 64, by way and bits."""
    rows = read(name).query("sparsity == '0.5' and group in ['-', '64']")
    rows = rows[rows["model"].str.startswith(model) & (rows["method"] == method)].sort_values("seed")
    assert rows["dense_perplexity"].nunique() == 1
    return rows.set_index(["way", "bits"]).sort_index()


def four_bits(rows: pd.DataFrame) -> str:
    """Perplexity of each draw."""
    lines = []
    for key, what in HALF_AND_FOUR.items():
        if key in rows.index:
            drawn = rows.loc[[key]]
            assert list(drawn["seed"]) == [0, 1, 2]
            size = f"{drawn['bits_a_weight'].iloc[0]:.2f}"
            lines.append([what, size, *(f"{value:.2f}" for value in drawn["perplexity"])])
    return table(["50 % zeros", "bits a weight", "draw 0", "draw 1", "draw 2"], lines)


def qwen_half() -> pd.DataFrame:
    return half_and_four("bits-budget.csv", "qwen", "sparsegpt")


def costs_of_four_bits(rows: pd.DataFrame, ways: Sequence[str]) -> list[str]:
    """By how much each way raises perplexity, the least and the most of three draws."""
    alone, said = rows.loc[[("joint", "-")]]["perplexity"].to_numpy(), []
    for way in ways:
        more = 100 * (rows.loc[[(way, "4")]]["perplexity"].to_numpy() / alone - 1)
        said.append(f"{more.min():.1f} to {more.max():.1f} %")
    return said


def beside_published() -> str:
    """SparseGPT's own program with wbits beside ours, on the same tokens, draw by draw."""
    rows = read("bits-budget.csv").sort_values("seed").set_index(["way", "method", "bits", "group"]).sort_index()
    ways = {
        ("published", "sparsegpt", "4", "row"): "its program, 4 bits, one scale and offset a row",
        ("layer", "sparsegpt", "4", "row"): "ours, 4 bits, one scale a row",
        ("layer", "sparsegpt", "4", "64"): "ours, 4 bits, groups of 64",
        ("layer", "sparsegpt", "-", "-"): "ours, not rounded",
    }
    lines = []
    for key, what in ways.items():
        drawn = rows.loc[[key]]
        assert list(drawn["seed"]) == [0, 1, 2]
        lines.append([what, *(f"{value:.1f}" for value in drawn["perplexity"])])
    return table(["SparseGPT, `--target layer`", "draw 0", "draw 1", "draw 2"], lines)


SHIPPED = {"half": "50 % zeros", "half-4-bits": "50 % zeros and 4 bits"}


def files_in_llama_cpp() -> str:
    """Size and speed of the GGUF files of one model, and how near llama.cpp comes to its losses."""
    lines = [
        [f"`{row.type}`", f"{row.bytes / 1e6:.0f} MB", f"{row.tokens_per_second:.0f}", f"{row.mean_difference:.3f}"]
        for row in read("llama-cpp.csv").query("model == 'half-4-bits'").itertuples()
    ]
    return table(["file", "size", "tokens a second", "mean difference of losses"], lines)


def beside_llama_cpp() -> str:
    """How far llama.cpp's losses are from those of `rose.load_model` on the same file."""
    lines = [
        [SHIPPED[row.model], row.type, f"{row.difference:.3f}", f"{row.mean_difference:.3f}", f"{100 * row.top1:.0f} %",
         f"{row.perplexity_ours:.2f} / {row.perplexity_theirs:.2f}"]
        for row in read("llama-cpp.csv").itertuples()
    ]  # fmt: skip
    return table(["model", "file", "largest difference", "mean difference", "same first token", "perplexity"], lines)


def tunings(model: str = "smollm2-135m") -> pd.DataFrame:
    """The dense model, pruned ones, and the same tuned."""
    return read("tuning.csv").query("model == @model")


def tuning_rows(model: str = "smollm2-135m") -> pd.DataFrame:
    """Models that were pruned with 16 windows, and tuned."""
    return tunings(model).query("samples == 16")


def tuned(model: str = "smollm2-135m") -> str:
    """Perplexity before and after tuning by sparsity and way of pruning: means over draws, and each of them; on the
    text that is tuned on, and on another one."""
    rows = tuning_rows(model)
    sizes = [size for size in sorted(rows["windows"].unique()) if size]
    lines = []
    for (sparsity, method), part in rows.groupby(["sparsity", "method"], sort=False):
        drawn, other = (part.pivot(index="seed", columns="windows", values=one) for one in ("perplexity", "other"))
        full = [size for size in sizes if size in drawn and drawn[size].notna().all()]
        if not full:
            continue  # not tuned in every draw yet
        cells = [each_draw(drawn[size]) if size in (0, *full) else "" for size in (0, *sizes)]
        known = other[[0, full[-1]]].notna().all(axis=None)
        moved = " → ".join(f"{other[size].mean():.1f}" for size in (0, full[-1])) if known else ""
        removed = sparsity.replace("slim-", "`rose slim`, ")
        lines.append([removed, f"`{method}`", *cells, moved])
    return table(["removed", "by", "before", *(f"{size} windows" for size in sizes), "other text"], lines)


def dense_on_both_texts(model: str) -> str:
    dense = tunings(model).query("method == 'dense'").iloc[0]
    return f"dense {dense['perplexity']:.1f}, on other text {dense['other']:.1f}"


def tuning_seconds() -> str:
    """The processor's, of models that have lost no heads or channels; the others take less."""
    rows = tuning_rows()
    took = rows[~rows["sparsity"].str.contains("slim", na=True)].groupby("windows")["processor_seconds"].mean()
    return " and ".join(f"{took[size]:.0f} seconds for {size} windows" for size in took.index if size)


def equal_time() -> str:
    """Calibration with more windows beside tuning, the default method at 70 %: perplexities, and processor seconds."""
    rows = tunings()
    found = {one.name: one for one in costs_and_worths(rows, "0.7")}
    few, many, tuned = (found[f"ROSE ADMM {name}"] for name in ("16", "64", "16 + 64 tuned"))
    both = rows.query("sparsity == '0.7' and samples == 64 and windows == 64").iloc[0]
    seconds = many.seconds + both["processor_seconds"]
    return (
        f"Before: {few.value:.1f} after {few.seconds:.0f} s. Calibrating on four times the windows gives "
        f"{many.value:.1f} after {many.seconds:.0f} s. Tuning on 64 windows instead gives {tuned.value:.1f} after "
        f"{tuned.seconds:.0f} s. Doing both gives {both['perplexity']:.1f} after {seconds:.0f} s (one draw)"
    )


def in_their_time() -> str:
    """What pruning, and pruning and tuning, reach in the time of the authors' program."""
    rows = read("time-to-quality.csv").set_index(["program", "method", "tokens"])
    theirs = rows.loc["authors"].iloc[0]
    ours, tuned = rows.loc[("ours", "sparsegpt", "4 × 512")], rows.loc[("ours", "rose_admm, tuned", "16 × 512")]
    assert tuned["processor_seconds"] < theirs["processor_seconds"]
    return (
        f"The authors' program prunes to {theirs['perplexity']:.1f} in {theirs['processor_seconds']:.0f} s, by "
        f"SparseGPT with {rows.loc['authors'].index[0][1]} tokens of the packaged text. Ours, not tuned and towards "
        f"the dense model, is at {ours['perplexity']:.1f} after {ours['processor_seconds']:.0f} s. Tuned on that same "
        f"text for the rest of the time, `rose_admm` reaches {tuned['perplexity']:.1f}"
    )


def order_after_tuning() -> list[str]:
    """Global order with the layer's budget beside SparseGPT, target layer at 70 %: before and after tuning."""
    rows = tuning_rows().query("sparsity == '0.7'")
    drawn = rows.pivot(index="seed", columns=["method", "windows"], values="perplexity")
    means, ratios = [], []
    for size in (0, 64):
        one, other = (drawn[f"{method}:layer", size].dropna() for method in ("rose_global", "sparsegpt"))
        means.append((f"{other.mean():.1f}", f"{one.mean():.1f}"))
        ratios.append(verdicts.paired_ratio(np.log(one), np.log(other)))
    before, after = ratios
    assert before.is_clear
    assert not after.is_clear
    return [
        f"Before tuning SparseGPT has {means[0][0]} and global order {means[0][1]}, which is {before.value:.2f} "
        f"({before.low:.2f} to {before.high:.2f}) times as much",
        f"After 64 windows they have {means[1][0]} and {means[1][1]}: {after.value:.2f} ({after.low:.2f} to "
        f"{after.high:.2f}) times, no clear difference",
    ]


def moved(method: str = "rose_admm") -> str:
    """How far layers move, and their last quarter of columns beside their first."""
    rows = read("tuning-layers.csv").query("method == @method")
    ratio, most = (rows["last_columns"] / rows["first_columns"]).median(), rows.loc[rows["change"].idxmax()]
    typical, least = percent(rows["change"].median()), percent(rows["change"].min())
    return (
        f"by {typical} of its norm in the median, at least {least} and at most {percent(most['change'])} "
        f"(`{most['layer']}`), and its last quarter of columns by {ratio:.2f} times as much as its first"
    )


def late_columns() -> str:
    """The same of SparseGPT, whose last columns nothing compensates: in how many layers they move more than the first,
    and by how much in the median."""
    rows = read("tuning-layers.csv").query("method == 'sparsegpt'")
    ratio = rows["last_columns"] / rows["first_columns"]
    return (
        f"moves by {ratio.median():.2f} times as much of its norm as the first, and by more in {(ratio > 1).sum()} of "
        f"{len(rows)} layers"
    )


def states_and_damage(method: str = "rose_admm") -> list[str]:
    """Drift and damage by decoder block before and after tuning."""
    rows = read("tuning-blocks.csv").query("method == @method")
    first, last, mean, total = rows.iloc[0], rows.iloc[-1], rows.mean(numeric_only=True), rows.sum(numeric_only=True)

    def change(name: str, found: pd.Series) -> str:
        return f"from {found[f'{name}_before']:.3f} to {found[f'{name}_after']:.3f}"

    return [
        f"{change('drift', mean)} in the mean over {len(rows)} decoder blocks, {change('drift', last)} after the last",
        f"{change('damage', first)} nats a token in the first decoder block and {change('damage', last)} in the last, "
        f"and in the sum over all {change('damage', total)}",
    ]


def tuned_longest() -> list[str]:
    """Before and after tuning on the most windows, of a sparse and of a smaller model, for the table of decisions."""
    rows, said = tuning_rows(), []
    most = rows["windows"].max()
    ways = (("0.7", "rose_admm", "70 % zero"), ("slim-0.3", "obs:layer", "30 % taken out"))
    for sparsity, method, what in ways:
        drawn = rows.query(f"sparsity == {sparsity!r} and method == {method!r}")
        before, after = (drawn[drawn["windows"] == size]["perplexity"] for size in (0, most))
        assert len(before) == len(after) == 3
        said.append(f"{what}: {cell(before, 1)}, tuned {cell(after, 1)}")
    return [*said, f"on {most} windows"]


def each_draw(values: pd.Series) -> str:
    if len(values) == 1:
        return f"{values.item():.1f} (one draw)"
    return f"{values.mean():.1f} ({', '.join(f'{one:.1f}' for one in values)})"


def before_and_after(dense: float, after: pd.Series) -> str:
    return f"{dense:.1f} → {cell(after)}"


def readme() -> list[str]:
    five, at_70 = ("wanda", "sparsegpt", "rose", "alps", "rose_admm"), headline("0.7")
    lines = [[f"`{m}`", cell(at_70[at_70["method"] == m]["perplexity"])] for m in five]
    recommended = [headline(sparsity).query("method == 'rose_admm'") for sparsity in ("0.5", "2:4")]
    slim, whole = slimmed(0.2), read("structured.csv").query("variant == 'dense'").iloc[0]
    smol, qwen = "layers-70.csv", "qwen2.5-coder-0.5b-o_proj.csv"
    output = [line for line in (RESULTS / "qwen2.5-coder-0.5b-analyze.txt").read_text().splitlines() if line.strip()]
    shown = [*output[1:5], output[6], " …", output[10], output[-1]]
    chance = orders_compared()[2]
    minutes, seconds = re.findall(r" 0:(\d\d):(\d\d) ", output[0])[0]
    return [
        table(["method", "perplexity"], lines),
        f"a look at 7B shapes takes [{', '.join(hours_and_memory('7B', 'analyze'))}]",
        streamed(),
        "\n".join(shown),
        *(before_and_after(rows["dense_perplexity"].iloc[0], rows["perplexity"]) for rows in recommended),
        f"{before_and_after(whole['perplexity'], slim['perplexity'])}, {slim['parameters'].mean() / 1e6:.0f} of "
        f"{whole['parameters'] / 1e6:.0f} million parameters",
        of_bits(),
        round_or_prune(),
        f"packed layers {packed_share('0.5', 16):.2f} of `bfloat16`",
        files_of_half(),
        speed_of_slim(),
        "{} besides, with `--parts 4` {}".format(*tuning_memory_of_1b()),
        f"ROSE's held-out error is {rose_where(smol).mean():.2f} of SparseGPT's in the {len(columnar(smol))} of "
        f"{len(ranges(smol))} output projections that are columnar in SmolLM2-135M, and {rose_where(qwen).mean():.2f} "
        f"in {len(columnar(qwen))} of {len(ranges(qwen))} of Qwen2.5-Coder-0.5B",
        f"in {chance[0]} of SmolLM2's {len(ranges(smol))} output projections, and in {chance[1]} of Qwen's "
        f"{len(ranges(qwen))}",
        f"SparseGPT's perplexity in Qwen falls to {says(of_target())} of what it is with `--target layer`",
        f"dense {at_70['dense_perplexity'].iloc[0]:.2f}",
        f"from {output[6].split()[-2]} to {output[6].split()[-1]}",
        f"{60 * int(minutes) + int(seconds)} seconds on one core",
        *tuned_longest(),
        default_beside_others(),
        second_beside_sparsegpt(),
    ]


def main() -> None:
    for name, found in [*texts().items(), *tables().items()]:
        print(f"\n# {name}\n", *found, sep="\n\n")


if __name__ == "__main__":
    main()
