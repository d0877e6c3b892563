"""GGUF files judged by llama.cpp: python -m tests.benchmarks.shipping --output FILE.csv [MODEL ...].

Each model (a folder, packaged name or .gguf file) is exported as f16, q8_0, q4_0. llama.cpp (tests/llama_cpp.py) loads
the file, generates, and tells the loss of every token that could follow at 63 places of a text; they are compared with
those of `rose.load_model` on the same file, in float32. llama.cpp rounds the activations that enter q8_0 and q4_0
layers to eight bits, which ours does not; `top1` is how often both expect the same token first. Tokens per second are
llama.cpp's, on `--threads`.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

import rose
from rose.model.ship.export import TYPES, export_gguf
from tests.benchmarks.common import Rows, arguments
from tests.llama_cpp import ask

LENGTH, EVERY, GENERATED = 256, 4, 128  # tokens
TEXT = "The old man had been to the harbour every day of his life, and on the last one he"


def compared(path: Path, threads: int, text: str) -> dict[str, Any]:
    """What llama.cpp and transformers make of one file, at every fourth place of the text's first window."""
    model, tokenizer = rose.load_model(str(path))
    tokens = rose.load_tokens(text, tokenizer, samples=1, length=LENGTH, seed=None, split="test")
    places = torch.arange(EVERY - 1, LENGTH - 1, EVERY)
    with torch.no_grad():
        ours = -model(input_ids=tokens).logits[0, places].float().log_softmax(1)
    prompts = [TEXT, *(tokens[0, : place + 1].tolist() for place in places)]
    (said,) = ask([{"path": str(path), "prompts": prompts, "generate": GENERATED, "threads": threads}])
    theirs = torch.from_numpy(said["losses"])[1:, : ours.shape[1]]
    following = tokens[0, places + 1, None]
    gap = (ours - theirs).abs()
    return {
        "difference": float(gap.max()),
        "mean_difference": float(gap.mean()),
        "deviation": float(ours.std(1).mean()),
        "top1": float((ours.argmin(1) == theirs.argmin(1)).float().mean()),
        "perplexity_ours": float(ours.gather(1, following).mean().exp()),
        "perplexity_theirs": float(theirs.gather(1, following).mean().exp()),
        "same_tokens": said["counts"][0] == len(tokenizer(TEXT, add_special_tokens=False).input_ids),
        "tokens_per_second": said["rate"],
        "said": said["said"],
    }


def main() -> None:
    options = arguments(__doc__, "models", output=Path, threads=1, text="packaged")
    rows = Rows(options.output, ("model", "type"))
    for name in options.models:
        for kind in TYPES:
            if (Path(name).name, kind) in rows:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.gguf"
                made = export_gguf(name, path, kind)
                facts = {"bytes": made.size, "zeros": made.zeros, "exact": len(made.exact), "error": made.error}
                found = compared(path, options.threads, options.text)
                rows.add({"model": Path(name).name, "type": kind} | facts | found)


if __name__ == "__main__":
    main()
