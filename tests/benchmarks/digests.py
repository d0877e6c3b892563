"""What commands and functions do with tiny models, as digests: measured before and after a change, and compared.

    python -m tests.benchmarks.digests --output before.csv [--source FOLDER] [--only PATTERN ...]
    python -m tests.benchmarks.digests --output after.csv --compare before.csv

A file has a row for each file, tensor, column and number. `value` of an array is its length, a digest of the signs (a
mask is where they are 0) and a weighted sum of the sizes; `exact` is a digest of all bits. `--compare` calls a row
"rounded otherwise" where `exact` alone differs, and "gone" what another version refuses or lacks. Exit status 1 where
anything differs. Digests depend on the processor, so files of two environments are not compared. `--source` is the
checkout whose code runs, by default this one. A command in `--only` needs those whose results it reads. Times, versions
and estimates are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

import rose
from rose import cli
from rose.environment import environment
from rose.layer.forecast import best_shares, forecast, price_columns
from tests.model.families import make_model, make_tokens, stop_at
from tests.tasks import write_task
from tests.tiny import byte_tokenizer, save_tiny_llama

ROOT = Path(__file__).parents[2]
KEY = ("command", "output")
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ROSE_COMPUTE": "float32", "ROSE_CACHE": "", "COLUMNS": "80"}
LEFT_OUT = re.compile(
    r"seconds|minutes|environment|made_with|version|prefill|decoding|gain|memory|processor|peak"
    r"|\.lock|\.parquet|layers\.csv|settings\.json"  # report.json and summary.json have the same
)
WORDS = "the quick brown fox jumps over a lazy dog and its shadow near some old river bank"
LONGEST = 60  # characters of a text that is shown whole
REVERSED = "model.layers.1.mlp.up_proj.weight"  # its rows, in the faulty copy

TEXT = "--calibration text.txt --samples 4 --length 48"
HELD = f"{TEXT} --held-out 2"
PRUNE = f"prune --model llama {HELD} --block-size 16"
SLIM = f"slim --model llama {HELD}"
DAMAGE = f"damage --model llama {HELD}"
DRAW = "--samples 2 --steps 2 --packages 2 --output"
COMMANDS = {  # name: words of `rose`; what a command writes has its name, with - for each blank
    "prune": f"{PRUNE} --sparsity 0.6 --evaluate text.txt --windows 3 --output prune",
    "prune 2:4": f"{PRUNE} --method rose --sparsity 2:4 --target layer --output prune-2:4",
    "prune bfloat16": f"{PRUNE} --method rose --sparsity 0.5 --dtype bfloat16 --output prune-bfloat16",
    "prune stream": f"{PRUNE} --sparsity 0.6 --stream --output prune-stream",
    "prune bits": f"{PRUNE} --method sparsegpt --sparsity 0.5 --bits 4 --group 32 --output prune-bits",
    "prune bits row": f"{PRUNE} --sparsity 0.5 --bits 3 --group row --output prune-bits-row",
    "prune sequential": f"{PRUNE} --method rose --target layer --true-sequential --output prune-sequential",
    "prune owl": f"{PRUNE} --method sparsegpt --sparsity 0.6 --allocation owl --output prune-owl",
    "prune sensitivity": f"{PRUNE} --method sparsegpt --allocation sensitivity:0.2 --output prune-sensitivity",
    "prune order": f"{PRUNE} --method sparsegpt --order global --budget layer --output prune-order",
    "prune rotate": f"{PRUNE} --method rose --rotate heads --output prune-rotate",
    "run": "run prune/recipe.yaml sparsity=0.7 output=run",
    "damage": f"{DAMAGE} --method rose --block-size 16 --sparsity 0.5 --output damage",
    "damage blocks": f"{DAMAGE} --method rose --units blocks --evaluate text.txt --windows 2 --output damage-blocks",
    "damage restore": f"{DAMAGE} --restore prune --output damage-restore",
    "prune damage": f"{PRUNE} --method sparsegpt --sparsity 0.5 --allocation damage:damage --output prune-damage",
    "slim": f"{SLIM} --output slim",
    "slim slimllm": f"{SLIM} --method slimllm --ratio 0.3 --multiple 8 --allocation similarity --output slim-slimllm",
    "slim depth": f"{SLIM} --method depth --ratio 0.5 --output slim-depth",
    "slim prune": f"{SLIM} --ratio 0.2 --prune 0.5 --target dense --stream --output slim-prune",
    "tune": f"tune prune --dense llama {HELD} --epochs 2 --evaluate text.txt --windows 2 --output tune",
    "tune parts": f"tune prune --dense llama {HELD} --parts 2 --loss ce --output tune-parts",
    "compare": f"compare --model llama {HELD} --block-size 16 --methods wanda,rose@global/layer:layer,rose_admm "
    "--sparsity 0.5,2:4 --seeds 0,1 --evaluate text.txt --windows 2 --output compare",
    "check": "check llama prune prune-bits faulty --json check.json",
    "check text": f"check llama prune {HELD} --methods wanda,rose_admm --json check-text.json",
    "analyze": f"analyze --model llama {HELD} --block-size 16 --methods sparsegpt,rose,alps --output analyze",
    "evaluate": "evaluate --model prune --evaluate text.txt --length 48 --windows 4 --tasks water --task-folder tasks "
    "--json evaluate.json",
    "smaller": f"smaller llama {TEXT} --held-out 4 --minutes 0.0001 --write bits-4 --output smaller",
    "inspect": "inspect llama prune --output inspect.csv",
    "pack": "pack prune-bits --output pack",
    "unpack": "unpack pack --output unpack",
    "export f16": "export prune --output export-f16.gguf",
    "export q8_0": "export prune --type q8_0 --output export-q8_0.gguf",
    "export q4_0": "export prune-bits --type q4_0 --output export-q4_0.gguf",
    "diffuse prune": f"diffuse prune --method rose {DRAW} diffuse-prune",
    "diffuse slim": f"diffuse slim {DRAW} diffuse-slim",
    "diffuse sample": "diffuse sample --model diffuse-prune --count 2 --steps 2 --output diffuse-sample.png",
    "diffuse evaluate": "diffuse evaluate --model diffuse-prune --count 66 --steps 2 --output diffuse-evaluate.json",
}


def functions() -> dict[str, Callable[[], Any]]:
    """Calls from Python by name; each returns what is digested."""
    calls: dict[str, Callable[[], Any]] = {"load_tokens": texts, "one layer": one_layer, "statistics": statistics}
    calls["resume"] = resumed
    for target in ("layer", "dense"):
        for method in rose.METHODS:
            calls[f"{method} {target}"] = partial(pruned, "llama", method=method, target=target, sparsity=0.6)
    for family in ("gpt2", "opt_projected", "gemma3", "falcon_grouped", "gpt_oss"):
        calls[family] = partial(pruned, family, method="rose", sparsity=0.5)
    for family in ("mixtral", "qwen2_moe", "deepseek_v3"):
        calls[family] = partial(pruned, family, method="sparsegpt", layers=["*expert*"], min_expert_tokens=16)
    return calls


def pruned(family: str, **options: Any) -> dict[str, Any]:
    model = make_model(family)
    report = rose.prune_model(model, make_tokens(), held_out=make_tokens(2, seed=2), block_size=8, **options)
    return {"model": model, "layers": report.layers, "drift": report.results.get("drift")}


def resumed() -> dict[str, Any]:
    """A run that was cancelled in its second decoder block and called again."""
    with contextlib.suppress(rose.Cancelled):
        pruned("llama", method="rose", checkpoint="kept", progress=stop_at("prune", 1))
    return pruned("llama", method="rose", checkpoint="kept")


def statistics() -> dict[str, Any]:
    model, tokens = make_model("mistral"), make_tokens()
    collected = rose.collect_statistics(model, tokens)
    return {name: each.hessian for name, each in collected.items()} | {"perplexity": rose.perplexity(model, tokens)}


def texts() -> dict[str, Any]:
    Path("text.jsonl").write_text("".join(f'{{"text": "Line {k} of a text in lines."}}\n' for k in range(60)))
    draws: dict[str, Any] = {"packaged": {}, "text.txt": {"seed": None, "split": "test"}, "text.jsonl": {"seed": 3}}
    return {
        f"{name}, BOS {bos}": rose.load_tokens(name, byte_tokenizer(bos), samples=3, length=40, **draw)
        for name, draw in draws.items()
        for bos in (False, True)
    }


def one_layer() -> dict[str, Any]:
    """A columnar layer with a dead column and a narrower last block: its plan, orders, forecasts and results."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 40, generator=generator) * torch.linspace(0.2, 3, 40)
    inputs[:, 7] = 0
    weight, statistics = torch.randn(24, 40, generator=generator), rose.InputStatistics(40)
    statistics.update(inputs)
    basic: dict[str, Any] = {"sparsity": 0.7, "block_size": 16}
    plan, prune = rose.plan_order(weight, statistics, **basic), partial(rose.prune_layer, weight, statistics)
    orders = ("natural", "two_level", "columns", "blocks", "global", "dealt", "hessian", "inverse", "pivot", "greedy")
    return {
        "plan": plan,
        "orders": {name: rose.make_order(plan, name).permutation for name in orders},
        "prices": price_columns(plan, "two_level"),
        "forecast": forecast(weight, statistics, order="global", budget="layer", **basic),
        "shares": best_shares(weight, statistics, **basic),
        "traced": prune(method="rose", trace=True, **basic),
        "dsnot": prune(method="dsnot", options={"start": "sparsegpt"}, **basic),
        "isc": prune(method="isc", options={"inverse": "remaining"}, **basic),
        "2:4": prune(method="measured", sparsity="2:4", block_size=16),
    }


