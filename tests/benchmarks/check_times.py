"""What `rose check` takes: python -m tests.benchmarks.check_times --output check-times.csv

The packaged model beside a copy by `rose prune`, from the weights alone and on tokens with all methods that a check
tries; and two checkpoints of LLaMA's 7B shapes with `--stream`, from the weights alone. Those are made up as sparse
files, which hold zeros and take no room on a disk; zeros spare the search for grids and the like, and real weights take
about a third longer. Memory is the peak of what the process cannot give back to the system, above what it held before.
"""

import json
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rose import cli
from tests.benchmarks.common import MODEL, Rows, arguments, processor_seconds
from tests.benchmarks.memory import PeakMemory
from tests.tiny import byte_tokenizer


def write_zeros(folder: Path, blocks: int) -> None:
    """A checkpoint in bfloat16, a shard for each decoder block and one for the rest."""
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


def main() -> None:
    options = arguments(__doc__, output=Path("check-times.csv"), blocks=32, sparsity="0.5")
    rows = Rows(options.output, ["what"])
    calibration = ["--calibration", "packaged", "--samples", "8", "--length", "512"]
    with tempfile.TemporaryDirectory() as name:
        large, pruned = [Path(name) / one for one in ("dense", "sparse")], Path(name) / "pruned"
        pair, pairs = [MODEL, str(pruned)], [*map(str, large), "--stream", "--dtype", "bfloat16"]
        for folder in large:
            folder.mkdir()
            write_zeros(folder, options.blocks)
        checks = {f"7B shapes, {options.blocks} decoder blocks": pairs, "packaged": pair}
        checks["packaged, 8 × 512 tokens"] = [*pair, *calibration]
        for what, command in checks.items():
            if (what,) in rows:
                continue
            if pair[0] in command and not pruned.exists():
                cli.main(["prune", *calibration, "--sparsity", options.sparsity, "--output", str(pruned)])
            rows.add(what=what, **timed_check(command))


def timed_check(command: Sequence[str]) -> dict[str, Any]:
    with PeakMemory() as memory:
        spent, status = processor_seconds(lambda: cli.main(["check", *command]))
    gigabytes = round((memory.peak - memory.before) / 1e9, 2)
    made = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"processor_seconds": round(spent, 1), "gigabytes": gigabytes, "status": status, **made}


if __name__ == "__main__":
    main()
