"""Smaller models, measured: python -m tests.benchmarks.structured quality | speed ...

quality --calibration TEXT --evaluate TEXT --output FOLDER
    perplexity against parameters of every variant, ratio and calibration draw. Each row is appended to
    FOLDER/rows.csv as it comes; the same command goes on where it was. A variant is METHOD@ALLOCATION/RECOVERY, towards
    the dense model where "+dense" follows.
speed DENSE SLIM
    two checkpoint folders in pairs, turn by turn in one process: prefill and decode in tokens per second; file
    size; and peak memory, each model in a process of its own that has only transformers.
"""

import argparse
import copy
import math
import platform
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor

import rose
from app.figures import palette
from app.figures.palette import Theme
from app.figures.shapes import Chart
from rose.environment import processor
from rose.model.load.tokens import load_tokens
from rose.structured.configuration import can_bias
from rose.structured.parts import find_parts
from rose.structured.survey import BlockSurvey, survey
from tests.benchmarks.common import MODEL, Rows, add_options, judged

VARIANTS = (
    "magnitude@uniform/none",
    "wanda@uniform/bias",
    "slimllm@similarity/linear",  # as published
    "slimllm@uniform/linear",
    "slimllm@uniform/exact",
    "depth@uniform/none",
    "obs@uniform/exact",
    "obs@uniform/exact+dense",
    "obs@cost/exact",
    "obs@cost/exact+dense",
)
RATIOS = (0.2, 0.1, 0.3, 0.4, 0.5)
MOST_PERPLEXITY = 3000.0  # of the picture


def quality(options: argparse.Namespace) -> None:
    rows = Rows(options.output / "rows.csv", ["seed", "variant", "ratio"])
    model, tokenizer = rose.load_model(options.model, dtype=options.dtype)
    windows = judged(options.evaluate, tokenizer, options.windows, options.length)
    if (-1, "dense", 0.0) not in rows:
        dense = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        rows.add(seed=-1, variant="dense", ratio=0.0, removed=0.0, **dense, perplexity=rose.perplexity(model, windows))
    for seed in options.seeds:
        wanted = [one for one in product(options.ratios, options.variants) if (seed, one[1], one[0]) not in rows]
        if not wanted:
            continue
        sizes = {"samples": options.samples, "held_out": options.held_out, "length": options.length}
        tokens, held_out = load_tokens(options.calibration, tokenizer, **sizes, seed=seed)
        surveys = priced(model, tokens)
        for ratio, variant in wanted:
            slim = copy.deepcopy(model)
            report = slimmed(slim, variant, tokens, ratio=ratio, held_out=held_out, surveys=surveys)
            said = report.summary
            rows.add(
                seed=seed,
                variant=variant,
                ratio=ratio,
                removed=said["removed_fraction"],
                parameters=said["kept_parameters"],
                perplexity=rose.perplexity(slim, windows),
                relative_error=said["mean_relative_error"],
                held_out_error=said["mean_held_out_error"],
                seconds=said["seconds"],
            )
    # Mean perplexity over draws.
    groups = rows.table().groupby(["variant", "ratio"])["perplexity"]
    print(groups.mean().round(1).unstack().assign(draws=groups.count().unstack().max(axis=1)).to_string())


def priced(model: Any, tokens: Tensor) -> list[BlockSurvey]:
    """One pass over the dense model that all variants share."""
    parts = find_parts(model)
    kinds = dict.fromkeys(part.kind for part in parts[0])
    biases = [kind for kind in kinds if can_bias(model, parts, kind)]
    return list(survey(model, tokens, parts, biases=biases))


def slimmed(model: Any, variant: str, tokens: Tensor, **more: Any) -> rose.RunReport:
    """Makes the model smaller as METHOD@ALLOCATION/RECOVERY+TARGET says."""
    rest, _, target = variant.partition("+")
    method, _, rest = rest.partition("@")
    allocation, _, recovery = rest.partition("/")
    more |= {"method": method, "allocation": allocation, "target": target or "layer"}
    if method != "depth":  # which has nothing to repair
        more["recovery"] = recovery
    return rose.prune_structured(model, tokens, **more)


