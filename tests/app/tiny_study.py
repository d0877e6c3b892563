"""A study of a tiny random LLaMA, measured in memory: what pages need to show something within a second."""

import json
import threading
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Block
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import rose
from app import session, shared
from app.jobs import Run
from app.runs import copies
from app.study.setup import Setup
from app.study.study import Calibration, LoadedModel, Study
from rose.model.settings import TuneSettings

MAIN = str(Path(session.__file__).parent / "main.py")
START = "views/explore.py"
COLUMNAR = "model.layers.1.self_attn.o_proj"  # its last block of inputs is six times as strong as the others
WIDTH, BLOCK = 64, 16
AnyRun = TypeVar("AnyRun", bound=Run | Study)


def tiny_model() -> LlamaForCausalLM:
    """Hidden size 64, three decoder blocks, four heads of 16 channels, so that heads and blocks coincide."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 128, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(**sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[-BLOCK:] *= 6
    return model


def measured_study(
    *, held_out: int = 2, samples: int = 8, model: PreTrainedModel | None = None, status: str = "done", **chosen: str
) -> Study:
    """The study, finished, and placed where the app looks for the one of its set-up."""
    setup = Setup(model="tiny", samples=samples, length=32, held_out=held_out, block_size=BLOCK, **chosen)
    model = model or tiny_model()
    vocabulary = model.config.vocab_size
    tokens = torch.randint(3, vocabulary, (samples + held_out, 32), generator=torch.Generator().manual_seed(1))
    calibration = Calibration()
    calibration.tokens, calibration.held_out = tokens[:samples], tokens[samples:] if held_out else None
    asked = {"layers": setup.layers, "held_out": calibration.held_out}
    calibration.blocks = list(rose.visit_blocks(model, calibration.tokens, **asked))
    calibration.complete = True
    loaded = LoadedModel(model, None, threading.Lock())  # type: ignore[arg-type]
    study = finish(Study(setup, lambda: loaded, calibration), status)
    return place(study)


def place(study: Study) -> Study:
    """Puts a study where the app looks for it."""
    return shared.registry.put(Study, study.setup, study)


def latest(kind: type[AnyRun]) -> AnyRun:
    """The run of this type that was begun last."""
    return list(shared.registry.all(kind).values())[-1]


def run_in(app: AppTest, slot: str) -> Any:
    """The latest run in a slot of the page's session."""
    return shared.registry.get(Run, (app.session_state["viewer"], slot))


def numbers_text(folder: Path) -> Path:
    """A text to calibrate on."""
    path = folder / "text.txt"
    path.write_text(" ".join(f"{number} and its square {number**2}." for number in range(150)))
    return path


def open_page(page: str, study: Study | None = None, layer: str = COLUMNAR, **query: str) -> AppTest:
    """The app on this page, with the study's set-up and this layer in the URL."""
    app = AppTest.from_file(MAIN, default_timeout=240)
    linked = {} if study is None else study.setup.to_texts() | {"layer": layer}
    for key, value in (linked | query).items():
        app.query_params[key] = value
    if page != START:  # the default page, which Streamlit does not know by the name of its file
        app.switch_page(page)
    app.run()
    return app


def open_on(setup: Setup, page: str, **query: str) -> AppTest:
    """The app on this page, with this set-up in the URL."""
    return open_page(page, **(setup.to_texts() | query))


def ended(run: AnyRun, status: str = "done") -> AnyRun:
    """Waits for a run, as a page would that shows it."""
    for _ in range(240):
        run.job.watch("test")
        run.job.wait(1)
        if run.job.status != "running":
            break
    assert run.job.status == status, run.job.message
    return run


def tune_one_epoch(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    """Tuning takes a number of steps that no clock decides, towards next tokens, which then get better for certain."""
    make = partial(TuneSettings, epochs=1, loss="ce", rate=rate)
    monkeypatch.setattr(copies, "TuneSettings", lambda minutes, seed: make(seed=seed))


def finish(run: AnyRun, status: str = "done") -> AnyRun:
    """A study, or any other work in the background, from its start to its end."""
    run.job.watch("test")
    run.job.start()
    return ended(run, status)


def texts(app: AppTest | Block) -> str:
    """All that can be read on the page except inside figures."""
    kinds = (app.title, app.header, app.markdown, app.caption, app.info, app.warning, app.error, app.latex)
    return "\n".join(str(element.value) for kind in kinds for element in kind).replace("\u202f", " ")


def titles(app: AppTest) -> list[str]:
    """What stands above the figures on the page, without line breaks."""
    metadata = [json.loads(figure)["layout"]["meta"] for figure in figures(app)]
    return [f"{meta['finding']} {meta['what']}".replace("\u202f", " ") for meta in metadata]


def figures(app: AppTest) -> list[str]:
    """The figures on the page, as the JSON that is sent to the browser."""
    return [element.proto.spec or element.proto.figure.spec for element in app.get("plotly_chart")]
