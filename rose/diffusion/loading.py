"""Diffusion pipelines: the packaged one, a folder, or a Hub id; and saving a pruned one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from rose.diffusion.trajectory import denoiser_of
from rose.errors import RoseError, is_out_of_memory
from rose.files import as_text, reachable
from rose.model.load.models import parse_dtype
from rose.model.load.stored import check_finite
from rose.model.network.layers import write_low_rank
from rose.report import RunReport, new_checkpoint

PACKAGED = "garments"  # a class-conditional DiT (Peebles and Xie 2023), by `tests/benchmarks/garments.py`
FOLDER = Path(__file__).with_name("tiny")
GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
ANY = len(GARMENTS)  # the class that means "no class", for guidance
OWN_CLASS = "GarmentPipeline"  # class name of the packaged model's pipeline in its saved index


def classes_in_turn(pictures: int) -> list[int]:
    """This many class labels, 0 to 9 in turn."""
    return [number % len(GARMENTS) for number in range(pictures)]


def load_diffusion(name: str | Path = PACKAGED, *, dtype: str | torch.dtype = "float32") -> Any:
    """A `diffusers.DiffusionPipeline` on the CPU, with its denoiser in evaluation mode; calling it draws pictures.

    Args:
        name: "garments" (packaged: 1.8 million parameters, ten classes of garments, 28 × 28 pixels), a folder written
            by `save_diffusion` or `save_pretrained`, or a Hub id.
        dtype: "float32", "bfloat16" or "float16".

    Raises RoseError: no diffusers, no such pipeline, missing or corrupt files, weights that are not finite, no network,
    or a pipeline without a transformer or UNet.
    """
    check_installed()
    format_, name = parse_dtype(dtype), as_text(name)
    is_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if is_path and name != PACKAGED and not reachable(name).exists():
        raise RoseError(f"There is no folder {name}; give a pipeline's folder, a Hub id owner/model, or {PACKAGED}.")
    with _quiet():
        pipeline = _load(name, format_)
    pipeline.set_progress_bar_config(disable=True)  # callers draw their own
    denoiser = denoiser_of(pipeline)
    denoiser.requires_grad_(False)
    check_finite(name, denoiser.named_parameters())
    denoiser.eval()
    return pipeline


def save_diffusion(pipeline: Any, folder: str | Path, *, report: RunReport | None = None) -> None:
    """Writes a pipeline folder, whole or not at all, with the report of its run, if given. After OATS
    low_rank.safetensors holds the factors beside the dense weights, as by `rose.save_model`. Raises RoseError where the
    folder exists and is not empty, or cannot be written."""
    with new_checkpoint(folder, report) as temporary:
        pipeline.save_pretrained(temporary)
        write_low_rank(denoiser_of(pipeline), temporary)


def check_installed() -> None:
    """Raises RoseError without diffusers."""
    if find_spec("diffusers") is None:
        raise RoseError("Diffusion models need diffusers; run: pip install 'rose-explorer[diffusion]'")


def _load(name: str, dtype: torch.dtype) -> Any:
    from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel

    from rose.diffusion.garment_pipeline import GarmentPipeline

    if name == PACKAGED:
        transformer = DiTTransformer2DModel.from_pretrained(FOLDER, dtype=dtype)
        return GarmentPipeline(transformer, DDIMScheduler.from_pretrained(FOLDER))
    folder = reachable(name)
    is_local = folder.exists()
    kind: Any = DiffusionPipeline
    if is_local:
        try:
            index = dict(json.loads((folder / "model_index.json").read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as problem:
            raise RoseError(
                f"{folder} holds no readable model_index.json, so it is not a diffusion pipeline; choose another "
                f"folder, or {PACKAGED}."
            ) from problem
        kind = GarmentPipeline if index.get("_class_name") == OWN_CLASS else kind
    try:
        source = str(folder) if is_local else name
        return kind.from_pretrained(source, dtype=dtype, local_files_only=is_local, use_safetensors=True)
    except Exception as problem:  # diffusers, safetensors and the Hub each raise their own kinds
        if is_out_of_memory(problem):
            raise RoseError(f"There is not enough memory for {name}; choose a smaller model or bfloat16.") from problem
        text = " ".join(str(problem).split())[:200]
        advice = "a file is missing or corrupt" if is_local else f"check the id and the network, or use {PACKAGED}"
        raise RoseError(f"{name} cannot be loaded as a diffusion pipeline; {advice} ({text}).") from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or advice from diffusers."""
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
