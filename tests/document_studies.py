"""What documents of single studies say in numbers, from the files that hold the measurements; see document_figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from app.lessons import basis, subjects
from rose import verdicts
from rose.layer.target import target_damping
from tests.benchmarks import methods as costs_of_methods
from tests.document_figures import RESULTS, cell, controls, own_model, read, says

SMOL, QWEN = "", "qwen2.5-coder-0.5b-"  # prefixes of files
PREDICTORS = ("held_out_error", "output_error", "drift")
KINDS = ("q", "k", "v", "o", "gate", "up", "down")
REMOVED = (0.1, 0.2, 0.3, 0.4, 0.5)

TEXT = r"\d+ × \d+(?: (?:test )?tokens)?"  # how much of a text
# Numbers of these documents that are no measurements, as in document_figures.
SETTINGS = {
    "docs/damage.md": [
        *(TEXT, r"SmolLM2", r"Qwen2\.5-Coder-0\.5B", r"70 %"),
        r"(?:30|24) decoder blocks",
        r"(?:210|49) layers",
        r"(?:excludes|told from) 0",
        r"at most 0\.15 from",
    ],
    "docs/diffusion.md": [
        *(r"arXiv 2510\.06751", r"Stable Diffusion 3", r"UNet2D", r"2:4", r"[357]0 %"),
        r"0\.8 \+ 0\.4·ln\(N − i\)/ln N for i = 0 … N − 1",
        r"from 1\.2 to 0\.8",
        r"is 1\.",
        r"1\.8 million parameters",  # rose/diffusion/tiny/made.json
        r"(?:30 calibration|120 finished) pictures",
        r"20 steps",
        r"36 columns",
        r"all but one of 24",  # tests/diffusion/test_packaged.py
    ],
    "docs/solvers.md": [
        *(TEXT, r"Qwen2\.5-Coder-0\.5B", r"WikiText-2", r"70 %"),
        r"effort 3",
        r"below 1",
        r"16 windows of 512 tokens",
        r"16 others",
        r"(?:210|14|35|21) layers",
        r"0, 6, 12, 18 and 24",
        r"(?:2 to )?64 windows",
    ],
    "docs/speed.md": [
        *(TEXT, r"70 %", r"AVX512-BF16", r"Arm's BF16", r"bfloat16", r"float32"),
        r"1B and 7B",
        r"35 layers",
    ],
    "docs/structured.md": [
        *(r"arXiv 2505\.22689", r"Qwen[23]", r"Gemma [34]", r"Phi-3", r"OLMo 2 and 3", r"GPT-2", r"Conv1D"),
        *(r"[1-5]0(?: and 50)? %", r"512 tokens", r"Float32"),
    ],
    "docs/targets.md": [
        *(TEXT, r"SmolLM2", r"Qwen2\.5-Coder-0\.5B", r"70 %", r"bfloat16"),
        r"For λ = 0",
        r"near 1",
        r"μ = 0\.01",
        r"0\.273 · channels",
        r"0\.03 \+ z \+ z³/10",
        r"1/tokens",
        r"The 0\.03",
        r"1 to 64 windows",
    ],
    "docs/tutorial.md": [
        *(TEXT, r"Qwen2\.5-Coder-0\.5B", r"70 %", r"## [1-5]\.", r"above 0\.5", r"status 0", r"all 24"),
    ],
}


def texts() -> dict[str, list[str]]:
    """For each document what it must say, tables and phrases."""
    return {
        "docs/check.md": check(),
        "docs/class.md": lessons(),
        "docs/damage.md": damage(),
        "docs/diffusion.md": diffusion(),
        "docs/lab-notes/models.md": [rates(), sinks(), gain_of_a_bos()],
        "docs/lab-notes/orders.md": foretold(),
        "docs/large-models.md": memory(),
        "docs/solvers.md": solvers(),
        "docs/speed.md": speed(),
        "docs/structured.md": structured(),
        "docs/targets.md": targets(),
        "docs/tutorial.md": finding(),
    }


def grid(lines: Sequence[Sequence[str]]) -> str:
    """A table whose head is written by hand: its lines alone."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def listed(values: Iterable[float], digits: int = 3) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def rates() -> str:
    """What tuning with several rates gives: perplexity and divergence, on the text itself and on another one."""
    rows = read("tuning-rules.csv").query("rule.str.startswith('RATE')")
    rows = rows.assign(rate=rows["rule"].str.extract(r"RATE=([^,]+)")[0].astype(float))
    names = [f"{text}{value}" for text in ("", "other_") for value in ("perplexity", "divergence")]
    lines = []
    for (sparsity, seed), part in rows.sort_values(["sparsity", "seed", "rate"]).groupby(["sparsity", "seed"]):
        first = part.iloc[0]
        both = [("none", [first[f"{name}_before"] for name in names])]
        both += [(f"{row['rate']:.4f}", [row[f"{name}_after"] for name in names]) for _, row in part.iterrows()]
        for rate, values in both:
            cells = [f"{value:.{1 + 2 * (at % 2)}f}" if value == value else "" for at, value in enumerate(values)]
            share = f"{100 * float(sparsity.removeprefix('slim-')):.0f} %"
            lines.append([share + " taken out" * sparsity.startswith("slim"), str(seed), rate, *cells])
    return grid(lines)


