"""Attention sinks that pruning has lost: python -m tests.benchmarks.sinks --text test.txt --output sinks.csv FOLDER ...

Language models park attention that has nowhere to go on one token, usually the first, whose hidden state grows to many
times the others' length (massive activations, arXiv 2402.17762). For the dense model and each checkpoint: in how many
windows no token stands out like that, and the mean loss of the others' and of those windows' last tokens, in nats;
without and with a beginning-of-sequence token in front.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rose
from tests.benchmarks.common import MODEL, Rows, arguments, judged

OUTSTANDING = 8.0  # times the median length; the dense model's sink has 40 to 52 times
DEPTH = 5 / 6  # of the decoder blocks, where hidden states are measured: sinks arise early and go in the last blocks
BATCH = 24  # windows at a time
SKIPPED = 3  # first tokens of a window that are not judged, as they know least


def main() -> None:
    options = arguments(__doc__, "checkpoints", text=str, output=Path("sinks.csv"), model=MODEL, windows=120, length=64)
    rows = Rows(options.output, ["checkpoint", "bos"])
    for name in (options.model, *options.checkpoints):
        missing = [bos for bos in (False, True) if (Path(name).name, bos) not in rows]
        if not missing:
            continue
        model, tokenizer = rose.load_model(name, tokenizer=options.model)
        windows = judged(options.text, tokenizer, options.windows, options.length)
        for bos in missing:
            front = torch.full((len(windows), 1), tokenizer.bos_token_id, dtype=windows.dtype)
            found = measure(model, torch.cat([front, windows], 1) if bos else windows, options.length - SKIPPED)
            rows.add(checkpoint=Path(name).name, bos=bos, windows=len(windows), **found)


@torch.no_grad()
def measure(model: nn.Module, tokens: Tensor, last: int) -> dict[str, Any]:
    """Of tokens, (windows, length): windows without a sink, and the mean loss of the `last` tokens with and without."""
    losses, standing = [], []
    for batch in tokens.split(BATCH):
        done = model(batch, output_hidden_states=True)
        right = done.logits[:, :-1].log_softmax(-1).gather(2, batch[:, 1:, None].long())[..., 0]
        losses.append(-right[:, -last:].mean(1))
        lengths = done.hidden_states[round(DEPTH * (len(done.hidden_states) - 1))].norm(dim=2)
        standing.append(lengths.amax(1) / lengths.median(1).values)
    loss, lost = torch.cat(losses), torch.cat(standing) < OUTSTANDING
    parts = {"loss": loss, "loss_with_sink": loss[~lost], "loss_without_sink": loss[lost]}
    means = {name: round(part.mean().item(), 4) if len(part) else "" for name, part in parts.items()}
    return {"without_sink": int(lost.sum()), **means}


if __name__ == "__main__":
    main()
