"""Peak memory of pruning a model that streams, against the formula: python -m tests.benchmarks.memory.

Writes a random LLaMA of several gigabytes into a temporary folder, shard by shard, prunes it in a fresh process, and
looks at that process's anonymous memory fifty times a second: what it cannot give back to the system; pages of files
do not count. Every layer of the first and the last decoder block is pruned, and one small layer of each of the others,
which is enough to stream, prune and write them all in minutes. `--table` prints what the formula says of larger models.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

import rose
from rose.model.estimate.memory import estimate_memory
from rose.structured.memory import estimate_slim_memory
from tests.benchmarks.timing import Row
from tests.tiny import byte_tokenizer

SECONDS = 0.02
HIDDEN, BLOCKS, DTYPE = 3072, 8, "float32"


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def write_random_llama(
    folder: Path, hidden: int, blocks: int, dtype: torch.dtype, inner: int | None = None, heads: int | None = None
) -> int:
    """Writes the checkpoint a shard at a time; returns its bytes."""
    heads = heads or hidden // 64
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner or hidden * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        dtype=dtype,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(part, {})[name] = parameter.shape
    generator, size = torch.Generator().manual_seed(0), 0
    weights: dict[str, str] = {}
    for part, shapes in shards.items():
        file = f"model-{part}.safetensors"
        tensors = {
            name: (torch.randn(shape, generator=generator) * 0.02 if len(shape) > 1 else torch.ones(shape)).to(dtype)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
        size += sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
        weights |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return size


def prune(
    folder: Path, samples: int, length: int, dtype: str, checkpoint: Path | None, target: str
) -> dict[str, float]:
    """Prunes and saves in this process; returns its peak memory above what libraries take, and the seconds.

    `target`: "layer", "dense", "none" to analyze the attention output projections, without pruning, or "slim" to take
    heads and channels out, towards the dense model.
    """
    rose.prune_layer(torch.randn(64, 64), torch.eye(64))  # libraries set themselves up
    before, start, peak, ended = anonymous_memory(), time.perf_counter(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SECONDS):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        model, tokenizer = rose.load_model(str(folder), stream=True, dtype=dtype, scratch=folder)
        tokens = torch.randint(0, 256, (samples, length), generator=torch.Generator().manual_seed(0))
        last = model.config.num_hidden_layers - 1
        sizes: dict[str, Any] = {
            "samples": samples,
            "length": length,
            "dtype": getattr(torch, dtype),
            "on_disk": checkpoint is not None,
        }
        if target == "slim":
            rose.prune_structured(model, tokens, ratio=0.25, target="dense", checkpoint=checkpoint)
            rose.save_model(model, tokenizer, folder / "pruned")
            model, _ = rose.load_model(str(folder), stream=True, dtype=dtype)  # of the sizes that it had
            parts = estimate_slim_memory(model, **sizes, parts=["heads", "channels"], dense_targets=True)
        elif target == "none":
            layers = ["*o_proj"]
            list(rose.analyze_model(model, tokens, sparsity=0.5, layers=layers))
            parts = estimate_memory(model, **sizes, layers=layers)
        else:
            layers = ["*.layers.0.*", f"*.layers.{last}.*", "*.v_proj"]
            rose.prune_model(model, tokens, sparsity=0.5, target=target, layers=layers, checkpoint=checkpoint)
            rose.save_model(model, tokenizer, folder / "pruned")
            parts = estimate_memory(model, **sizes, layers=layers, dense_targets=target == "dense")
    finally:
        ended.set()
        watcher.join()
    return {"measured": peak - before, "peak": parts.peak, "seconds": time.perf_counter() - start, **asdict(parts)}


def table() -> Table:
    """What LLaMA's sizes take in bfloat16, by target and number of samples of 2048 tokens."""
    shown = Table("model", "weights", "target, samples", "one block", "work", "activations", "peak", "states on disk")
    for name, hidden, inner, blocks, heads in (
        ("7B", 4096, 11008, 32, 32),
        ("13B", 5120, 13824, 40, 40),
        ("70B", 8192, 28672, 80, 8),
    ):
        config = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=blocks,
            num_attention_heads=hidden // 128,
            num_key_value_heads=heads,
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        weights = 2 * sum(parameter.numel() for parameter in model.parameters())
        for target, samples in (("layer", 128), ("dense", 128), ("dense", 16)):
            options: dict[str, Any] = {"dtype": torch.bfloat16, "dense_targets": target == "dense"}
            memory, disk = (
                estimate_memory(model, samples=samples, length=2048, on_disk=on_disk, **options)
                for on_disk in (False, True)
            )
            sizes = (memory.block, memory.work, memory.activations + memory.waiting, memory.peak, disk.peak)
            cells = [f"{size / 1e9:.1f} GB" for size in (weights, *sizes)]
            shown.add_row(name, cells[0], f"{target}, {samples}", *cells[1:])
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.memory", description=__doc__)
    parser.add_argument("--table", action="store_true", help="only what the formula says of larger models")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default=DTYPE, choices=["float32", "bfloat16"])
    parser.add_argument(
        "--target",
        default="layer",
        choices=["layer", "dense", "none", "slim"],
        help="none: only analyze the *o_proj; slim: take a quarter of the decoder blocks' parameters out",
    )
    parser.add_argument("--checkpoint", action="store_true", help="hidden states on disk")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of the model; the fresh process is told by it
    options = parser.parse_args()
    if options.table:
        return Console(width=120).print(table())
    if options.folder:
        folder = Path(options.folder)
        kept = folder / "kept" if options.checkpoint else None
        print(json.dumps(prune(folder, options.samples, options.length, options.dtype, kept, options.target)))
        return None
    report(*stream_and_prune(options.hidden, options.blocks, options.dtype, sys.argv[1:]))
    return None


def stream_and_prune(
    hidden: int = HIDDEN, blocks: int = BLOCKS, dtype: str = DTYPE, arguments: Sequence[str] = ()
) -> tuple[int, dict[str, float]]:
    """Bytes of a random model's weights, and what `prune` found in a fresh process with these further arguments."""
    with tempfile.TemporaryDirectory() as temporary:
        size = write_random_llama(Path(temporary), hidden, blocks, getattr(torch, dtype))
        command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments, "--folder", temporary]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return size, json.loads(done.stdout)


def rows() -> list[Row]:
    """A float32 model of the size that the options have unless given, pruned as it streams."""
    size, found = stream_and_prune()
    model = f"{size / 1e9:.1f} GB of weights pruned and written"
    return [
        (model, found["seconds"], "", 1.0),
        (
            f"its peak memory, {found['measured'] / 1e9:.2f} GB",
            math.nan,
            "the formula",
            found["measured"] / found["peak"],
        ),
        ("the same", math.nan, "its weights", found["measured"] / size),
    ]


def report(size: int, found: dict[str, float]) -> None:
    console = Console()
    console.print(f"{size / 1e9:.2f} GB of weights, pruned and written in {found['seconds']:.0f} s")
    shown = Table("what", "MB")
    for name in ("block", "embedding", "hessians", "batch", "work", "activations", "waiting", "peak", "measured"):
        shown.add_row({"peak": "peak by the formula"}.get(name, name), f"{found[name] / 1e6:.0f}")
    console.print(shown)
    console.print(f"measured / formula: {found['measured'] / found['peak']:.3f}")


if __name__ == "__main__":
    main()
