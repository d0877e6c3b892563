"""Faults planted in checkpoints of the packaged model, and what `rose check` says: python -m tests.benchmarks.planted.

Every checkpoint is made with plain torch and transformers from one that SparseGPT has pruned, written by
`save_pretrained`, and read and checked as a stranger's. A fault counts as found where each of its layers is given its
verdict, something is wrong, and no other layer is accused. `--blocks N` takes the first decoder blocks alone; names
choose some of the faults. Rows go to --output, and what is there is not done again.
"""

import copy
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import rose
from rose.layer.defaults import RECOMMENDED
from rose.model.check import verdicts
from tests.benchmarks.common import MODEL, Rows, arguments
from tests.model.check.faults import compensate, q4_0, q4_1

LAYER = "model.layers.{}.{}".format
QUICK = ("magnitude", "wanda")  # methods that cost no sweep


@dataclass(frozen=True)
class Fault:
    """One way to go wrong, or none.

    Attributes:
        base: "sparsegpt" or "2:4", the checkpoint that it starts from, or "dense".
        plant: changes a copy of it.
        expected: verdict by name of tensor; a name of "*" means every layer.
        is_sane: whether nothing at all is to be accused.
        tokens: whether it takes tokens to see it.
        methods: to compare with.
        method: whose masks are to be recognized.
    """

    base: str
    plant: Callable[[nn.Module], Any]
    expected: dict[str, str] = field(default_factory=dict)
    tokens: bool = False
    methods: tuple[str, ...] = QUICK
    method: str = ""


