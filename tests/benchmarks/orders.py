"""Order and budget, layer by layer: python -m tests.benchmarks.orders --output FOLDER [STUDY ...].

Held-out error of real layers on the dense model's inputs, every variant on the same inputs, relative to SparseGPT's
(natural order, block budget, block size 128) on the same layer. Each study is kept as FOLDER/STUDY.csv, one line per
layer and variant; a study whose file is there is only summarized again. `--text` is both calibrated on and held out,
in windows drawn by `--seed`.

    sparsity    ten pairs of order and budget, and two of them refitted, from 0.3 to 0.9
    effects     every pair with its sweep, and with the best weights for the same mask: what the mask costs, what the
                unfinished compensation costs
    block_size  8 to 512
    samples     2 to 32 windows of calibration
    grouped     N:M, where the budget is fixed and only groups can be ordered
    families    models of other families, trained here for some minutes on bytes of the text
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

import rose
from rose.files import write_atomically
from rose.layer import error
from rose.layer.methods import LayerResult
from rose.layer.methods.sparsegpt import refit
from rose.layer.statistics import InputStatistics
from rose.model.load.tokens import load_calibration, load_text
from rose.model.network.heads import ATTENTION_OUTPUTS
from rose.model.walk.walk import visit_blocks
from tests.benchmarks.common import arguments

LAYERS = [f"model.layers.{block}.*" for block in (0, 6, 12, 18, 24)]  # 18 has the most columnar layer
LENGTH, SAMPLES, HELD_OUT = 512, 16, 8
PAIRS = [
    *(("natural", "block"), ("natural", "layer"), ("two_level", "block"), ("two_level", "layer")),
    *(("global", "block"), ("global", "layer"), ("random:0", "block"), ("random:0", "layer")),
    *(("dealt", "block"), ("dealt", "layer")),
]
BASE = "natural/block"
REFITTED = ["global/layer", "dealt/block"]  # the second is rose_dealt


@dataclass(frozen=True)
class Inputs:
    """One layer and what is known of its inputs."""

    model: str
    layer: str
    projection: str
    weight: Tensor
    calibration: InputStatistics
    held_out: InputStatistics

    def error(self, pruned: Tensor) -> float:
        return error.relative_error(self.weight, pruned, self.held_out.hessian)


Errors = dict[str, float]  # variant -> held-out relative error


class Text:
    """The packaged model with calibration and held-out windows of one text."""

    def __init__(self, source: str, seed: int) -> None:
        self.source, self.seed = source, seed
        self.model, self.tokenizer = rose.load_model("smollm2-135m")

    def layers(self, samples: int = SAMPLES) -> Iterator[Inputs]:
        """Held-out windows are drawn first, so that they are the same for every number of samples."""
        most = 32
        tokens, _ = load_calibration(
            self.source, self.tokenizer, samples=HELD_OUT + most, held_out=0, length=LENGTH, seed=self.seed
        )
        held_out, calibration = tokens[:HELD_OUT], tokens[HELD_OUT : HELD_OUT + samples]
        yield from layer_inputs("smollm2-135m", self.model, calibration, held_out, LAYERS)


def layer_inputs(
    name: str, model: nn.Module, calibration: Tensor, held_out: Tensor, layers: Sequence[str] | None
) -> Iterator[Inputs]:
    for block in visit_blocks(model, calibration, layers=layers, held_out=held_out):
        for layer in block.layers:
            known = block.calibration[layer.name], block.held_out[layer.name]
            yield Inputs(name, layer.name, layer.projection, layer.weight.detach(), *known)


def swept(inputs: Inputs, order: str, budget: str, **settings: Any) -> LayerResult:
    return rose.prune_layer(
        inputs.weight, inputs.calibration, method="sparsegpt", order=order, budget=budget, **settings
    )


def pairs(inputs: Inputs, sparsity: str, with_refit: Sequence[str] = ()) -> Errors:
    """All pairs of order and budget; those named also with the best weights for the mask that the sweep chose."""
    found: Errors = {}
    for order, budget in PAIRS:
        variant = f"{order}/{budget}"
        result = swept(inputs, order, budget, sparsity=sparsity)
        found |= errors_of(inputs, variant, result, variant in with_refit)
    return found


def errors_of(inputs: Inputs, variant: str, result: LayerResult, with_refit: bool) -> Errors:
    """That of a sweep, and where asked that of the best weights for its mask."""
    found = {variant: inputs.error(result.weight)}
    if with_refit:
        found[f"{variant} refit"] = inputs.error(refit(inputs.weight, inputs.calibration, result).weight)
    return found


# Studies: each yields (setting, inputs, errors by variant)

Finding = tuple[str, Inputs, Errors]
Study = Callable[[Text], Iterator[Finding]]


def over(settings: Sequence[str], measure: Callable[[Inputs, str], Errors]) -> Study:
    """Measures every layer with each setting."""

    def study(text: Text) -> Iterator[Finding]:
        for inputs in text.layers():
            for setting in settings:
                yield setting, inputs, measure(inputs, setting)

    return study


def by_block_size(inputs: Inputs, size: str) -> Errors:
    found = {BASE: inputs.error(swept(inputs, "natural", "block").weight)}
    found["natural/block here"] = inputs.error(swept(inputs, "natural", "block", block_size=int(size)).weight)
    for pair in REFITTED:
        order, budget = pair.split("/")
        found |= errors_of(inputs, pair, swept(inputs, order, budget, block_size=int(size)), True)
    return found


def samples_study(text: Text) -> Iterator[Finding]:
    for samples in (2, 4, 8, 16, 32):
        for inputs in text.layers(samples):
            yield str(samples), inputs, pairs(inputs, "0.7", with_refit=REFITTED)


def by_pattern(inputs: Inputs, pattern: str) -> Errors:
    found: Errors = {}
    for order in ("natural", "two_level", "global", "global_ascending", "hessian", "random:0", "dealt"):
        result = swept(inputs, order, "block", sparsity=pattern)
        found |= errors_of(inputs, order, result, order in ("natural", "global", "dealt"))
    return {BASE if variant == "natural" else variant: one for variant, one in found.items()}


# Other families: no trained model of another family can be had without a network, so small ones are trained on bytes.

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


def families_study(text: Text) -> Iterator[Finding]:
    """Layers of each family; whole models: `tests.benchmarks.models`."""
    training, calibration, evaluation = bytes_of(text.source)
    for family, config in SMALL.items():
        model = train(config(), training)
        test = byte_windows(evaluation, 64, seed=0)
        for inputs in layer_inputs(family, model, byte_windows(calibration, 64, 1), test, None):
            found = pairs(inputs, "0.7", with_refit=REFITTED)
            for method in ("rose_admm", "alps"):
                found[method] = inputs.error(rose.prune_layer(inputs.weight, inputs.calibration, method=method).weight)
            yield family, inputs, found


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


STUDIES: dict[str, Study] = {
    "sparsity": over(("0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"), partial(pairs, with_refit=REFITTED)),
    "effects": over(("0.5", "0.7"), partial(pairs, with_refit=[f"{order}/{budget}" for order, budget in PAIRS])),
    "block_size": over(("8", "16", "32", "64", "128", "256", "512"), by_block_size),
    "samples": samples_study,
    "grouped": over(("2:4", "4:8", "1:4"), by_pattern),
    "families": families_study,
}


def run(name: str, text: Text, file: Path) -> pd.DataFrame:
    rows = [
        {"setting": setting, "model": i.model, "layer": i.layer, "projection": i.projection, "variant": v, "error": e}
        for setting, i, errors in STUDIES[name](text)
        for v, e in errors.items()
    ]
    table = pd.DataFrame(rows)
    write_atomically(file, table.to_csv(index=False).encode())
    return table


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Mean ratio to SparseGPT's error by setting and variant: all layers, attention outputs; share improved."""
    keys = ["setting", "model", "layer"]
    base = table[table["variant"] == BASE].set_index(keys)["error"]
    joined = table.join(base.rename("base"), on=keys)
    joined["ratio"] = joined["error"] / joined["base"]
    # The last linear layer of attention, whatever the family calls it.
    is_output = joined["layer"].str.endswith(ATTENTION_OUTPUTS)
    joined["output_ratio"] = joined["ratio"].where(is_output)
    joined["improved"] = joined["ratio"] < 1
    groups = joined.groupby(["setting", "variant"], sort=False)
    return groups.agg(
        ratio=("ratio", "mean"), attention_outputs=("output_ratio", "mean"), improved=("improved", "mean")
    ).reset_index()


def main() -> None:
    options = arguments(__doc__, "studies", output=Path, text="packaged", seed=0)
    text = Text(options.text, options.seed)
    for name in options.studies or STUDIES:
        file = options.output / f"{name}.csv"
        table = pd.read_csv(file, dtype={"setting": str}) if file.exists() else run(name, text, file)
        print(f"{name}: held-out error against SparseGPT's")
        print(summarize(table).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