def prepare() -> None:
    """Writes the models and texts of the commands."""
    for folder in (Path("llama"), Path("faulty")):
        file = save_tiny_llama(folder, blocks=2, vocabulary=290) / "model.safetensors"
        # Larger than initial weights, so that each layer changes the model's output.
        tensors = {name: 5 * tensor if "proj" in name else tensor for name, tensor in load_file(file).items()}
        if folder.name == "faulty":
            layers = {name: tensor for name, tensor in tensors.items() if "proj" in name}
            tensors |= {name: torch.where(x.abs() < x.abs().median(), 0, x) for name, x in layers.items()}
            tensors[REVERSED] = tensors[REVERSED].flip(0)
        save_file(tensors, file, {"format": "pt"})
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["model"]["vocab"]["th"], tokenizer["model"]["merges"] = 257, [["t", "h"]]  # GGUF files need a merge
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    Path("text.txt").write_text(" ".join(np.random.default_rng(0).choice(WORDS.split(), 4000)))
    Path("tasks").mkdir()
    questions = [{"question": "Water is", "choices": ["wet", "dry"], "answer": k % 2} for k in range(6)]
    write_task(Path("tasks"), questions, "water")


# ---- from results to rows


def short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]


def array(name: str, values: Any) -> tuple[str, str, str]:
    numbers = np.asarray(values)
    plain = numbers.astype(np.float64).ravel()
    signs = np.where(np.isfinite(plain), np.sign(plain), 2).astype(np.int8)
    weights = 1 + np.arange(plain.size) * (math.sqrt(5) - 1) / 2 % 1  # an exchange of two numbers changes the sum
    size = np.abs(np.nan_to_num(plain, posinf=0, neginf=0)) @ weights
    return name, f"{plain.size} × {short(signs.tobytes())} {size:.6g}", short(np.ascontiguousarray(numbers).tobytes())


