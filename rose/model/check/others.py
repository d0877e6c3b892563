"""What a checkpoint holds besides its layers: norms, biases, embeddings, the output head, and what is one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn

from rose.layer.change import UNLIKE, rounded_to
from rose.model.check import verdicts
from rose.model.check.inputs import Pair
from rose.model.check.verdicts import Verdict
from rose.model.network.network import Network
from rose.wording import percent, whole

TELLING = 16  # numbers from which on a direction tells something


@dataclass(frozen=True)
class OtherTensor:
    """A tensor outside the layers that is not as it was.

    Attributes:
        name: of the parameter.
        kind: "norm", "bias", "embedding", "output head" or "other".
        change: ‖now − before‖/‖before‖; NaN where that says nothing.
        verdict: on it.
    """

    name: str
    kind: str
    change: float
    verdict: Verdict

    def row(self) -> dict[str, object]:
        """For a table."""
        one = self.verdict
        known = {"name": self.name, "kind": self.kind, "change": self.change}
        return known | {"verdict": one.verdict, "reason": one.reason, "is_wrong": one.is_wrong}


def others_in_block(prefix: str, blocks: tuple[nn.Module, nn.Module], pairs: Sequence[Pair]) -> list[OtherTensor]:
    """Those of one decoder block, present in the dense model and in the other; `prefix`: its dotted name."""
    layers = {id(layer.parameter) for pair in pairs for layer in pair}
    before, after = (
        {
            f"{prefix}.{name}": value
            for name, value in block.named_parameters(remove_duplicate=False)
            if id(value) not in layers
        }
        for block in blocks
    )
    kinds = {f"{prefix}.{name}": kind for block in blocks for name, kind in _kinds(block).items()}
    return _compare_all(before, after, kinds)


def others_outside(dense: Network, pruned: Network) -> list[OtherTensor]:
    """Those outside the decoder blocks, and ties that are torn."""
    head = dense.model.get_output_embeddings()  # type: ignore[operator]
    heads = {f"{name}.weight" for name, module in dense.model.named_modules() if module is head}
    kinds = {name: "output head" if name in heads else kind for name, kind in _kinds(dense.model).items()}
    ties = _ties(dict(dense.model.named_parameters(remove_duplicate=False)))
    with _outside(dense) as before, _outside(pruned) as after:
        torn = {
            name: twin
            for name, twin in ties.items()
            if name in after and twin in after and not torch.equal(after[name], after[twin])
        }
        was, now = ({name: value for name, value in each.items() if name not in ties} for each in (before, after))
        found = _compare_all(was, now, kinds)
    said = "It is one tensor with {} in the dense model, and another one here.".format
    return found + [
        OtherTensor(name, kinds[name], nan, Verdict(verdicts.TIE_TORN, said(twin), True)) for name, twin in torn.items()
    ]


@contextmanager
def _outside(network: Network) -> Iterator[Mapping[str, Tensor]]:
    """Parameters outside the decoder blocks by name; those of a streamed model are read."""
    inside = {id(parameter) for parameter in network.blocks.parameters()}
    with network.embedding():
        known = dict(network.model.named_parameters(remove_duplicate=False))
        found: dict[str, Tensor] = {
            name: value for name, value in known.items() if id(value) not in inside and not value.is_meta
        }
        stored = getattr(network.residence, "files", {})
        for name, value in known.items():
            if value.is_meta and id(value) not in inside and name in stored:
                found[name] = network.residence.read(name)  # type: ignore[attr-defined]
        yield found


def _ties(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Later names of tensors that have an earlier one, with that."""
    first: dict[int, str] = {}
    return {name: first[id(value)] for name, value in parameters.items() if first.setdefault(id(value), name) != name}


def _kinds(module: nn.Module) -> dict[str, str]:
    """By name of parameter."""
    found = {}
    for owner_name, owner in module.named_modules():
        for leaf, value in owner.named_parameters(recurse=False, remove_duplicate=False):
            kind = "norm" if value.ndim == 1 else "other"
            kind = "embedding" if isinstance(owner, nn.Embedding) else "bias" if leaf.endswith("bias") else kind
            found[f"{owner_name}.{leaf}" if owner_name else leaf] = kind
    return found


def _compare_all(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], kinds: Mapping[str, str]
) -> list[OtherTensor]:
    names = dict.fromkeys((*before, *after))
    found = [_compare(name, kinds.get(name, "other"), before.get(name), after.get(name)) for name in names]
    return [one for one in found if one is not None]


def _compare(name: str, kind: str, was: Tensor | None, now: Tensor | None) -> OtherTensor | None:
    """None where nothing is to be said of it."""
    gap, verdict = nan, None
    if was is None:
        verdict = Verdict(verdicts.AS_EXPECTED, "The dense model has no such tensor.", False)
    elif now is None:
        if was.any():
            verdict = Verdict(verdicts.OTHER_MODEL, "The dense model has it, and this one does not.", True)
    else:
        gap, verdict = _judge(kind, was, now.to(was.device))
    return None if verdict is None else OtherTensor(name, kind, gap, verdict)


def _judge(kind: str, was: Tensor, now: Tensor) -> tuple[float, Verdict | None]:
    has_rows = kind in ("embedding", "output head")
    if has_rows and len(now) > len(was) and was.shape[1:] == now.shape[1:]:
        gap, verdict = _judge(kind, was, now[: len(was)])
        rest = f" {verdict.reason}" if verdict else ""
        said = f"It has {whole(len(now) - len(was))} rows more than in the dense model.{rest}"
        name, wrong = (verdict.verdict, verdict.is_wrong) if verdict else (verdicts.AS_EXPECTED, False)
        return gap, Verdict(name, said, wrong)
    if was.shape != now.shape:
        said = f"It is of shape {tuple(now.shape)} here and of {tuple(was.shape)} in the dense model."
        return nan, Verdict(verdicts.OTHER_MODEL, said, True)
    broken = now.numel() - int(torch.isfinite(now).sum())
    if broken:
        said = f"{whole(broken)} of {whole(now.numel())} numbers are NaN or infinite."
        return nan, Verdict(verdicts.NUMBERS_BROKEN, said, True)
    if torch.equal(was, now) or rounded_to(was, now):
        return 0.0, None
    if not now.any():
        return 1.0, Verdict(verdicts.NUMBERS_BROKEN, f"All {whole(now.numel())} numbers are zero.", True)
    before, after = was.float().flatten(), now.float().flatten()
    length = before.norm().item()
    gap = (after - before).norm().item() / length if length else nan
    alike = torch.cosine_similarity(before, after, dim=0).item()
    if kind != "bias" and now.numel() >= TELLING and length and alike < UNLIKE:
        said = f"It has nothing to do with the dense one (cosine {alike:.2f})."
        return gap, Verdict(verdicts.OTHER_MODEL, said, True)
    moved = f"by {percent(gap)} of its norm" if length else "from zero"
    return gap, Verdict(verdicts.AS_EXPECTED, f"It moved {moved}.", False)
