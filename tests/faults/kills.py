"""Commands that are killed at random moments and called again until they come to their end.

A process of its own, because it forks: each call is a child that runs the command line and dies by SIGKILL on the n-th
line of code of `rose` that it executes, which makes the moments random and a run of this repeatable.
"""

import gc
import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Sequence, Set
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd
import torch

import rose
from rose import cli
from rose.diffusion.loading import load_diffusion
from rose.tensor_files import digest
from tests.tiny import save_tiny_llama

PACKAGE = Path(rose.__file__).parent
WRITING = re.compile(r"os\.replace|save_file|save_pretrained|mkdtemp|write_atomically")  # marks files that write
ALREADY = "already exists and is not an empty folder"  # how a command refuses a result that is there
CALIBRATION = "--calibration {text} --samples 4 --length 32 --held-out 2"
COMMANDS = {
    "prune": f"prune --model {{model}} {CALIBRATION} --sparsity 0.5 --allocation owl --checkpoint {{out}}/kept "
    "--output {out}/pruned",
    "slim": f"slim --model {{model}} {CALIBRATION} --ratio 0.3 --multiple 4 --prune 0.5 --prune-method sparsegpt "
    "--checkpoint {out}/kept --output {out}/slim",
    "damage": f"damage --model {{model}} {CALIBRATION} --sparsity 0.5 --units blocks --evaluate {{text}} --windows 2 "
    "--output {out}/damage",
    "compare": f"compare --model {{model}} {CALIBRATION} --sparsity 0.5 --methods wanda,sparsegpt --seeds 0 "
    "--evaluate {text} --windows 2 --output {out}/compare",
    "tune": f"tune {{pruned}} --dense {{model}} {CALIBRATION} --batch 1 --checkpoint {{out}}/kept "
    "--output {out}/tuned",
    "diffuse": "diffuse prune --model garments --samples 1 --steps 2 --sparsity 0.5 --layers *attn1* "
    "--output {out}/pipeline",
}
AFTER = {f"{name}_after" for name in ("perplexity", "losses", "perplexity_second")}  # measured once a copy is saved
MOVES = {"seconds", "peak_memory", "command"}  # entries that differ between two equal runs


@dataclass(frozen=True)
class Outcome:
    """What one command came to after its kills."""

    command: str
    kills: int
    ended: int  # runs that came to their end after kills
    same: int  # how many of them left what an undisturbed run leaves
    leftovers: tuple[str, ...]


class Lines:
    """Counts the lines that are executed in each of several sets of files; kills the process on one of the first's."""

    def __init__(self, scopes: Sequence[frozenset[str]], fatal: int | None = None) -> None:
        self.seen, self.fatal = [0] * len(scopes), fatal
        self.tracers = {
            file: self._tracer([number for number, files in enumerate(scopes) if file in files])
            for file in frozenset().union(*scopes)
        }
        sys.settrace(lambda frame, _event, _argument: self.tracers.get(frame.f_code.co_filename))

    def _tracer(self, inside: Sequence[int]) -> Callable[[FrameType, str, Any], Any]:
        """Of the lines of a file that is in these sets."""

        def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
            if event == "line":
                for number in inside:
                    self.seen[number] += 1
                if self.seen[0] == self.fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        return trace


def scopes() -> tuple[frozenset[str], frozenset[str]]:
    """All files of the package, and the few of them that write: half of the kills fall there."""
    every = sorted(PACKAGE.rglob("*.py"))
    writing = [path for path in every if WRITING.search(path.read_text())]
    return frozenset(map(str, every)), frozenset(map(str, writing))


def read_ahead(folder: Path) -> None:
    """Calls one command without a kill: what it imports, each child would import again, which takes seconds.
    Not `tune`: threads of a backward pass do not live on in a child, which would wait for them."""
    torch.set_num_threads(1)
    model, text = _subject(folder)
    words = f"{COMMANDS['prune']} --evaluate {{text}} --windows 2".format(model=model, text=text, out=folder)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        assert cli.main(words.split()) == 0
    gc.freeze()  # or collections in each child would copy what is here