def weight_of(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").data


def each_layer(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    def plant(model: nn.Module) -> None:
        for layer in rose.prunable_layers(model):
            layer.write(change(layer.weight))

    return plant


def smallest_gone(weight: Tensor, ratio: float = 0.5) -> Tensor:
    """Magnitude pruning without compensation."""
    order = weight.abs().flatten().argsort()
    pruned = weight.clone()
    pruned.view(-1)[order[: round(ratio * len(order))]] = 0
    return pruned


def merge_adapters(names: list[str]) -> Callable[[nn.Module], None]:
    def plant(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in names:
            weight = weight_of(model, name)
            down, up = (torch.randn(size, 8, generator=generator) for size in weight.shape)
            weight += 0.002 * down @ up.T

    return plant


def one_group(name: str) -> Callable[[nn.Module], None]:
    def plant(model: nn.Module) -> None:
        group = weight_of(model, name)[3, 8:12]
        group[(group == 0).nonzero()[0]] = 0.05

    return plant


def backwards(found: Tensor, dense: Tensor) -> None:
    """Moves kept weights as far the other way."""
    found.copy_(2 * dense.masked_fill(found == 0, 0) - found)


def swap(one: str, other: str) -> Callable[[nn.Module], None]:
    def plant(model: nn.Module) -> None:
        first, second = weight_of(model, one), weight_of(model, other)
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)

    return plant


def other_seed(model: nn.Module) -> None:
    torch.manual_seed(1)
    fresh = AutoModelForCausalLM.from_config(model.config)
    for layer, found in zip(rose.prunable_layers(model), rose.prunable_layers(fresh), strict=True):
        layer.write(compensate(found.weight))


def tear(model: Any) -> None:
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 1.01)


def prune(
    method: str, tokens: Tensor, sparsity: float | str = 0.5, target: str = "layer"
) -> Callable[[nn.Module], None]:
    def plant(model: nn.Module) -> None:
        rose.prune_model(model, tokens, method=method, sparsity=sparsity, target=target)

    return plant


def faults(dense: nn.Module, tokens: Tensor, other: Tensor, middle: int) -> dict[str, Fault]:
    """By name; `middle`: a decoder block in the middle."""
    one, two, three = (LAYER(middle, name) for name in ("self_attn.k_proj", "mlp.up_proj", "self_attn.o_proj"))
    far = LAYER(middle + 1, "self_attn.k_proj")
    merged = [LAYER(middle + k, "mlp.gate_proj") for k in (-1, 0, 1)]
    both = ("magnitude", "wanda", "sparsegpt", "rose")
    return {
        "nothing": Fault("sparsegpt", lambda _: None),
        "magnitude without compensation": Fault(
            "dense", each_layer(smallest_gone), {"*": verdicts.MASK_ALONE}, tokens=True, method="magnitude"
        ),
        "an adapter merged into three layers": Fault(
            "sparsegpt", merge_adapters(merged), dict.fromkeys(merged, verdicts.ZEROS_LOST)
        ),
        "one group of a 2:4 layer with three nonzeros": Fault("2:4", one_group(two), {two: verdicts.PATTERN_BROKEN}),
        "one layer NaN": Fault(
            "sparsegpt", lambda model: weight_of(model, three).fill_(float("nan")), {three: verdicts.NUMBERS_BROKEN}
        ),
        "one layer all zero": Fault(
            "sparsegpt", lambda model: weight_of(model, two).zero_(), {two: verdicts.NUMBERS_BROKEN}
        ),
        "two layers of one shape swapped": Fault(
            "sparsegpt", swap(one, far), dict.fromkeys((one, far), verdicts.OTHER_MODEL)
        ),
        "a layer at 0.5 in a model at 0.7": Fault(
            "sparsegpt",
            lambda model: weight_of(model, two).copy_(compensate(weight_of(dense, two), 0.5)),
            {two: verdicts.OTHER_SPARSITY},
        ),
        "requantized to Q4_1": Fault("sparsegpt", each_layer(q4_1), {"*": verdicts.ZEROS_LOST}),
        "requantized to Q4_0": Fault("sparsegpt", each_layer(q4_0)),
        "layers of another seed": Fault("sparsegpt", other_seed, {"*": verdicts.OTHER_MODEL}),
        "a torn tie": Fault("sparsegpt", tear, {"lm_head.weight": verdicts.TIE_TORN}),
        "compensated for another text": Fault(
            "dense", prune("sparsegpt", other), tokens=True, methods=("wanda", "sparsegpt")
        ),
        "SparseGPT on the same tokens": Fault(
            "dense", prune("sparsegpt", tokens), tokens=True, methods=both, method="sparsegpt"
        ),
        "compensation of one layer with the wrong sign": Fault(
            "sparsegpt",
            lambda model: backwards(weight_of(model, two), weight_of(dense, two)),
            {two: verdicts.BACKWARDS},
            tokens=True,
        ),
        "ROSE on the same tokens": Fault("dense", prune("rose", tokens, 0.7), tokens=True, methods=both, method="rose"),
        "ROSE towards the dense model": Fault(
            "dense", prune("rose", tokens, 0.7, "dense"), tokens=True, methods=both, method="rose"
        ),
        "the recommended method, target layer": Fault(
            "dense", prune(RECOMMENDED, tokens, 0.7), tokens=True, methods=(*both, RECOMMENDED), method=RECOMMENDED
        ),
    }


def first_blocks(model: Any, blocks: int) -> Any:
    """A copy with its first decoder blocks; 0 for all."""
    model = copy.deepcopy(model)
    if blocks:
        model.model.layers = model.model.layers[:blocks]
        model.config.num_hidden_layers = blocks
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[:blocks]
    return model


def judge(fault: Fault, found: rose.CheckpointCheck) -> dict[str, Any]:
    """What was found, as a row."""
    told = set(found.wrong["name"])
    named = pd.concat([found.layers.rename(columns={"layer": "name"}), found.others]).set_index("name")["verdict"]
    expected = dict.fromkeys(found.layers["layer"], fault.expected["*"]) if "*" in fault.expected else fault.expected
    missed = [name for name, verdict in expected.items() if named.get(name) != verdict]
    accused = told - expected.keys()
    method = found.summary["method"] or {}
    # Where no layer is columnar, ROSE is SparseGPT, and the check says so.
    alike = method.get("alike", {})
    same = {method.get("name"), *(name for name in alike if alike[name] == method["compared"])}
    recognized = not fault.method or fault.method in same
    return {
        "found": "yes" if not missed and not accused and recognized and bool(told) == bool(expected) else "no",
        "accused": len(told),
        "missed": len(missed),
        "accused_besides": len(accused),
        "method": method.get("name", ""),
        "target": method.get("target", ""),
        "told_by": method["compared"] - max(alike.values(), default=0) if method else "",
        "agreement": round(method["agreement"], 4) if method else "",
        "by_chance": round(method["chance"], 4) if method else "",
        "worst": found.wrong["name"][0] if len(told) else "",
        "verdict": found.wrong["verdict"][0] if len(told) else "",
        "reason": found.wrong["reason"][0] if len(told) else "",
    }


def main() -> None:
    options = arguments(__doc__, "names", output=Path, blocks=0, samples=8, length=512, held_out=2)
    whole, tokenizer = rose.load_model(MODEL)
    dense = first_blocks(whole, options.blocks)
    windows = rose.load_tokens(
        "packaged", tokenizer, samples=options.samples + options.held_out, length=options.length, seed=0
    )
    tokens, held_out = windows[: options.samples], windows[options.samples :]
    prose = "\n".join(path.read_text() for path in (*sorted(Path("docs").glob("*.md")), Path("LICENSE")))
    with tempfile.TemporaryDirectory() as name:
        text, folder = Path(name) / "other.txt", Path(name) / "checkpoint"
        text.write_text(prose)
        other = rose.load_tokens(str(text), tokenizer, samples=options.samples, length=options.length, seed=0)
        bases = {"dense": dense}
        rows = Rows(options.output, ("fault", "blocks"))
        blocks = len(dense.model.layers)
        for what, fault in faults(dense, tokens, other, blocks // 2).items():
            if (what, blocks) in rows or (options.names and what not in options.names):
                continue
            if fault.base not in bases:
                bases[fault.base] = copy.deepcopy(dense)
                prune("sparsegpt", tokens, 0.7 if fault.base == "sparsegpt" else fault.base)(bases[fault.base])
            model = copy.deepcopy(bases[fault.base])
            with torch.no_grad():
                fault.plant(model)
            shutil.rmtree(folder, ignore_errors=True)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            began = time.process_time()
            read, _ = rose.load_model(str(folder), finite=False)
            on = (tokens, held_out) if fault.tokens else (None, None)
            found = rose.check_checkpoint(dense, read, on[0], held_out=on[1], methods=fault.methods)
            seconds = round(time.process_time() - began, 1)
            expected = ", ".join(sorted(set(fault.expected.values()))) or "nothing wrong"
            rows.add(fault=what, blocks=blocks, expected=expected, **judge(fault, found), processor_seconds=seconds)


if __name__ == "__main__":
    main()
