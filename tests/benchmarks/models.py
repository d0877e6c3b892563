"""How methods rank in whole models of several families: python -m tests.benchmarks.models --output FOLDER

    --models smollm2-135m qwen.gguf gpt2 opt gpt_neox --calibration TEXT --evaluate TEXT

Perplexity at 70 % with both targets, over calibration draws. `gpt2`, `opt` and `gpt_neox` are small ones, trained here
for some minutes on the bytes of the calibration text's first part; any other name is as for `rose prune --model`.
`--samples` windows of 512 tokens and `--dtype` are for models with a tokenizer, and so is the text to `--evaluate`.
A line of FOLDER/rows.csv for each run, as it comes; the same command resumes where the lines end.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import rose
from rose.model.load.tokens import load_text, load_tokens
from tests.benchmarks.common import MODEL, Rows, arguments, judged

METHODS = ("sparsegpt", "rose", "rose_global", "rose_dealt", "rose_admm", "alps")
TARGETS = ("layer", "dense")
BYTE_WINDOWS = 64

# No trained model of another family can be had without a network, so small ones are trained on bytes.
SMALL: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=256, n_positions=256, n_embd=256, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=256, max_position_embeddings=256, hidden_size=256, ffn_dim=1024, num_hidden_layers=4,
        num_attention_heads=4, word_embed_proj_dim=256, dropout=0,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=256, max_position_embeddings=256, hidden_size=256, intermediate_size=1024, num_hidden_layers=4,
        num_attention_heads=4,
    ),
}  # fmt: skip
STEPS, BATCH, WINDOW = 600, 16, 256


@dataclass(frozen=True)
class Subject:
    """A model, its windows to judge by, and how its calibration tokens are drawn by seed."""

    model: nn.Module
    test: Tensor
    draw: Callable[[int], Tensor]


def train(config: transformers.PretrainedConfig, content: Tensor) -> nn.Module:
    """A small model that has learned the spelling and much of the wording of the text."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=STEPS)
    for step in track(range(STEPS), f"training {config.model_type}", console=Console(stderr=True)):
        windows = byte_windows(content, BATCH, seed=step)
        model(input_ids=windows, labels=windows).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def bytes_of(source: str) -> tuple[Tensor, Tensor, Tensor]:
    """A text's bytes to train on, eight tenths of it, to calibrate on, and to judge by, (bytes,) int64 each."""
    content = torch.frombuffer(bytearray(load_text(source).encode()), dtype=torch.uint8).long()
    training, rest = content[: len(content) * 8 // 10], content[len(content) * 8 // 10 :]
    return training, rest[: len(rest) // 2], rest[len(rest) // 2 :]


def byte_windows(content: Tensor, count: int, seed: int) -> Tensor:
    starts = torch.randint(len(content) - WINDOW, (count,), generator=torch.Generator().manual_seed(seed))
    return content[starts[:, None] + torch.arange(WINDOW)]


def small(family: str, options: argparse.Namespace) -> Subject:
    training, calibration, evaluation = bytes_of(options.calibration)
    test = byte_windows(evaluation, BYTE_WINDOWS, seed=0)
    return Subject(
        train(SMALL[family](), training), test, lambda seed: byte_windows(calibration, BYTE_WINDOWS, seed + 1)
    )


def pretrained(name: str, options: argparse.Namespace) -> Subject:
    model, tokenizer = rose.load_model(name, dtype=options.dtype)
    sizes: dict[str, Any] = {"samples": options.samples, "held_out": 4, "length": 512}  # 4: as in the other tables
    draw = partial(load_tokens, options.calibration, tokenizer, **sizes)
    return Subject(model, judged(options.evaluate, tokenizer), lambda seed: draw(seed=seed)[0])


def main() -> None:
    options = arguments(
        __doc__,
        output=Path,
        models=[MODEL, *SMALL],
        methods=list(METHODS),
        calibration="packaged",
        evaluate="packaged",
        samples=16,
        dtype="bfloat16",
        sparsity="0.7",
        seeds=[0, 1, 2],
    )
    rows = Rows(options.output / "rows.csv", ["model", "target", "method", "seed"])
    for name in options.models:
        every = product(TARGETS, options.methods, options.seeds)
        wanted = [one for one in every if (name, *one) not in rows]
        if not wanted:
            continue
        subject = (small if name in SMALL else pretrained)(name, options)
        base = rose.perplexity(subject.model, subject.test)
        for target, method, seed in wanted:
            model = copy.deepcopy(subject.model)
            rose.prune_model(model, subject.draw(seed), method=method, sparsity=options.sparsity, target=target)
            found = rose.perplexity(model, subject.test)
            rows.add(model=name, target=target, method=method, seed=seed, dense=base, perplexity=found)
    groups = rows.table().groupby(["model", "dense", "target", "method"], sort=False)["perplexity"]
    table = groups.agg(["mean", "min", "max"])
    cells = table["mean"].map("{:.4g}".format) + " ± " + ((table["max"] - table["min"]) / 2).map("{:.2g}".format)
    print(cells.unstack().to_string())


if __name__ == "__main__":
    main()