def sinks() -> str:
    """By checkpoint, without and with a BOS: windows without an attention sink, and mean losses."""
    lines = []
    for name, rows in read("sinks.csv").groupby("checkpoint", sort=False):
        without, having = (rows[rows["bos"] == bos].iloc[0] for bos in (False, True))
        lost = [f"{row['without_sink']} of {row['windows']}" for row in (without, having)]
        losses = [
            f"{value:.2f}" if value == value else "" for value in without[["loss_with_sink", "loss_without_sink"]]
        ]
        lines.append([f"`{name}`", lost[0], *losses, f"{without['loss']:.2f}", lost[1], f"{having['loss']:.2f}"])
    return grid(lines)


def by_draw(rows: pd.DataFrame, value: str = "perplexity") -> pd.Series:
    return np.log(rows.groupby("seed" if "seed" in rows else "draw")[value].mean())


# Damage


@cache
def units(which: str, kind: str) -> pd.DataFrame:
    """Units that were changed alone, without the row of all at once."""
    return read(f"{which}damage-{kind}.csv").query("unit != '*'")


def damage() -> list[str]:
    lines = []
    for which, name in ((SMOL, "SmolLM2"), (QWEN, "Qwen")):
        for kind, said in (("blocks", "decoder blocks"), ("layers", "layers")):
            rows = units(which, kind)
            found = [verdicts.rank_correlation(rows[one], rows["damage"]) for one in PREDICTORS]
            lines.append([f"{name}, {said}", str(len(rows)), *map(str, found)])
        lines.append(within_projections(which))
    ends = units(SMOL, "blocks").set_index("block_index")
    middle = ends.iloc[1:-1]
    qwen = units(QWEN, "blocks").set_index("block_index")
    assert qwen["held_out_error"].idxmin() == qwen["damage"].idxmax() == 23
    of_kind = units(SMOL, "layers").groupby("projection")["damage"].sum()
    assert list(of_kind.index) == ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", *of_kind.index[3:]]
    down, gate, up, key, output, query, value = (f"{one:.2f}" for one in of_kind)
    return [
        grid(lines),
        f"{ends['damage'].iloc[0]:.2f} and {ends['damage'].iloc[-1]:.2f} nats in SmolLM2, where the other "
        f"{len(middle)} cost {middle['damage'].min():.2f} to {middle['damage'].max():.2f}",
        f"held-out errors of {ends['held_out_error'].iloc[0]:.3f} and {ends['held_out_error'].iloc[-1]:.3f}, where the "
        f"mean is {ends['held_out_error'].mean():.3f}",
        f"the last block costs {qwen['damage'].max():.2f} nats at the smallest error of all, the first "
        f"{qwen['damage'].iloc[0]:.2f}",
        f"up projections cost {up} nats in all, down {down}, gate {gate}, value {value}, output {output}, key {key}, "
        f"query {query}",
        f"{at_once(SMOL, 'layers')} over SmolLM2's layers, {at_once(SMOL, 'blocks')} over its blocks, "
        f"{at_once(QWEN, 'blocks')} over Qwen's blocks",
        " and ".join(unclear(which) for which in (SMOL, QWEN)),
    ]


