"""Which model a result belongs to, by the norms of its input embeddings, which pruning and slimming leave unchanged.

Norms of decoder blocks also distinguish pruned copies.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rose.errors import RoseError
from rose.model.network.network import Network
from rose.verdicts import is_same_model

PARTS = 8
NORMS, WEIGHTS = "embedding_norms", "weight_norms"  # as files call them
PART = "is_language_part"  # of a model, and in a report


def embedding_norms(model: nn.Module) -> list[float]:
    """Norms of eight parts of the input embeddings, for reports."""
    body: Any = model
    network = Network(model)
    network.check_weights()
    with network.residence.embedding():
        parts = body.get_input_embeddings().weight.detach().chunk(PARTS)
        return [float(f"{float(part.float().norm()):.6g}") for part in parts]


def language_part(model: nn.Module) -> dict[str, bool]:
    """A report's entry for a model that is only the language model of its files."""
    return {PART: True} if hasattr(model, PART) else {}


def weight_norms(model: nn.Module) -> list[float]:
    """Norms of the decoder blocks' weights, in up to eight runs of blocks; every weight is read once."""
    network = Network(model)
    squares = []
    for index in range(len(network.blocks)):
        with network.residence.visit(index, torch.device("cpu")) as block:
            norms = [
                torch.linalg.vector_norm(parameter.detach(), dtype=torch.float32) for parameter in block.parameters()
            ]
            squares.append(torch.stack(norms).double().square().sum())
    return [float(f"{float(part.sum().sqrt()):.6g}") for part in torch.stack(squares).chunk(PARTS)]


def read_norms(path: Path, name: str = NORMS) -> list[float]:
    """`embedding_norms`, or other norms, from a JSON report; none where it lacks them."""
    try:
        return [float(norm) for norm in json.loads(path.read_text())[name]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def check_same_model(model: nn.Module, norms: Sequence[float], sentence: str) -> None:
    """Raises RoseError unless the model has these `embedding_norms`; `sentence` is the beginning of the error."""
    if not is_same_model(embedding_norms(model), norms):
        raise RoseError(f"{sentence}: their input embeddings differ; give the model that it was made from.")
