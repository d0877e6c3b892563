"""Which model a result belongs to, told by the input embeddings: pruning and slimming leave them as they are.

Where a pruned copy is another model, as for rows of a measurement, decoder blocks tell it.
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
    """Norms of eight parts of the input embeddings, for reports; a model's own, in whatever dtype it is loaded."""
    body: Any = model
    network = Network(model)
    network.check_weights()
    with network.residence.embedding():
        parts = body.get_input_embeddings().weight.detach().chunk(PARTS)
        return [float(f"{float(part.float().norm()):.6g}") for part in parts]


def language_part(model: nn.Module) -> dict[str, bool]:
    """For a report: whether a model is only the language model of what its files hold; nothing of others."""
    return {PART: True} if hasattr(model, PART) else {}


def weight_norms(model: nn.Module) -> list[float]:
    """Norms of the decoder blocks' weights, of up to eight runs of blocks: of a pruned, slimmed or tuned copy they are
    others. Every weight is read once, of a streamed model from its files."""
    network = Network(model)
    squares = []
    for index in range(len(network.blocks)):
        with network.residence.visit(index, torch.device("cpu")) as block:
            norms = [torch.linalg.vector_norm(one.detach(), dtype=torch.float32) for one in block.parameters()]
            squares.append(torch.stack(norms).double().square().sum())
    return [float(f"{float(part.sum().sqrt()):.6g}") for part in torch.stack(squares).chunk(PARTS)]


def read_norms(path: Path, name: str = NORMS) -> list[float]:
    """`embedding_norms`, or others, of the model that a JSON file tells of; none where it does not say."""
    try:
        return [float(norm) for norm in json.loads(path.read_text())[name]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def check_same_model(model: nn.Module, norms: Sequence[float], what: str) -> None:
    """Raises RoseError unless `embedding_norms` of the model are these; `what`: a sentence without its end."""
    if not is_same_model(embedding_norms(model), norms):
        raise RoseError(f"{what}: their input embeddings differ; give the model that it was made from.")
