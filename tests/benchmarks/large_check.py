"""`rose check --stream` on the shapes of a 7B model: python -m tests.benchmarks.large_check [--blocks N].

Two checkpoints of LLaMA's 7B shapes are made up as sparse files, which hold zeros and take no room on a disk, and are
checked from their weights alone. Prints processor seconds and the peak of anonymous memory, what the process cannot
give back to the system. Zeros spare the search for grids and the like: real weights take about a third longer.
"""

import json
import os
import tempfile
import time
from math import prod
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rose import cli
from tests.benchmarks.common import arguments, processor_seconds
from tests.benchmarks.memory import PeakMemory
from tests.tiny import byte_tokenizer


def write_zeros(folder: Path, blocks: int) -> int:
    """A checkpoint in bfloat16, a shard for each decoder block and one for the rest; returns its bytes."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        max_position_embeddings=4096,
        dtype=torch.bfloat16,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{part}.safetensors", {})[name] = tuple(parameter.shape)
    for file, shapes in shards.items():
        header, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + 2 * prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    weights = {name: file for file, shapes in shards.items() for name in shapes}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main() -> None:
    options = arguments(__doc__, blocks=32, dtype="bfloat16")
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / one for one in ("dense", "pruned")]
        for folder in folders:
            folder.mkdir()
            size = write_zeros(folder, options.blocks)
        with PeakMemory() as memory:
            start = time.perf_counter()
            command = ["check", *map(str, folders), "--stream", "--dtype", options.dtype]
            spent, status = processor_seconds(lambda: cli.main(command))
            wall = time.perf_counter() - start
    print(
        f"2 × {size / 1e9:.1f} GB, {options.blocks} decoder blocks, exit status {status}: {spent:.0f} processor seconds"
        f", {wall:.0f} s with {torch.get_num_threads()} threads and {os.getloadavg()[0]:.0f} others at work; "
        f"{(memory.peak - memory.before) / 1e9:.2f} GB at the peak above {memory.before / 1e9:.2f} GB of libraries"
    )


if __name__ == "__main__":
    main()
