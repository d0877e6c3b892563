"""Many sessions on one server, in any order of events: a state machine over the real registry, jobs and studies.

Models are tiny, and work stops at a gate until a rule lets it end. The clock is the machine's own.
"""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from transformers import LlamaConfig, LlamaForCausalLM

import rose
from app import jobs, session, shared
from app.components import needs
from app.jobs import Run
from app.lab import your_order
from app.lab.sweeps import Bench
from app.registry import Registry, held
from app.runs.pruning import PruneRequest, PruningRun
from app.study import cache
from app.study.setup import Setup
from app.study.study import InputsRun, LoadedModel, Study

LAYER = "model.layers.0.self_attn.o_proj"
SETUPS = [
    Setup(model=model, samples=2, length=8, held_out=1, seed=seed, block_size=8, layers=(LAYER,))
    for model, seed in (("a", 0), ("a", 1), ("b", 0), ("c", 0))
]
MODELS = 2.5  # that fit into the budget
SOON = 60.0  # seconds, an upper bound
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, pad_token_id=0,
)  # fmt: skip
PROGRESS = rose.Progress("calibrate", 0, 1, None, None, 0, 1, 0.0, 0.0, None)
visit_blocks = rose.visit_blocks
SIZE = sum(weight.nbytes for weight in LlamaForCausalLM(CONFIG).parameters())


def bench_of(study: Study) -> Bench:
    return Bench(study, LAYER, study.setup.block_columns, 0.5)