def rows_of(name: str, value: Any) -> Iterator[tuple[str, str, str]]:
    """Output, value and exact value for each part of a result; names of parts are joined by points."""
    if LEFT_OUT.search(name.rpartition(".")[2]):
        return
    if isinstance(value, torch.nn.Module):
        value = by_kind(value.state_dict())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        is_table = not any(isinstance(cell, Mapping | list) for row in value for cell in row.values())
        value = pd.DataFrame(list(value)) if is_table else dict(enumerate(value))
    if isinstance(value, Mapping | pd.DataFrame):
        for part, content in value.items():
            yield from rows_of(f"{name}.{part}" if name else str(part), content)
    elif isinstance(value, Tensor):
        yield array(name, value.detach().float() if value.dtype == torch.bfloat16 else value.detach())
    elif isinstance(value, pd.Series):
        numbers = pd.to_numeric(value, errors="coerce")
        if (value.notna() & numbers.isna()).any():
            cells = value.fillna("").astype(str)
            text = f"{len(cells)} × {cells.iloc[0]}" if cells.nunique() == 1 else json.dumps([*cells])
            yield from rows_of(name, text)
        elif value.notna().any():
            yield array(name, numbers.astype(float))
    elif isinstance(value, list | tuple) and value and all(isinstance(each, int | float) for each in value):
        yield array(name, value)
    elif isinstance(value, float):
        yield name, f"{value:.6g}", repr(value)
    else:
        text = str(value).replace(f"{Path.cwd()}/", "")
        yield name, text if len(text) <= LONGEST else f"{len(text)} characters {short(text.encode())}", ""