def _subject(folder: Path) -> tuple[Path, Path]:
    """A model and a text in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and the dog dreams of it. " * 30)
    return save_tiny_llama(folder / "model", blocks=2), text


def kill(command: str, folder: Path, kills: int, seed: int) -> Outcome:
    """Calls a command of `COMMANDS` until `kills` of its calls were killed, each result in a folder of its own. Raises
    AssertionError if a call ended in another way than a command may."""
    torch.set_num_threads(1)
    if command == "diffuse":
        load_diffusion()  # as `read_ahead`
    model, text = _subject(folder)
    pruned = _halved(model, folder / "pruned") if command == "tune" else model

    def arguments(out: Path) -> list[str]:
        return [word.format(model=model, pruned=pruned, text=text, out=out) for word in COMMANDS[command].split()]

    status, lines = _call(arguments(folder / "undisturbed"), folder, scopes())
    assert status == 0, f"{command} ended with status {status}"
    draw, killed, ended = random.Random(seed), 0, []
    while killed < kills:
        out = folder / f"run-{len(ended)}"
        while True:
            scope = killed % 2
            # A quarter more than there are: a command that cannot resume would else never come to its end.
            fatal = draw.randrange(1, 1 + lines[scope] * 5 // 4)
            status, _ = _call(arguments(out), folder, scopes()[scope : scope + 1], fatal)
            if status != -signal.SIGKILL:
                break
            killed += 1
        assert status == 0 or ALREADY in (folder / "said").read_text(), f"{command} ended with status {status}"
        ended.append((out, MOVES | AFTER if status else MOVES))
    same = sum(result(out, left_out) == result(folder / "undisturbed", left_out) for out, left_out in ended)
    leftovers = [path for out, _ in ended for path in out.rglob("*") if is_unfinished(path)]
    return Outcome(command, killed, len(ended), same, tuple(str(path.relative_to(folder)) for path in leftovers))


def _halved(model: Path, folder: Path) -> Path:
    """A copy of a model on disk without half of its weights."""
    loaded, tokenizer = rose.load_model(str(model))
    for layer in rose.prunable_layers(loaded):
        layer.write(layer.weight.masked_fill(layer.weight.abs() < layer.weight.abs().median(), 0))
    rose.save_model(loaded, tokenizer, folder)
    return folder


def _call(
    arguments: Sequence[str], folder: Path, scopes: Sequence[frozenset[str]], fatal: int | None = None
) -> tuple[int, list[int]]:
    """One call in a child: its exit status, negative for a signal, and the lines that it executed in each scope."""
    counted = folder / "lines"
    child = os.fork()
    if child == 0:
        with (folder / "said").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            counter = Lines(scopes, fatal)
            status = cli.main(list(arguments))
            sys.settrace(None)
            counted.write_text(json.dumps(counter.seen))
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    _, waited = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(waited)
    return status, json.loads(counted.read_text()) if status == 0 else []


def result(folder: Path, left_out: Set[str]) -> dict[str, str]:
    """What a command has left, by file, without these entries and columns."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith("kept/") or path.suffix in (".parquet", ".lock") or is_unfinished(path):
            continue
        if path.suffix == ".json":
            files[name] = json.dumps(_settled(json.loads(path.read_text()), str(folder), left_out))
        elif path.suffix == ".csv":
            table = pd.read_csv(path)
            files[name] = table[[column for column in table if column not in left_out]].to_csv()
        elif path.name not in (".lock", "lock"):
            files[name] = digest({}, {"content": path.read_bytes().hex()})
    return files


def is_unfinished(path: Path) -> bool:
    """Whether this is something that a killed command was writing."""
    return path.suffix == ".tmp" or "partial" in str(path)


def _settled(value: Any, place: str, left_out: Set[str]) -> Any:
    """JSON without these entries."""
    if isinstance(value, dict):
        return {name: _settled(entry, place, left_out) for name, entry in value.items() if name not in left_out}
    if isinstance(value, list):
        return [_settled(entry, place, left_out) for entry in value]
    return value.replace(place, "") if isinstance(value, str) else value
