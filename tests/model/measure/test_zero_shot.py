"""Zero-shot accuracy against a plain computation of log-likelihoods, on a task of our own that needs no network."""

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import rose
from rose.model.measure.zero_shot import task_manager, zero_shot
from tests.model.families import stop_when
from tests.refusals import refused
from tests.tasks import write_task
from tests.tiny import BOS, save_tiny_llama

QUESTIONS = 24


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    draw = random.Random(0)
    words = ["one", "two", "three", "four", "five", "six", "seventeen", "twenty-three", "thousand"]

    def ask() -> dict:
        choices = draw.sample(words, 3)
        return {"question": f"{draw.choice(words)} and {draw.choice(words)} is", "choices": choices, "answer": 0}

    return [ask() for _ in range(QUESTIONS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, questions: list[dict]) -> Path:
    return write_task(tmp_path_factory.mktemp("tasks"), questions, metrics=("acc", "acc_norm"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    return rose.load_model(str(save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")))


@torch.no_grad()
def count_right(model, tokenizer, questions: list[dict], first: Sequence[int] = ()) -> tuple[int, int]:
    """Questions whose answer has the largest log-likelihood, and the largest by length; `first` is before each."""
    right = [0, 0]
    for asked in questions:
        scores: list[list[float]] = [[], []]
        for choice in asked["choices"]:
            text = tokenizer(f"{asked['question']} {choice}", add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*first, *text]])
            start = len(first) + len(tokenizer(asked["question"], add_special_tokens=False)["input_ids"])
            logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            score = float(logs[start - 1 :].gather(1, ids[0, start:, None]).sum())
            scores[0].append(score)
            scores[1].append(score / len(choice))
        for way in (0, 1):
            right[way] += scores[way].index(max(scores[way])) == asked["answer"]
    return right[0], right[1]


@pytest.mark.parametrize(("bos", "first"), [("auto", [BOS]), ("always", [BOS]), ("never", [])])
def test_questions_begin_as_the_tokenizer_begins_text(tmp_path, folder, questions, bos, first):
    """Its tokenizer appends an end-of-text token too, which must not stand between a question and its answer."""
    model, tokenizer = rose.load_model(str(save_tiny_llama(tmp_path / "tiny", bos=True)))
    right, _ = count_right(model, tokenizer, questions, first)
    row = zero_shot(model, tokenizer, tasks=["sums"], task_folder=folder, bos=bos).iloc[0]
    assert row["accuracy"] == pytest.approx(right / QUESTIONS)


def test_accuracy_is_that_of_the_likeliest_answer(loaded, folder, questions):
    model, tokenizer = loaded
    right, right_by_length = count_right(model, tokenizer, questions)
    assert 0 < right < QUESTIONS
    assert right != right_by_length
    row = zero_shot(model, tokenizer, tasks=["sums"], task_folder=folder).iloc[0]
    share = right / QUESTIONS
    assert (row["task"], row["questions"]) == ("sums", QUESTIONS)
    assert row["accuracy"] == pytest.approx(share)
    assert row["accuracy_norm"] == pytest.approx(right_by_length / QUESTIONS)
    more = (right + 2) / (QUESTIONS + 4)
    assert row["accuracy_error"] == pytest.approx((more * (1 - more) / (QUESTIONS + 4)) ** 0.5)
    assert zero_shot(model, tokenizer, tasks=["sums"], task_folder=folder, limit=5)["questions"].item() == 5


def test_tasks_without_accuracy_do_not_affect_others(loaded, questions, tmp_path):
    write_task(tmp_path, questions, metrics=("acc", "acc_norm"))
    write_task(tmp_path, questions, "norms", metrics=("acc_norm",))
    table = zero_shot(*loaded, tasks=["sums", "norms"], task_folder=tmp_path).set_index("task")
    assert table.loc["sums", "accuracy"] >= 0
    assert math.isnan(table.loc["norms", "accuracy"])
    assert table.loc["norms", "accuracy_norm"] == table.loc["sums", "accuracy_norm"]


def test_bad_tasks_are_refused(loaded, folder, questions, tmp_path, monkeypatch):
    write_task(tmp_path, [])
    (tmp_path / "sums.jsonl").unlink()
    for tasks, place, message in (
        (["products"], folder, "no task named products"),
        (["sums"], folder / "missing", "There is no folder"),
        ([], folder, "at least one task"),
        (["sums"], tmp_path, "cannot be run"),
    ):
        refused(message, zero_shot, *loaded, tasks=tasks, task_folder=place)
    task = write_task(tmp_path, questions) / "sums.yaml"  # a template does not reach Python
    task.write_text(task.read_text().replace("{{question}}", "{{ cycler.__init__.__globals__.os.getcwd() }}"))
    refused(r"cannot be run .*unsafe", zero_shot, *loaded, tasks=["sums"], task_folder=tmp_path, limit=1)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    refused(r"pip install -r requirements-eval\.txt", zero_shot, *loaded, tasks=["sums"], task_folder=folder)


@pytest.mark.parametrize("odd", ["process_docs: !function evil.f\n", "include: ../elsewhere\n", "metric: /evil"])
def test_a_task_that_runs_code_is_refused_unless_it_is_trusted(tmp_path, questions, odd):
    (folder := tmp_path / "tasks").mkdir()
    metrics = ["/evil"] if odd.startswith("metric") else ["acc"]
    task = write_task(folder, questions, metrics=metrics) / "sums.yaml"
    task.write_text(task.read_text() + ("" if odd.startswith("metric") else odd))
    (tmp_path / "elsewhere").write_text("process_docs: !function tasks/evil.f\n")
    refused(r"sums\.yaml may run Python code", task_manager, ["sums"], folder)
    assert task_manager(["sums"], folder, trust_remote_code=True).all_subtasks == ["sums"]
    (folder / "base_yaml").write_text("num_fewshot: 0\n")
    write_task(folder, questions)
    task.write_text(task.read_text() + "include: base_yaml\n")
    assert task_manager(["sums"], folder).all_subtasks == ["sums"]


def test_progress_is_reported_and_may_cancel(loaded, folder):
    model, tokenizer = loaded
    shares: list[float] = []
    zero_shot(model, tokenizer, tasks=["sums"], task_folder=folder, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.5 < shares[-1] < 1.0

    with pytest.raises(rose.Cancelled):
        zero_shot(model, tokenizer, tasks=["sums"], task_folder=folder, progress=stop_when(lambda share: share > 0.3))
