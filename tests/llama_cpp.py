"""llama.cpp, as others publish it (package xllamacpp), on GGUF files: `ask`, or python tests/llama_cpp.py < TASKS.json

The program reads a list of tasks: `path` of a file; `prompts`, each a text or tokens; `out`, where the losses of the
next token after each prompt go, (prompts, vocabulary) in nats, an .npy file; `generate`, a number of tokens; `threads`.
It writes a line of JSON for each: `counts`, tokens of each prompt; `said` after the first one, and `rate`, its tokens
per second. It is a process of its own, as what is wrong in a file ends the process that reads it.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = 512
LETTERS = "root ::= [ -~]+"
ALL = 10**6  # tokens whose probabilities are asked for: more than any vocabulary has


def ask(tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers of a process to tasks without `out`, each with its `losses`."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [task | {"out": f"{folder}/{number}.npy"} for number, task in enumerate(tasks)]
        command = [sys.executable, str(Path(__file__))]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        return [answer | {"losses": np.load(task["out"])} for answer, task in zip(answers, asked, strict=True)]


def answer(task: dict[str, Any]) -> dict[str, Any]:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = task["path"], CONTEXT, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = task["threads"]
    server = xllamacpp.Server(parameters)
    greedy: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    # A part of a letter would not be told. Probabilities are those before any of this chooses a token.
    whole = greedy | {"grammar": LETTERS, "n_predict": 1, "n_probs": ALL}
    losses, counts = [], []
    for prompt in task["prompts"]:
        completion = server.handle_completions(whole | {"prompt": prompt})
        entries = completion["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        every = {entry["id"]: -entry["logprob"] for entry in entries}
        losses.append([every[number] for number in range(len(every))])
        counts.append(completion["usage"]["prompt_tokens"])
    np.save(task["out"], np.array(losses, np.float32))
    generated = server.handle_completions(greedy | {"prompt": task["prompts"][0], "n_predict": task["generate"]})
    rate = generated["timings"]["predicted_per_second"]
    return {"counts": counts, "said": generated["choices"][0]["text"], "rate": round(rate, 1)}


if __name__ == "__main__":
    for one in json.load(sys.stdin):
        print(json.dumps(answer(one)), flush=True)