def within_projections(which: str) -> list[str]:
    """The mean of seven rank correlations, one for each projection, and the interval of that mean."""
    groups = [rows for _, rows in units(which, "layers").groupby("projection")]
    (size,) = {len(rows) for rows in groups}
    assert len(groups) == 7
    found = []
    for one in PREDICTORS:
        ranked = [verdicts.rank_correlation(rows[one], rows["damage"]) for rows in groups]
        found.append(str(verdicts.mean_interval([each.value for each in ranked if each])))
    return ["within a projection, mean of seven", f"{size} each", *found]


def at_once(which: str, kind: str) -> str:
    """Damage of all units together beside the sum of their own."""
    together = read(f"{which}damage-{kind}.csv").query("unit == '*'")["damage"].item()
    return f"{together:.2f} nats for a sum of {units(which, kind)['damage'].sum():.2f}"


def unclear(which: str) -> str:
    """Of how many layers the interval over windows holds 0."""
    rows = units(which, "layers")
    return f"{(rows['damage'].abs() < 1.96 * rows['standard_error']).sum()} of {len(rows)}"


# Orders


FORETELLERS = {
    "relative_range": "relative range",
    "variation_of_columns": "**variation of column losses**",
    "gini_of_columns": "Gini coefficient of column losses",
    "foreseen_by_factor": "Σ w²/U_jj² of both orders",
}


def foretold() -> list[str]:
    """How well numbers known before a sweep rank layers by what two-level order gains."""
    rows = read("order-gain.csv")
    rows = rows.assign(kind=rows["layer"].str.extract(r"(\w+)_proj$")[0])
    lines = []
    for name, shown in FORETELLERS.items():
        found = []
        for _, own in rows.groupby("model", sort=False):
            kinds = [verdicts.rank_correlation(one[name], one["gain"]) for _, one in own.groupby("kind")]
            outputs = own[own["kind"] == "o"]
            found += [
                verdicts.rank_correlation(own[name], own["gain"]),
                verdicts.mean_interval([each.value for each in kinds if each]),
                verdicts.rank_correlation(outputs[name], outputs["gain"]),
            ]
        lines.append([shown, *map(str, found)])
    smol, qwen = (says_gap(own) for _, own in rows.groupby("model", sort=False))
    return [grid(lines), f"{smol} in SmolLM2 and {qwen} in Qwen"]


def says_gap(rows: pd.DataFrame) -> str:
    """By how much column losses rank better than relative range, with an interval by resampling layers."""
    values = rows[["variation_of_columns", "relative_range", "gain"]].to_numpy()

    def gap(chosen: np.ndarray) -> float:
        correlations = np.corrcoef(rankdata(chosen, axis=0), rowvar=False)[2]
        return float(correlations[0] - correlations[1])

    generator = np.random.default_rng(0)
    gaps = [gap(values[generator.integers(0, len(values), len(values))]) for _ in range(2000)]
    low, high = np.percentile(gaps, [2.5, 97.5])
    return f"{gap(values):.2f} ({low:.2f} to {high:.2f})".replace("-", "−")


# Solvers


@cache
def errors(name: str) -> pd.DataFrame:
    """Rows of a benchmark of solvers: error and seconds relative to SparseGPT's on the same layer."""
    rows = read(name)
    base = rows[rows["variant"] == "sparsegpt"].set_index(["setting", "layer"])[["error", "seconds"]]
    joined = rows.join(base.add_prefix("base_"), on=["setting", "layer"])
    return rows.assign(error=joined["error"] / joined["base_error"], time=joined["seconds"] / joined["base_seconds"])


SOLVERS = {
    "rose_dealt": "rose_dealt",
    "rose_admm": "**rose_admm**",
    "rose_admm, effort 3": "rose_admm, effort 3",
    "alps": "alps",
}