MEMORY = """
import sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(int(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = torch.arange(256)[None] % model.config.vocab_size
model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
assert "rose" not in sys.modules
# Not ru_maxrss: a process takes it over from the one that started it.
status = open("/proc/self/status").read()
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
"""


# One colour a method, as on the app's pages where it prunes single weights too; marks tell its variants apart.
COLOURS = {
    "obs": palette.AZURE,
    "slimllm": palette.ORANGE,
    "depth": palette.PURPLE,
    **{name: palette.METHOD_COLOURS[name] for name in ("wanda", "magnitude")},
}
SYMBOLS = ("circle", "square-open", "diamond-open")


def label(variant: str) -> str:
    """A variant in words: "obs@uniform/exact+dense" is "obs, uniform, target dense"."""
    rest, _, target = variant.partition("+")
    method, _, how = rest.partition("@")
    if rest == "slimllm@similarity/linear":
        return "slimllm as published"
    return ", ".join([method, how.partition("/")[0], *([f"target {target}"] if target else [])])


def picture(rows: pd.DataFrame, theme: Theme) -> go.Figure:
    """Perplexity against parameters: a line a variant, means over draws, with the range over them."""
    dense = rows[rows["variant"] == "dense"].iloc[0]
    slim = rows[(rows["variant"] != "dense") & np.isfinite(rows["perplexity"])]
    chart = Chart(x="parameters, millions", y="perplexity", height=560, legend=True, theme=theme)
    figure = chart.figure
    grouped = slim.groupby(["variant", "ratio"])
    means = grouped[["parameters", "perplexity"]].mean().assign(draws=grouped.size()).reset_index()
    beyond = means.groupby("variant")["perplexity"].transform("min") > MOST_PERPLEXITY
    hidden = ", ".join(label(variant) for variant in means["variant"][beyond].unique())
    means = means[~beyond]
    drawn: list[str] = []
    for variant, part in means.groupby("variant", sort=False):
        method = str(variant).partition("@")[0]
        place, shade = drawn.count(method), COLOURS[method]
        drawn.append(method)
        every = slim[slim["variant"] == variant].groupby("ratio")["perplexity"]
        figure.add_scatter(
            x=part["parameters"] / 1e6,
            y=part["perplexity"],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": every.max().to_numpy() - part["perplexity"].to_numpy(),
                "arrayminus": part["perplexity"].to_numpy() - every.min().to_numpy(),
                "thickness": 1.2,
            },
            mode="lines+markers",
            name=label(str(variant)),
            line={"width": 2, "color": shade, "dash": "solid" if method == "obs" else "dash"},
            marker={"size": 9, "symbol": SYMBOLS[place % len(SYMBOLS)]},
        )
    compared = means[means["draws"] == means.groupby("ratio")["draws"].transform("max")]  # means over fewer say less
    lowest = compared.loc[compared.groupby("ratio")["perplexity"].idxmin()].sort_values("ratio")
    methods = lowest["variant"].str.split("@").str[0].unique()
    if len(methods) == 1:
        best = f"{methods[0]} has the lowest perplexity at every size"
    else:
        where = lowest.groupby("variant", sort=False)["ratio"].apply(lambda ratios: [f"{one:.0%}" for one in ratios])
        best = "Lowest: " + "; ".join(f"{label(str(name))} at {', '.join(at)}" for name, at in where.items())
    figure.add_hline(y=dense["perplexity"], line={"dash": "dot", "color": palette.INKS[theme].muted})
    what = "Perplexity against parameters, means and ranges over draws; log scale; dotted: dense"
    what += f"; beyond the scale: {hidden}" if hidden else ""
    chart.done(best, what, "", "Line chart of perplexity by parameters", means)
    top = math.log10(min(float(means["perplexity"].max()) * 1.2, MOST_PERPLEXITY))
    ticks = [digit * 10**power for power in range(1, 4) for digit in (1, 2, 3, 5)]
    bottom = math.log10(float(dense["perplexity"]) * 0.9)
    figure.update_yaxes(type="log", range=[bottom, top], tickvals=ticks, ticktext=[str(tick) for tick in ticks])
    return figure


