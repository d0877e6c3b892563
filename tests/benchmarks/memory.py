"""Peak memory of pruning a model that streams, against the formula: python -m tests.benchmarks.memory.

Writes a random LLaMA of several gigabytes into a temporary folder, shard by shard, prunes it in a fresh process, and
looks at that process's anonymous memory fifty times a second: what it cannot give back to the system; pages of files
do not count. Every layer of the first and the last decoder block is pruned, and one small layer of each of the others,
which is enough to stream, prune and write them all in minutes. `--table` prints what the formula says of larger models.
`--target` is layer, dense, none to analyze attention outputs alone, or slim to take a quarter of the decoder blocks'
parameters out; `--checkpoint` keeps hidden states on disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import rose
from rose.model.estimate import estimate_memory
from rose.structured.plan import estimate_slim_memory
from rose.structured.settings import SlimSettings
from tests.benchmarks.common import arguments
from tests.benchmarks.shapes import write_random_llama

SECONDS = 0.02


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


class PeakMemory:
    """Watches this process while it is a context: `before` and `peak` are bytes of anonymous memory."""

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = anonymous_memory()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(SECONDS):
            self.peak = max(self.peak, anonymous_memory())


def prune(
    folder: Path, samples: int, length: int, dtype: str, checkpoint: Path | None, target: str
) -> dict[str, float]:
    """Prunes and saves in this process; returns its peak memory above what libraries take, and the seconds.

    `target`: "layer", "dense", "none" to analyze the attention output projections, without pruning, or "slim" to take
    heads and channels out, towards the dense model.
    """
    rose.prune_layer(torch.randn(64, 64), torch.eye(64), method="rose")  # libraries set themselves up
    start = time.perf_counter()
    with PeakMemory() as memory:
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
            settings = SlimSettings(ratio=0.25, target="dense")
            rose.prune_structured(model, tokens, **vars(settings), checkpoint=checkpoint)
            rose.save_model(model, tokenizer, folder / "pruned")
            model, _ = rose.load_model(str(folder), stream=True, dtype=dtype)  # of the sizes that it had
            parts = estimate_slim_memory(model, settings, **sizes)
        elif target == "none":
            layers = ["*o_proj"]
            list(rose.analyze_model(model, tokens, sparsity=0.5, layers=layers))
            parts = estimate_memory(model, **sizes, layers=layers)
        else:
            layers = ["*.layers.0.*", f"*.layers.{last}.*", "*.v_proj"]
            rose.prune_model(model, tokens, sparsity=0.5, target=target, layers=layers, checkpoint=checkpoint)
            rose.save_model(model, tokenizer, folder / "pruned")
            parts = estimate_memory(model, **sizes, layers=layers, dense_targets=target == "dense")
    return {
        "measured": memory.peak - memory.before,
        "peak": parts.peak,
        "seconds": time.perf_counter() - start,
        **asdict(parts),
    }


def table() -> pd.DataFrame:
    """What LLaMA's sizes take in bfloat16, GB, by target and number of samples of 2048 tokens."""
    rows = []
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
            sizes = {"weights": weights, "one block": memory.block, "work": memory.work}
            sizes |= {"activations": memory.activations + memory.waiting, "peak": memory.peak, "on disk": disk.peak}
            sizes = {what: round(size / 1e9, 1) for what, size in sizes.items()}
            rows.append({"model": name, "target": target, "samples": samples, **sizes})
    return pd.DataFrame(rows)


def main() -> None:
    options = arguments(
        __doc__,
        table=False,
        hidden=3072,
        blocks=8,
        samples=4,
        length=512,
        dtype="float32",
        target="layer",
        checkpoint=False,
        folder="",
    )
    if options.table:
        return print(table().to_string(index=False))
    if options.folder:  # of the model: this is the fresh process
        folder = Path(options.folder)
        kept = folder / "kept" if options.checkpoint else None
        return print(json.dumps(prune(folder, options.samples, options.length, options.dtype, kept, options.target)))
    with tempfile.TemporaryDirectory() as name:
        size = write_random_llama(Path(name), options.hidden, options.blocks, getattr(torch, options.dtype))
        command = [sys.executable, "-m", "tests.benchmarks.memory", *sys.argv[1:], "--folder", name]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    print(f"{size / 1e9:.2f} GB of weights, pruned and written in {found.pop('seconds'):.0f} s; MB of memory:")
    print(", ".join(f"{what} {value / 1e6:.0f}" for what, value in found.items()))
    print(f"measured / formula, the peak: {found['measured'] / found['peak']:.3f}")
    return None


if __name__ == "__main__":
    main()