class State(dict):
    """As `st.session_state`: keys are attributes too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # type: ignore[assignment]


class Gate:
    """Where all work waits."""

    def __init__(self) -> None:
        self.is_open = False
        self.rounds: dict[threading.Thread, int] = {}  # that a thread has waited

    def wait(self, check: Callable[[], object]) -> None:
        here = threading.current_thread()
        while not self.is_open:
            check()
            self.rounds[here] = self.rounds.get(here, 0) + 1
            time.sleep(0.0005)
        self.rounds.pop(here, None)
        check()


class Pruning(PruningRun):
    """Writes a copy, which is a file."""

    gate: Gate

    def _run(self, job: jobs.Job) -> None:
        self._load()
        self.gate.wait(job.check)
        place = self._temporary() / "copy"
        place.mkdir()
        self.checkpoints = {"copy": place}


class Tuning(Run):
    """Writes beside the copy that it tunes."""

    gate: Gate

    def __init__(self, run: Pruning, _name: str, _minutes: float, load: Callable[[], LoadedModel]) -> None:
        super().__init__()
        self.run, self._load = run, load

    def _run(self, job: jobs.Job) -> None:
        self._load()
        self.gate.wait(job.check)
        (self.run.checkpoints["copy"] / "tuned").touch()


class Tab:
    """A session, what it shows, and the orders that its person has made."""

    def __init__(self, browser: str, number: int) -> None:
        self.viewer, self.is_hidden, self.orders = f"{browser}/{number}", False, dict[Setup, tuple[int, ...]]()
        state = State(viewer=self.viewer, setup=SETUPS[0], draft=SETUPS[0], running=[], link_problem="")
        quiet = dict.fromkeys(("toast", "rerun"), lambda *_, **__: None)
        self.st = SimpleNamespace(session_state=state, query_params={}, **quiet)

    @property
    def setup(self) -> Setup:
        return self.st.session_state.setup


tabs, chosen, ends = st.integers(0, 2), st.sampled_from(SETUPS), st.booleans()  # whether work is done at once


class Sessions(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        jobs.stop_everything()  # a thread of an earlier test would put its model into this registry
        self.now, self.gate, self.tabs, self.numbers = 1000.0, Gate(), list[Tab](), 0
        self.owners: dict[Run, set[str]] = {}  # browsers that asked for work which goes on
        self.models: weakref.WeakSet[LlamaForCausalLM] = weakref.WeakSet()
        self.studies: weakref.WeakSet[Study] = weakref.WeakSet()
        self.disk: dict[Setup, cache.Kept] = {}
        self.registry = Registry(MODELS * SIZE)
        make, tell = Study.__init__, self.models.add

        def load(*_name: object, **_options: object) -> tuple[Any, Any]:
            model = LlamaForCausalLM(CONFIG).eval()
            tell(model)
            return model, None

        def init(study: Study, *arguments: Any, **options: Any) -> None:
            make(study, *arguments, **options)
            self.studies.add(study)

        def visit(*arguments: Any, progress: Callable[[rose.Progress], None], **options: Any) -> Any:
            self.gate.wait(lambda: progress(PROGRESS))
            return visit_blocks(*arguments, **options)

        Pruning.gate = Tuning.gate = self.gate
        tokens = torch.randint(1, 64, (3, 8), generator=torch.Generator().manual_seed(0))
        self.patches = [
            mock.patch.object(shared, "registry", self.registry),
            mock.patch.object(shared, "_size", return_value=SIZE),
            mock.patch.object(jobs, "clock", self.clock),
            mock.patch.object(jobs, "POLL", 0.001),
            mock.patch.object(rose, "load_model", load),
            mock.patch.object(rose, "visit_blocks", visit),
            mock.patch.object(Setup, "draw", return_value=(tokens[:2], tokens[2:])),
            mock.patch.object(Study, "__init__", init),
            mock.patch.object(cache, "files_of", files_of),
            mock.patch.object(cache, "model_identity", return_value=None),
            mock.patch.object(cache, "folder_of", return_value=Path("unused")),
            mock.patch.object(cache, "recall", self.recall),
            mock.patch.object(cache, "keep_study", self.keep_study),
            mock.patch.object(cache, "keep_blocks", return_value=None),
            mock.patch.object(cache, "read_blocks", return_value=None),
            *(mock.patch.object(module, "st") for module in (session, needs, your_order)),  # `act` puts a session there
            mock.patch.object(session, "PruningRun", Pruning),
            mock.patch.object(shared, "PruningRun", Pruning),
            mock.patch.object(session, "Tuning", Tuning),
        ]
        for patch in self.patches:
            patch.start()
        self.open("ann")
        self.open("bob")
        gc.freeze()  # what imports have made stays, and looking through it takes a tenth of a second

    def teardown(self) -> None:
        if not hasattr(self, "patches"):
            return
        for job in list(jobs._jobs):
            job.stop()
        self.gate.is_open = True
        for job in list(jobs._jobs):
            job.wait(SOON)
        for patch in self.patches:
            patch.stop()

    def clock(self) -> float:
        return self.now

    def recall(self, setup: Setup, _files: cache.Files) -> cache.Kept | None:
        return self.disk.get(setup)

    def keep_study(self, _folder: Path, setup: Setup, kept: cache.Kept) -> None:
        self.disk[setup] = kept

    # What people do.

    def act(self, at: int) -> Tab:
        """The tab of this number, whose session is current from now on."""
        tab = self.tabs[at % len(self.tabs)]
        for module in (session, needs, your_order):
            module.st = tab.st  # type: ignore[attr-defined]
        return tab

    @rule(browser=st.sampled_from(["ann", "bob", "eve"]))
    @precondition(lambda self: len(self.tabs) < 3)
    def open(self, browser: str) -> None:
        self.numbers += 1
        self.tabs.append(Tab(browser, self.numbers))

    @rule(at=tabs)
    @precondition(lambda self: len(self.tabs) > 1)
    def die(self, at: int) -> None:
        del self.tabs[at % len(self.tabs)]

    @rule(at=tabs)
    def hide_or_show(self, at: int) -> None:
        tab = self.tabs[at % len(self.tabs)]
        tab.is_hidden = not tab.is_hidden

    @rule(at=tabs, setup=chosen)
    def look(self, at: int, setup: Setup) -> None:
        """The set-up of a link, or a recent one, whose study may come from disk."""
        self.act(at)
        session.choose_setup(setup)
        session.study()

    @rule(at=tabs, setup=chosen, ends=ends)
    def measure(self, at: int, setup: Setup, ends: bool) -> None:
        tab = self.act(at)
        with self.ending(tab):
            session.measure(setup)
        self.started(session.study(), tab, ends)

    @rule(at=tabs, ends=ends)
    def collect(self, at: int, ends: bool) -> None:
        """The page of a layer, which needs inputs that are not in memory."""
        tab = self.act(at)
        study = session.study()
        if study is None or study.job.status == "running" or study.has(LAYER) or not study.layer_names:
            return
        run = tab.st.session_state.get("layer_inputs")
        if run is not None and run.job.status == "running":
            return
        run = tab.st.session_state["layer_inputs"] = InputsRun(study, LAYER)
        session.follow(run, "inputs")
        run.job.start()
        self.started(run, tab, ends)

    @rule(at=tabs)
    def cancel(self, at: int) -> None:
        tab = self.act(at)
        study = session.study()
        if study is not None and study.job.status == "running" and study.job.may_stop(tab.viewer):
            with self.ending(tab):
                study.cancel()

    @rule(at=tabs, ends=ends)
    def prune(self, at: int, ends: bool) -> None:
        tab = self.act(at)
        with self.ending(tab):
            session.start_pruning(PruneRequest(("rose",), ("0.5",)))
        self.started(session.pruning("own_pruning"), tab, ends)

    @rule(at=tabs, which=st.integers(0, 3))
    def tune(self, at: int, which: int) -> None:
        """A copy that any session has made."""
        tab = self.act(at)
        runs = [run for run in self.registry.all(Pruning).values() if run.job.status == "done" and not run.is_tuning]
        if runs:
            run = runs[which % len(runs)]
            session.start_tuning(run, "copy", 1.0)
            self.started(run.tuning, tab, ends=False)

    @rule(at=tabs)
    def order(self, at: int) -> None:
        """Drags a column to the front."""
        tab = self.act(at)
        study = session.study()
        if study is not None and study.has(LAYER):
            own = your_order.own_state(bench_of(study))
            columns = (own.columns[-1], *own.columns[:-1])
            your_order.keep(own.to(columns=columns))
            tab.orders[tab.setup] = columns

    # What happens.

    @rule()
    def work_ends(self) -> None:
        self.gate.is_open = True
        until = time.monotonic() + SOON
        while any(job.status == "running" for job in self.going()):
            assert time.monotonic() < until, [job.message for job in self.going()]
            time.sleep(0.0005)
        self.gate.is_open = False
        self.owners.clear()

    @rule(seconds=st.sampled_from([20.0, 60.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        """Open pages ask every second, hidden ones once a minute."""
        for _ in range(int(seconds // 5)):
            self.now += 5.0
            for tab in self.tabs:
                if not tab.is_hidden or self.now % 60.0 == 0.0:
                    self.watched_by(tab)
        self.settle()

    @rule()
    @precondition(lambda self: not self.going())
    def memory_is_given_back(self) -> None:
        """As happens when nobody has asked for a page for ten minutes."""
        shared.let_go()

    # What must hold.

    @invariant()
    def models_fit(self) -> None:
        self.settle()
        gc.collect()
        assert len(self.models) <= MODELS
        assert self.registry.total() <= self.registry.budget + 200_000  # tables and inputs of work that goes on

    @invariant()
    def what_was_let_go_is_freed(self) -> None:
        kept = list(self.registry.all(Study).values())
        for study in list(self.studies):
            if not any(study is other for other in kept) and not study.is_in_use:
                assert held([study._layers, study._memory]) == 0
                assert study.loaded is None

    @invariant()
    def watched_work_goes_on(self) -> None:
        """Work ends by itself, by who has asked for it, or if no open tab shows it."""
        for run, owners in list(self.owners.items()):
            assert run.job.status not in ("failed",), run.job.message
            if run.job.is_over:
                assert not self.watchers(run), f"{type(run).__name__} of {owners} was ended while it was watched"
                del self.owners[run]

    @invariant()
    def orders_survive(self) -> None:
        for at, tab in enumerate(self.tabs):
            self.act(at)
            study = session.study()
            if tab.setup in tab.orders and study is not None and study.has(LAYER):
                drawn = your_order.own_state(bench_of(study))
                assert drawn.columns == tab.orders[tab.setup]

    @invariant()
    def files_of_copies_are_there(self) -> None:
        for run in self.registry.all(Pruning).values():
            assert all(place.exists() for place in run.checkpoints.values())

    def going(self) -> list[jobs.Job]:
        return [job for job in list(jobs._jobs) if job.status == "running"]

    def started(self, run: Run | None, tab: Tab, ends: bool) -> None:
        if run is not None and run.job.status == "running":
            self.owners.setdefault(run, set()).add(browser_of(tab))
        self.settle()
        if ends:
            self.work_ends()

    def watchers(self, run: Run) -> list[Tab]:
        """Open tabs that show a run."""
        return [tab for tab in self.tabs if run in shown_in(tab)]

    def ending(self, tab: Tab) -> Any:
        """A person may end what nobody else watches, or what nobody else who watches has asked for."""
        return Ending(self, tab)

    def watched_by(self, tab: Tab) -> None:
        for run in shown_in(tab):
            run.job.watch(tab.viewer)

    def settle(self) -> None:
        """Until all work waits, at the gate or for memory, or has ended."""
        before, until = dict(self.gate.rounds), time.monotonic() + SOON

        def rests(job: jobs.Job) -> bool:
            rounds = self.gate.rounds.get(job._thread, 0)
            return rounds > before.get(job._thread, 0) + 1 or job.message.startswith("Waiting")

        while not all(rests(job) and not job.is_cancelled for job in self.going()):
            assert time.monotonic() < until, [job.message for job in self.going()]
            time.sleep(0.0005)


class Ending:
    """What a person ends meanwhile is theirs to end."""

    def __init__(self, machine: Sessions, tab: Tab) -> None:
        self.machine, self.tab = machine, tab

    def __enter__(self) -> None:
        browser = browser_of(self.tab)
        self.theirs = []
        for run, owners in self.machine.owners.items():
            others = {browser_of(other) for other in self.machine.watchers(run)} - {browser}
            if not (others & owners if browser in owners else others):
                self.theirs.append(run)

    def __exit__(self, *_problem: object) -> None:
        self.machine.settle()
        for run in self.theirs:
            if run.job.is_over:
                self.machine.owners.pop(run, None)


def files_of(setup: Setup) -> cache.Files:
    return cache.Files(setup.model, "text")


def browser_of(tab: Tab) -> str:
    return tab.viewer.partition("/")[0]


def shown_in(tab: Tab) -> list[Run]:
    """Work of a tab: the study of its set-up, and what it follows."""
    study = shared.registry.all(Study).get(tab.setup)
    return [run for run in (study, *(run for run, _ in tab.st.session_state["running"])) if run is not None]


def test_sessions_in_any_order():
    run_state_machine_as_test(
        Sessions, settings=settings(max_examples=20, stateful_step_count=30, deadline=None, derandomize=True)
    )
