"""GGUF files judged by llama.cpp: python -m tests.benchmarks.shipping --output FILE.csv [MODEL ...].

Each model (a folder, packaged name or .gguf file) is exported as f16, q8_0, q4_0. llama-cpp-python, in an environment
of its own (`--python PATH`, built with `pip install llama-cpp-python`), loads the file, generates, and computes the
logits of a text; they are compared with those of `rose.load_model` on the same file, in float32. llama.cpp rounds the
activations that enter q8_0 and q4_0 layers to eight bits, which ours does not; `top1` is how often both expect the same
token first. Tokens per second are llama.cpp's, on `--threads`.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rose
from rose.model.ship.blocks import TYPES
from rose.model.ship.export import export_gguf
from tests.benchmarks.common import Rows, arguments

CLIENT = """
import json, sys, time
import numpy as np
from llama_cpp import Llama
path, tokens, out, threads, text = sys.argv[1:]
tokens = np.load(tokens).tolist()
threads = {"n_threads": int(threads), "n_threads_batch": int(threads)}
model = Llama(path, n_ctx=512, logits_all=True, verbose=False, **threads)
model.eval(tokens)
np.save(out, np.array(model.scores[: len(tokens)], np.float32))
found = model.tokenize(text.encode(), add_bos=False)
model.reset()
begin = time.perf_counter()
said = model(text, max_tokens=48, temperature=0.0)
seconds = time.perf_counter() - begin
count = said["usage"]["completion_tokens"]
print(json.dumps({"tokens": found, "said": said["choices"][0]["text"], "rate": count / seconds}))
"""
TEXT = "The old man had been to the harbour every day of his life, and on the last one he"


def compared(path: Path, python: str, threads: int, text: str) -> dict[str, Any]:
    """What llama.cpp and transformers make of one file."""
    model, tokenizer = rose.load_model(str(path))
    tokens = rose.load_tokens(text, tokenizer, samples=1, length=256, seed=None, split="test")
    with torch.no_grad():
        ours = model(input_ids=tokens).logits[0].float()
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "tokens.npy", Path(folder) / "logits.npy"
        np.save(given, tokens[0].numpy())
        command = [python, "-c", CLIENT, str(path), str(given), str(out), str(threads), TEXT]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        theirs = torch.from_numpy(np.load(out))[:, : ours.shape[1]]
    targets = tokens[0, 1:]
    losses = [float(torch.nn.functional.cross_entropy(one[:-1], targets).exp()) for one in (ours, theirs)]
    return {
        "difference": float((ours - theirs).abs().max()),
        "mean_difference": float((ours - theirs).abs().mean()),
        "deviation": float(ours.std()),
        "top1": float((ours.argmax(1) == theirs.argmax(1)).float().mean()),
        "perplexity_ours": losses[0],
        "perplexity_theirs": losses[1],
        "same_tokens": said["tokens"] == tokenizer(TEXT, add_special_tokens=False).input_ids,
        "tokens_per_second": said["rate"],
        "said": said["said"],
    }


def main() -> None:
    options = arguments(__doc__, "models", output=Path, python=str, threads=1, text="wikitext2")
    rows = Rows(options.output, ("model", "type"))
    for name in options.models:
        for kind in TYPES:
            if (Path(name).name, kind) in rows:
                continue
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.gguf"
                made = export_gguf(name, path, kind)
                facts = {"bytes": made.size, "zeros": made.zeros, "exact": len(made.exact), "error": made.error}
                found = compared(path, options.python, options.threads, options.text)
                rows.add({"model": Path(name).name, "type": kind} | facts | found)


if __name__ == "__main__":
    main()
