"""The authors' own program against ours: python -m tests.benchmarks --reference PATH [--quick] [NAME ...].

PATH is a clone of github.com/mingluo-su/ROSE. It is imported from there as it is; only what it takes for granted is
replaced: its data loader by our tokens, and waiting for CUDA by nothing where there is no CUDA. Everything runs on the
processor, in float32.
"""

import contextlib
import importlib
import io
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import rose
from rose.layer.hessian import damp
from rose.model.network.layers import prunable_layers
from tests.benchmarks.common import Row, forward_passes, packaged_model, timed

SHAPES = ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (4096, 4096), (4096, 11008))  # (out, in)
BLOCK_SIZE = 128
SPARSITY = 0.7
NO_TIME = float("nan")
# The first is the authors' own protocol.
MODES: tuple[dict[str, Any], ...] = (
    {"target": "layer"},
    {"target": "layer", "true_sequential": True},
    {"target": "dense"},
)


def load_reference(folder: Path) -> ModuleType:
    """The authors' module `lib.prune`; see `load_program`."""
    return load_program(folder, "github.com/mingluo-su/ROSE", "lib.prune", "lib/prune.py", "lib/prune_zoo/rose.py")


def load_program(folder: Path, repository: str, module: str, *files: str) -> ModuleType:
    """A module of a program as its authors publish it.

    Raises:
        RoseError: the folder lacks files of their repository, or something that they need is not installed.
    """
    if not all((folder / name).is_file() for name in files):
        raise rose.RoseError(f"{folder} does not hold the authors' repository; clone {repository} there.")
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise rose.RoseError(f"The authors' program in {folder} cannot be imported: {error}.") from error
    finally:
        sys.path.pop(0)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Without their progress lines, and without CUDA where there is none."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not torch.cuda.is_available():
            stack.enter_context(mock.patch("torch.cuda.synchronize"))
            stack.enter_context(mock.patch("torch.cuda.empty_cache"))
        yield


def columnar_layer(out: int, columns: int) -> tuple[Tensor, rose.InputStatistics]:
    """A random weight and Hessian. The first block's inputs are quiet, so that ROSE reorders the layer."""
    generator = torch.Generator().manual_seed(0)
    loudness = torch.ones(columns)
    loudness[:BLOCK_SIZE] = 0.1
    inputs = torch.randn(1024, columns, generator=generator) * loudness
    hessian = inputs.T @ inputs + torch.diag(100 * loudness.square())  # definite, however few the tokens
    weight = torch.randn(out, columns, generator=generator)
    return weight, rose.InputStatistics.from_hessian(hessian, tokens=len(inputs))


def time_theirs(official: ModuleType, method: str, weight: Tensor, statistics: rose.InputStatistics) -> float:
    """Seconds of their routine for one layer with its Hessian at hand; NaN where it fails with an index error."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    wrapped = {"sparsegpt": official.SparseGPT, "rose": official.ROSE}[method](layer)
    wrapped.H = statistics.hessian.clone()
    wrapped.scaler_row = statistics.mean_square
    try:
        with undisturbed():
            return timed(lambda: wrapped.fasterprune(SPARSITY, blocksize=BLOCK_SIZE, percdamp=0.01))
    except IndexError:
        return NO_TIME


def time_ours(method: str, weight: Tensor, statistics: rose.InputStatistics) -> float:
    # New statistics, or it would find H factorized.
    statistics = rose.InputStatistics.from_hessian(statistics.hessian, statistics.tokens)
    return timed(lambda: rose.prune_layer(weight, statistics, method=method, sparsity=SPARSITY, block_size=BLOCK_SIZE))


def time_floor(weight: Tensor, hessian: Tensor) -> float:
    """What no sweep with a measured error does without: the factor, and one and a half times the product W·H.

    H is symmetric and U triangular, so the sweep and the errors before and after take half a product each.
    """
    return timed(lambda: damp(hessian).natural_factor) + 1.5 * timed(lambda: weight @ hessian)


@torch.no_grad()
def reference_layer(official: ModuleType, quick: bool) -> list[Row]:
    """One layer, Hessian at hand: theirs, ours, and what ours cannot do without. Taken in turns, the least of each."""
    rows: list[Row] = []
    for out, columns in SHAPES[:-1] if quick else SHAPES:
        weight, statistics = columnar_layer(out, columns)
        turns = range(5 if weight.numel() < 10**7 else 2 if weight.numel() < 4 * 10**7 else 1)
        floor = min(time_floor(weight, statistics.hessian) for _ in turns)
        for method in ("sparsegpt", "rose"):
            pairs = [
                (time_theirs(official, method, weight, statistics), time_ours(method, weight, statistics))
                for _ in turns
            ]
            theirs, ours = (min(seconds) for seconds in zip(*pairs, strict=True))
            name = f"{out} × {columns}: {method}"
            failed = " (index error: columns do not divide by 128)" if theirs != theirs else ""
            rows += [
                (f"{name}, authors{failed}", theirs, "", NO_TIME),
                (f"{name}, prune_layer", ours, "authors", ours / theirs),
                ("  factorization + products", floor, "prune_layer", floor / ours),
            ]
    return rows


def prune_by_reference(official: ModuleType, model: nn.Module, tokens: Tensor, method: str) -> None:
    """Their whole pipeline on our tokens; changes the model."""
    arguments = Namespace(nsamples=len(tokens), seed=0, prune_method=method, sparsity_ratio=SPARSITY)
    model.seqlen = tokens.shape[1]  # type: ignore[assignment]  # where they look for it
    windows = [(window.unsqueeze(0), None) for window in tokens]
    with undisturbed(), mock.patch.object(official, "get_loaders", return_value=(windows, None)):
        official.prune_model(arguments, model, None, torch.device("cpu"))


def first_masks(model: nn.Module) -> Tensor:
    """Zeros of all layers of the first decoder block, flat."""
    return torch.cat([(layer.weight == 0).flatten() for layer in prunable_layers(model) if layer.block_index == 0])


def reference_model(official: ModuleType, tokens_per_run: tuple[int, int]) -> list[Row]:
    """The packaged model by SparseGPT, theirs and ours, and the two bare forward passes that neither does without."""
    model, tokens = packaged_model(tokens_per_run)
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bare = timed(lambda: forward_passes(model, tokens, 2))
    theirs = timed(lambda: prune_by_reference(official, model, tokens, "sparsegpt"))
    their_masks = first_masks(model)
    model.load_state_dict(dense)
    rows: list[Row] = [
        ("two bare forward passes", bare, "authors", bare / theirs),
        ("sparsegpt, authors", theirs, "two bare forward passes", theirs / bare),
    ]
    for compute in ("float32", "bfloat16"):
        for mode in MODES:
            settings: dict[str, Any] = {"method": "sparsegpt", "sparsity": SPARSITY, "compute": compute, **mode}
            ours = timed(lambda: rose.prune_model(model, tokens, **settings))  # noqa: B023  called at once
            name = " ".join(f"{name}={value}" for name, value in mode.items())
            rows.append((f"sparsegpt, prune_model {name} compute={compute}", ours, "authors", ours / theirs))
            equal = float((first_masks(model) == their_masks).float().mean())
            rows.append((f"  equal entries of the first decoder block's masks: {equal:.5f}", NO_TIME, "", NO_TIME))
            model.load_state_dict(dense)
    try:
        prune_by_reference(official, model, tokens[:1], "rose")
        rose_runs = "runs"
    except IndexError:
        rose_runs = "index error: 576 columns do not divide by 128"
    return [
        *rows,
        (f"rose, authors ({rose_runs})", NO_TIME, "", NO_TIME),
    ]