def mean_errors(name: str) -> pd.DataFrame:
    """Means over layers; a row a variant, a column a setting."""
    return errors(name).pivot_table(index="variant", columns="setting", values="error", sort=False)


def solvers() -> list[str]:
    rows = errors("solvers-70.csv")
    kinds = rows["projection"].str.extract(r"(\w+)_proj")[0]
    lines = []
    for name, shown in SOLVERS.items():
        own = rows[rows["variant"] == name]
        each = own["error"].groupby(kinds).mean()
        numbers = [own["error"].mean(), own["error"].max(), *each[list(KINDS)]]
        lines.append([shown, *(f"{one:.3f}" for one in numbers), f"{own['time'].mean():.1f}"])
    each = rows.pivot(index="layer", columns="variant", values="error")
    mean_time = rows.groupby("variant")["time"].mean()
    fewer = mean_errors("solvers-samples.csv")
    windows = [[SOLVERS[name], *(f"{one:.3f}" for one in fewer.loc[name])] for name in SOLVERS]
    patterns = mean_errors("solvers-patterns.csv")
    more = (patterns.loc["alps"] - patterns.loc["rose_admm"]).round(3)
    half, high, *grouped = patterns.loc["rose_admm"]
    qwen = mean_errors(f"{QWEN}solvers.csv").iloc[:, 0]
    down = errors("solvers-samples.csv").query("setting == '0.7, 2 × 512' and projection == 'mlp.down_proj'")
    down = down.groupby("variant")["error"].mean()
    share = read("solver-bounds.csv").groupby("method")["share"].mean()
    of_four = errors("solvers-samples.csv").query("setting == '0.7, 4 × 512' and variant == 'alps'")["error"]
    return [
        grid(lines),
        f"in less than half of its time**: {(mean_time['rose_admm'] / mean_time['alps']):.2f} in this table",
        f"lower in {(each['rose_admm'] < each['alps']).sum()} of SmolLM2's {len(each)} layers, with effort 3 in "
        f"{(each['rose_admm, effort 3'] < each['alps']).sum()}",
        f"`rose_admm` comes to {qwen['rose_admm']:.3f} and ALPS to {qwen['alps']:.3f}",
        grid(windows),
        f"{half:.3f} at 0.5, {high:.3f} at 0.8, {grouped[0]:.3f} under 2:4, {grouped[1]:.3f} under 4:8 and "
        f"{grouped[2]:.3f} under 1:4, ALPS to {more.min():.3f} to {more.max():.3f} more",
        f"`rose_admm` comes to {down['rose_admm']:.3f}, ALPS to {down['alps']:.3f}",
        f"the default is {fewer.loc['rose_admm'].iloc[-1] - fewer.loc['alps'].iloc[-1]:.2f} above it",
        f"ALPS is above SparseGPT in {'three' if (of_four > 1).sum() == 3 else '?'} layers",
        f"by at most {1 - share['sparsegpt']:.0%}, and ALPS's by at most {1 - share['alps']:.0%}".replace("%", " %"),
    ]


# Speed