def speed(options: argparse.Namespace) -> None:
    folders = {"dense": options.dense, "slim": options.slim}
    models = {name: rose.load_model(str(folder), dtype=options.dtype)[0] for name, folder in folders.items()}
    vocabulary = models["dense"].config.vocab_size
    ids = torch.randint(3, vocabulary, (1, options.length), generator=torch.Generator().manual_seed(0))
    seconds: dict[tuple[str, str], list[float]] = {}
    for pair in range(options.pairs + 1):
        for name in sorted(models, reverse=bool(pair % 2)):
            for what, work in (("prefill", prefill), ("decode", decode)):
                taken = work(models[name], ids, options.new_tokens)
                if pair:  # the first is for warming up
                    seconds.setdefault((what, name), []).append(taken)
    machine = f"{platform.machine()}, {processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{machine}, {options.dtype}, {options.pairs} pairs")
    ideal = {"prefill": ideal_prefill(models, options.length), "decode": ideal_decode(models)}
    for what, tokens in (("prefill", options.length), ("decode", options.new_tokens)):
        dense, slim = (seconds[what, name] for name in ("dense", "slim"))
        ratio = statistics.median(one / other for one, other in zip(dense, slim, strict=True))
        rates = ", ".join(f"{tokens / statistics.median(taken):.0f}" for taken in (dense, slim))
        print(f"{what}: {rates} tokens/s, ratio {ratio:.3f}, of ideal {ideal[what]:.3f} {ratio / ideal[what]:.2f}")
    for what, sizes in (
        ("parameters", [sum(p.numel() for p in model.parameters()) for model in models.values()]),
        ("file, bytes", [weights_size(folder) for folder in folders.values()]),
        ("peak memory, bytes", [peak_memory(folder) for folder in folders.values()]),
    ):
        print(f"{what}: {sizes[0]:,}, {sizes[1]:,}, ratio {sizes[1] / sizes[0]:.3f}")


@torch.no_grad()
def prefill(model: Any, ids: Tensor, _new_tokens: int) -> float:
    start = time.perf_counter()
    model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


@torch.no_grad()
def decode(model: Any, ids: Tensor, new_tokens: int) -> float:
    """New tokens one at a time, with the cache of a prompt."""
    output = model(input_ids=ids[:, :64], use_cache=True, logits_to_keep=1)
    cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
    start = time.perf_counter()
    for _ in range(new_tokens):
        output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1:].argmax(-1)
    return time.perf_counter() - start


def work_per_token(model: Any, context: float) -> float:
    """Multiplications of one token in the decoder blocks, with attention to so many others."""
    linear = sum(layer.weight.numel() for layer in rose.prunable_layers(model))
    heads = [part for parts in find_parts(model, ("heads",)) for part in parts]
    return linear + sum(2 * part.shape.units * part.width * context for part in heads)


def ideal_prefill(models: dict[str, Any], length: int) -> float:
    """Ratio of the multiplications; half of all pairs of tokens attend."""
    return work_per_token(models["dense"], length / 2) / work_per_token(models["slim"], length / 2)


def ideal_decode(models: dict[str, Any]) -> float:
    """Ratio of the weights that each token reads, the output head among them."""
    head = {name: model.get_output_embeddings().weight.numel() for name, model in models.items()}
    return (work_per_token(models["dense"], 0) + head["dense"]) / (work_per_token(models["slim"], 0) + head["slim"])


def weights_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def peak_memory(folder: Path) -> int:
    """Of a process that loads the model with transformers alone and generates."""
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), threads], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("quality")
    texts: dict[str, Any] = {"calibration": "packaged", "evaluate": "packaged", "samples": 16, "held_out": 4}
    texts |= {"length": 512, "windows": 24, "seeds": [0, 1, 2], "ratios": list(RATIOS), "variants": list(VARIANTS)}
    add_options(one, output=Path, model=MODEL, dtype="bfloat16", **texts)
    one.set_defaults(run=quality)
    two = commands.add_parser("speed")
    two.add_argument("dense", type=Path)
    two.add_argument("slim", type=Path)
    add_options(two, dtype="float32", length=512, new_tokens=32, pairs=7)
    two.set_defaults(run=speed)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