def by_kind(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one name in all decoder blocks and experts as one."""
    kinds: dict[str, list[Tensor]] = {}
    for name in sorted(tensors):
        kinds.setdefault(re.sub(r"\b\d+\b", "#", name), []).append(tensors[name].ravel())
    return {kind: torch.cat(parts) for kind, parts in kinds.items()}


def read(path: Path) -> Any:
    """The content of a file: tensors, a table, JSON, or a digest of its bytes."""
    if path.suffix == ".safetensors":
        return by_kind(load_file(path))
    if path.suffix == ".csv":
        return pd.read_csv(path)
    if path.suffix == ".json" and not re.search("config|tokenizer", path.stem):
        return json.loads(path.read_text())
    content = path.read_bytes().replace(f"{Path.cwd()}/".encode(), b"")
    return short(b"\n".join(line for line in content.splitlines() if b"version" not in line))


def run(words: str) -> str:
    """The exit status of a command and, where it was refused, the last line that it printed."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            status = str(cli.main(words.split()))
        except SystemExit as end:
            status = str(end.code)
    return status if status in ("0", "1") else f"{status} {errors.getvalue().strip().splitlines()[-1]}"


def written(name: str) -> dict[str, Any]:
    """The files that a command has written."""
    places = [path for path in Path().iterdir() if name in (path.name, path.stem)]
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return {str(file): read(file) for file in files if file.is_file() and not LEFT_OUT.search(file.name)}


def measure(output: str, *only: str) -> None:
    """Runs everything, or what these patterns name, in a new folder."""
    torch.set_num_threads(1)
    rows = [("environment", "", environment("float32", torch.device("cpu")), "")]
    calls: dict[str, Any] = COMMANDS | functions()
    names = [name for name in calls if not only or any(fnmatch(name, pattern) for pattern in only)]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare()
        for name in track(names):
            end, result = "0", {}
            try:
                if name in COMMANDS:
                    end, result = run(COMMANDS[name]), written(name.replace(" ", "-"))
                else:
                    result = calls[name]()
            except Exception as problem:
                end = f"{type(problem).__name__}: {problem}"
            rows += [(name, "exit status", end[:200], ""), *((name, *row) for row in rows_of("", result))]
    pd.DataFrame(rows, columns=[*KEY, "value", "exact"]).to_csv(output, index=False)


def main() -> int:
    from tests.benchmarks.common import arguments, changes  # which the process below does not need

    options = arguments(__doc__, output=Path, source=str(ROOT), only=[""], compare="")
    output, settings = options.output.absolute(), SETTINGS | {"PYTHONPATH": str(Path(options.source).absolute())}
    words = [sys.executable, "-P", __file__, str(output), *filter(None, options.only)]
    subprocess.run(words, env=os.environ | settings, cwd=options.source, check=True)
    return changes(options.compare, output, KEY, partly=bool(options.only[0])) if options.compare else 0


if __name__ == "__main__":
    sys.exit(main()) if __spec__ else measure(*sys.argv[1:])  # the process that `main` starts has no module's name