def speed() -> list[str]:
    rows = costs_of_methods.ratios(read("methods-times.csv")).set_index(["target", "method"])["ratio"]
    shown = ("wanda", "sparsegpt", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")
    lines = [[f"target {one}", *(f"{rows[one, m]:.2f}" for m in shown)] for one in ("layer", "dense")]
    took = (
        read("compute.csv")
        .query("what == 'forward' or what == 'pruned'")
        .assign(compute=lambda found: found["compute"].str.removeprefix("torch."))
    )
    took = took.pivot(index=["what", "draw"], columns="compute", values="seconds")
    share = (took["bfloat16"] / took["float32"]).groupby("what").agg(list)
    searched = errors("solvers-bfloat16.csv").pivot(index="layer", columns="variant", values=["error", "seconds"])
    change = (searched.xs("rose_admm, bfloat16", axis=1, level=1)) / searched.xs("rose_admm", axis=1, level=1)
    return [
        grid(lines),
        f"a bare forward pass in bfloat16 took {listed(share['forward'], 2)} of its time in float32, a whole run "
        f"{listed(share['pruned'], 2)}",
        f"takes {change['seconds'].mean():.2f} of the time, and its error is within {change['error'].min():.3f} to "
        f"{change['error'].max():.3f} of float32's",
    ]


# Structured


VARIANTS = {
    "obs@uniform/exact": "**`obs`, uniform, the default**",
    "obs@uniform/exact+dense": "`obs`, uniform, `--target dense`",
    "slimllm@similarity/linear": "`slimllm`, similarity, as published",
    "wanda@uniform/bias": "`wanda`, uniform, with bias",
    "depth@uniform/none": "`depth`",
}


def slim(which: str, share: float) -> Mapping[str, pd.DataFrame]:
    rows = read(f"{which}structured.csv")
    return dict(list(rows[np.isclose(rows["ratio"], share)].groupby("variant")))


def perplexity_of_slim(rows: pd.DataFrame) -> str:
    """One draw, and draws that agree, have no ±."""
    values = rows["perplexity"]
    return cell(values if values.nunique() > 1 else values[:1])


def slim_ratio(which: str, share: float, one: str, other: str) -> str:
    of = slim(which, share)
    return says(verdicts.paired_ratio(by_draw(of[one]), by_draw(of[other])))


def structured() -> list[str]:
    lines = [[shown, *(perplexity_of_slim(slim(SMOL, s)[name]) for s in REMOVED)] for name, shown in VARIANTS.items()]
    default, published, wanda, _depth = "obs@uniform/exact", *list(VARIANTS)[2:5]
    sizes = [f"{slim(SMOL, share)[default]['parameters'].mean() / 1e6:.1f}" for share in REMOVED]
    qwen = slim(QWEN, 0.2)[default]
    lead = [f"{slim_ratio(w, s, default, published)}" for s in (0.2, 0.5) for w in (SMOL, QWEN)]
    beside = [slim_ratio(QWEN, share, default, wanda) for share in (0.2, 0.5)]
    said = (RESULTS / "structured-speed.txt").read_text()
    prefill, decode = (
        re.findall(rf"{what}: .* ratio ([\d.]+), of ideal ([\d.]+)", said)[0] for what in ("prefill", "decode")
    )
    size, peak = (float(re.findall(rf"{what}, bytes: .* ratio ([\d.]+)", said)[0]) for what in ("file", "peak memory"))
    whole = read("structured.csv").iloc[0]
    return [
        f"The dense model has {whole['parameters'] / 1e6:.1f} million parameters and a perplexity of "
        f"{whole['perplexity']:.1f}",
        grid([["parameters, millions", *sizes], *lines]),
        f"{lead[0]} times its perplexity in SmolLM2 and {lead[1]} in Qwen2.5-Coder-0.5B, at 50 % {lead[2]} and "
        f"{lead[3]}",
        f"takes {read(f'{QWEN}structured.csv')['parameters'].max() / 1e6:.0f} million parameters to "
        f"{qwen['parameters'].mean() / 1e6:.0f} at 20 %, perplexity "
        f"{read(f'{QWEN}structured.csv')['perplexity'][0]:.1f} to {cell(qwen['perplexity'])}",
        f"{beside[0]} at 20 %, {beside[1]} at 50 %",
        f"{float(prefill[0]):.2f} times as fast ({float(prefill[1]):.2f} by the number of multiplications), decoding "
        f"{float(decode[0]):.2f} times ({float(decode[1]):.2f} by the weights read), the file has "
        f"{size:.2f} of its bytes, and peak memory is {peak:.2f} times as high",
    ]


def gain_of_a_bos() -> str:
    """How many windows of smaller models have no attention sink, and how much lower losses are with a BOS in front."""
    rows = read("sinks.csv").pivot(index="checkpoint", columns="bos", values=["loss", "without_sink", "windows"])
    dense, copies = rows.loc["smollm2-135m"], rows[rows.index.str.contains("slim")]
    gains = copies["loss"][False] - copies["loss"][True]
    lost, windows = copies["without_sink"][False], copies["windows"][False].iloc[0]
    of_dense = dense["loss"][False] - dense["loss"][True]
    return (
        f"{lost.min():.0f} to {lost.max():.0f} of {windows:.0f} windows that begin without one have lost their "
        f"attention sink in {len(copies)} smaller models. A BOS in front takes {gains.min():z.2f} to {gains.max():.2f} "
        f"nats a token off their losses, and {of_dense:.2f} off the dense model's"
    )


# Targets


def targets() -> list[str]:
    shares = costs_of_methods.dense_over_layer(read("methods-times-whole.csv")).set_index("method")["dense over layer"]
    names = ("wanda", "sparsegpt", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")
    smol, few, qwen = (
        [damped(model, tokens, each) for each in (rule, "layer")]
        for model, tokens, rule in (
            ("smollm2-135m", 8192, "0.62"),
            ("smollm2-135m", 2048, "rule"),
            ("qwen.gguf", 2048, "4.85"),
        )
    )
    drawn = read("targets-damping.csv").query("model == 'qwen.gguf' and tokens == 2048 and seed == 0")
    drawn = drawn.set_index("damping")["perplexity"]
    around = {2048: ("rule", "1", "10"), 4096: ("1.24", "0.41", "3.7"), 8192: ("0.438", "0.15", "1.5")}
    around |= {16384: ("0.155", "0.05", "0.47"), 32768: ("0.0546", "0.018", "0.16")}  # a third of μ, and three times μ
    costs = [
        damped("smollm2-135m", tokens, one) / damped("smollm2-135m", tokens, middle) - 1
        for tokens, (middle, *others) in around.items()
        for one in others
    ]
    of = controls("dense").groupby("method")["perplexity"].mean()
    costs += [of[f"sparsegpt, {one} μ"] / of["sparsegpt"] - 1 for one in ("0.3", "3")]
    return [
        f"costs {100 * min(costs):.0f} to {100 * max(costs):.0f} %",
        grid([[f"{shares[name]:.2f}" for name in names]]),
        f"takes SparseGPT's perplexity at 70 % from {smol[1]:.1f} to {smol[0]:.1f} (SmolLM2, 16 × 512 tokens), from "
        f"{few[1]:.1f} to {few[0]:.1f} (4 × 512), and in Qwen from {qwen[1]:.1f} to {qwen[0]:.1f} (4 × 512)",
        f"a sixth of the rule's μ: perplexity {drawn['0.8']:.1f}, against {drawn['4.85']:.1f} by the rule",
    ]


def damped(model: str, tokens: int, damping: str) -> float:
    """Mean perplexity over three draws with one damping of the correction, all decoder blocks of a model."""
    rows = read("targets-damping.csv")
    rows = rows[(rows["model"] == model) & (rows["tokens"] == tokens) & (rows["damping"] == damping)]
    rows = rows[(rows["method"] == "sparsegpt") & (rows["blocks"] == rows["blocks"].max())]
    assert sorted(rows["seed"]) == [0, 1, 2]
    return float(rows["perplexity"].mean())


# Diffusion


@cache
def drawn_pictures() -> pd.DataFrame:
    """Means over evaluation noises, a row for each method, sparsity and draw; uniform step weights."""
    rows = read("diffusion.csv").query("step_weights == 'uniform'")
    return rows.groupby(["method", "sparsity", "draw"], as_index=False)[["drift", "accuracy"]].mean()


def pictures(method: str, sparsity: str) -> pd.DataFrame:
    return drawn_pictures().query(f"method == {method!r} and sparsity == {sparsity!r}")


def picture_ratio(method: str, sparsity: str) -> verdicts.Interval:
    one, other = (by_draw(pictures(name, sparsity), "drift") for name in (method, "sparsegpt"))
    return verdicts.paired_ratio(one, other)


def diffusion() -> list[str]:
    shown, lines = ("0.5", "0.7", "2:4"), []
    for method in ("wanda", "sparsegpt", "rose", "rose_dealt", "rose_admm"):
        drifts = [cell(pictures(method, sparsity)["drift"], 4) for sparsity in shown]
        seen = [f"{pictures(method, sparsity)['accuracy'].mean():.0%}".replace("%", " %") for sparsity in shown]
        lines.append([f"**{method}**" if method == "rose_admm" else method, *drifts, *seen])
    dense = read("diffusion.csv").query("method == 'dense'").iloc[0]
    free, steep, grouped = (says(picture_ratio("rose_admm", sparsity)) for sparsity in shown)
    assert not any(picture_ratio("rose", sparsity).is_clear for sparsity in ("0.7", "0.3", "2:4"))
    return [
        grid(lines),
        f"recognizes {dense['accuracy']:.0%} of the dense model's".replace("%", " %"),
        f"{free} times as far as SparseGPT at 50 %, {steep} at 70 % and {grouped} under 2:4",
        f"{picture_ratio('rose', '0.5').value:.2f} times as far at 50 % ({picture_ratio('rose', '0.5').low:.2f} to "
        f"{picture_ratio('rose', '0.5').high:.3f})",
    ]


# Others


def lessons() -> list[str]:
    """What lessons show, in the words of the class."""
    plan = subjects.example()
    wanted = [column + 1 for column in plan.permutation.tolist()]
    blocks = [column - 1 for column in wanted[:: plan.block_size]]
    first = blocks[0] // plan.block_size + 1
    lost = plan.potential_loss[:, (first - 1) * plan.block_size : first * plan.block_size]
    given_up = sorted(f"{one:.1f}" for one in lost[lost > 0].tolist())
    share, error = {}, {}
    for name, one in basis.turned().items():
        share[name] = f"{100 * float(one.plan.importance.sum(0).max() / one.plan.importance.sum()):.1f} %"
        error[name] = one.errors["sparsegpt"][1]
    assert share["random"] == share["given"]
    return [
        f"Block {first} gives up {', '.join(given_up[:-1])} and {given_up[-1]}",
        f"The relative range is {plan.relative_range:.2f}",
        f"ROSE starts with block {first}, and prunes in the order {', '.join(map(str, wanted))}",
        f"In a random basis and as given {share['given']}, in the gathered basis {share['gathered']}, in the learned "
        f"one {share['learned']}",
        f"SparseGPT's held-out error falls from {error['given']:.3f} in the basis as given to {error['learned']:.3f} "
        f"in the learned one",
    ]


def memory() -> list[str]:
    """What the formula says of LLaMA's sizes."""
    shown = ("7B layer 128", "7B dense 128", "7B dense 16", "70B layer 128", "70B dense 16")
    rows = [line.split() for line in (RESULTS / "memory-table.txt").read_text().splitlines()[1:]]
    of = {" ".join(row[:3]): [row[0], row[3], f"{row[1]}, {row[2]}", *row[-2:]] for row in rows}
    few, many = (target_damping(4096, tokens, 32) for tokens in (8 * 512, 32 * 1024))
    damped = f"8 × 512 tokens give a 7B LLaMA μ = {few:.0f}"
    return [grid([of[name] for name in shown]), own_model(), damped, f"the default 32 × 1024 give μ = {many:.1f}"]


def check() -> list[str]:
    """Seconds of a check of the packaged model, by its weights alone and on tokens."""
    took = read("check-times.csv").set_index("what")["processor_seconds"]
    return [f"takes {took['packaged']:.0f} processor seconds by the weights alone, and {took.iloc[-1]:.0f} with"]


def finding() -> list[str]:
    """What the first command of the tutorial says."""
    said = (RESULTS / f"{QWEN}analyze.txt").read_text()
    columnar, layers = re.findall(r"(\d+) of (\d+) layers are columnar", said)[0]
    pairs = re.findall(r"True +([\d.]+) +([\d.]+)$", said, re.MULTILINE)
    lower = sum(float(rose) < float(other) for other, rose in pairs)
    assert (lower, len(pairs)) == (4, int(columnar))
    return [f"{columnar} of {layers} output projections are columnar", f"it comes to {said.split()[-1]} of it"]
