"""The results of a check in sentences, for the command line, the app and its reports."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rose.errors import RoseError
from rose.layer.pattern import METHOD
from rose.layer.registry import METHODS
from rose.model.check.costs import AIMED, DENSE, ERROR_OF, HELD_OUT, SAME_MASK
from rose.model.check.result import CheckpointCheck
from rose.model.check.verdicts import Verdict, says_pattern
from rose.report import report_beside
from rose.verdicts import BOS, SPARSE, WINDOWS, on_other_windows, says_perplexity
from rose.wording import count, listing, number, out_of, percent, sentence, whole, word

FEW = 8  # wrong tensors of one verdict that get a line each
SHOWN = 4  # most names of lost parts, or of layers that differ from the rest


def lines(check: CheckpointCheck, name: Callable[[str], str] = str) -> list[tuple[str, str]]:
    """Subject and text of each line. Wrong tensors come first, with a line for each or for a verdict that many share.
    Then comes a line for each other verdict, the most frequent last. `name` shows the name of a tensor."""
    tables = [check.layers.rename(columns={"layer": "name"}), check.others[check.others["is_wrong"]]]
    tensors = pd.concat(tables, ignore_index=True)
    tensors = tensors.assign(name=tensors["name"].map(name), is_wrong=tensors["is_wrong"].astype(bool))
    wrong_lines, other_lines = [], []
    for verdict in Verdict:
        rows = tensors[tensors["verdict"] == verdict]
        if rows["is_wrong"].sum() <= FEW:
            wrong_lines += [(f"{row.name}, {verdict}", row.reason) for row in rows[rows["is_wrong"]].itertuples()]
            rows = rows[~rows["is_wrong"]]
        if len(rows):
            where = count(len(rows), "tensor")
            if rows["projection"].notna().all():
                where, is_few = out_of(len(rows), len(check.layers), "layer"), len(rows) <= SHOWN
                where += f" ({listing(list(rows['name']))})" if is_few and len(rows) < len(check.layers) else ""
            line = f"{verdict}, {where}", _in_common(rows)
            if rows["is_wrong"].any():
                wrong_lines.append(line)
            else:
                other_lines.append((len(rows), line))
    return wrong_lines + [line for _, line in sorted(other_lines, key=lambda each: each[0])]


def _in_common(rows: pd.DataFrame) -> str:
    """Sentences that hold for all layers of one verdict."""
    if rows["reason"].nunique() == 1:
        return str(rows["reason"].iloc[0])
    texts = []
    if "nearest_method" in rows:  # "Like Magnitude.", "Like SparseGPT in 206 layers and ROSE in four."
        matching = rows.loc[rows["agreement"] >= SAME_MASK, "nearest_method"]
        sizes = matching.map(lambda name: METHODS[name].label).value_counts()
        methods = [f"{label} in {count(int(size), 'layer')}" for label, size in sizes.items()]
        is_one = len(sizes) == 1 and len(matching) == len(rows)
        is_dense = (rows.loc[matching.index, "nearest_target"] == DENSE).mean() > 0.5
        target = " towards the dense model's outputs" if is_dense else ""
        rest = len(rows) - len(matching)
        none = f"; like no method in {word(rest)}" if rest else ""
        texts = [f"Like {sizes.index[0] if is_one else listing(methods)}{target}{none}."] if methods else []
    if rows["zeros"].any():
        pattern = f", {says_pattern(rows['pattern'].iloc[0])}" if rows["pattern"].nunique() == 1 else ""
        moved = rows[rows["moved"] > 0]
        if moved.empty:
            rounded = ", except for rounding to 16 bits" if rows["rounded"].notna().any() else ""
            weights = f" equal the dense model's{rounded}"
        else:
            some = listing(list(moved["name"])) if len(moved) <= SHOWN else count(len(moved), "layer")
            where = "" if len(moved) == len(rows) else f" of {some}"
            weights = f"{where} moved by {_range(moved['change'], percent)} of their norm"
        texts += [f"{_range(rows['sparsity'], percent)} zeros{pattern}.", f"Kept weights{weights}."]
    if "error" in rows and rows["error"].notna().any():
        prefix = _prefix(rows, "error")
        errors, which = rows[f"{prefix}error"].dropna(), "Held-out errors" if prefix else "Errors"
        which, middle = f"{which} against the dense model's outputs", number(float(errors.median()))
        texts.append(f"{which}: {_range(errors, number)}, median {middle}.")
    wrong = rows[rows["is_wrong"]]
    if len(wrong) or not texts:
        example = rows.loc[wrong.index[0] if len(wrong) else rows.index[0]]
        which = f"{sentence(word(len(wrong)))} of them are wrong. " if 0 < len(wrong) < len(rows) else ""
        texts.append(f"{which}{example['name']}, for example: {example['reason'].partition('. ')[0].rstrip('.')}.")
    return " ".join(texts)


def _range(values: pd.Series, text: Callable[[float], str]) -> str:
    """ "49.9 % to 50.1 %", or one text where both ends have the same."""
    return " to ".join(dict.fromkeys(text(float(value)) for value in (values.min(), values.max())))


def findings(check: CheckpointCheck, folder: Path | None = None, drawn: Mapping[str, Any] | None = None) -> list[str]:
    """The findings, a sentence each, cautions first; headline and verdicts are not among them.

    Args:
        folder, drawn: see `says_other_draw`; None where no tokens were drawn.
    """
    layers, summary = check.layers, check.summary
    sentences = [*check.cautions, says_other_draw(folder, drawn) if folder is not None and drawn is not None else ""]
    sentences += [_zeros(summary), *_emptied(layers)]
    lost = {noun: summary["gone"][f"{noun}s"] for noun in ("head", "expert")}
    sentences += [
        f"Nothing is left of {count(len(names), noun)}: {listing(names, SHOWN)}."
        for noun, names in lost.items()
        if names
    ]
    if rotated := len(summary["rotated_heads"]):
        sentences.append(
            f"Heads of {count(rotated, 'output projection')} fit the dense model's after a rotation, which changes no "
            "output. They are compared with the rotated dense heads."
        )
    if kinds := [f"{size} of kind {kind}" for kind, size in check.others.groupby("kind", sort=False).size().items()]:
        sentences.append(f"Other parts that differ: {', '.join(kinds)}.")
    sentences += _errors(layers, summary) + _maker(summary)
    if "perplexity_after" in summary:
        sentences += says_perplexity(summary)[1:]
    if summary["drift"] and math.isfinite(drift := summary["drift"][-1]["drift"]):
        sentences.append(f"Drift after the last decoder block: {number(drift)}.")
    return [text for text in sentences if text]


def says_other_draw(folder: Path, drawn: Mapping[str, Any]) -> str:
    """A caution where our report beside a checkpoint names other calibration windows, or is damaged; else "".

    Args:
        drawn: calibration, samples, length, seed, held_out_samples and bos_token of the check.
    """
    try:
        report = report_beside(folder)
    except RoseError as problem:
        return str(problem)
    run = {} if report is None else report.summary
    if any(run.get(name) is None for name in WINDOWS) or not on_other_windows(run, drawn):
        return ""
    first = ""
    if run.get(BOS, drawn[BOS]) != drawn[BOS]:
        first = f", {'without' if run[BOS] is None else 'with'} a beginning-of-sequence token in front"
    text, (samples, length) = Path(str(run["calibration"])).name, (run["samples"], run["length"])
    return (
        f"The report beside this checkpoint names other calibration windows: {samples} × {length} tokens of {text}, "
        f"seed {run['seed']}, {run['held_out_samples']} held out{first}. Methods compared with it are fitted to the "
        "tokens of this check, so the checkpoint's errors look higher than theirs and its masks less like theirs."
    )


def method_of(column: str) -> str:
    """The label of the method that a column of errors is about."""
    return METHODS[column.removeprefix(ERROR_OF)].label


def _zeros(summary: dict[str, Any]) -> str:
    zeros, weights = whole(summary["zeros"]), whole(summary["weights"])
    share, before = summary["sparsity"], summary["zeros_before"] / summary["weights"]
    text = f"{percent(share, 2)} of the layers' weights are zero ({zeros} of {weights})"
    if before:
        text += f", {percent(before, 2)} in the dense model"
    doubt = " Were the two given the other way round? The dense model comes first." if share < SPARSE <= before else ""
    return f"{text}; pattern of most layers: {says_pattern(summary['pattern'])}.{doubt}"


def _emptied(layers: pd.DataFrame) -> list[str]:
    """Rows and columns without a weight, and in which layers; not of layers without any weight."""
    some_left, sentences = layers[layers["zeros"] < layers["rows"] * layers["columns"]], []
    for column, noun in (("empty_rows", "output row"), ("empty_columns", "input column")):
        sizes = some_left.set_index("layer")[column].sort_values(ascending=False, kind="stable")
        where = [f"{word(size)} of {name}" for name, size in sizes.items() if size]
        if where:
            verb = "has" if sizes.sum() == 1 else "have"
            total = sentence(count(int(sizes.sum()), noun))
            sentences.append(f"{total} {verb} no weight left: {listing(where, SHOWN)}.")
    return sentences


def _errors(layers: pd.DataFrame, summary: Mapping[str, Any]) -> list[str]:
    """The mean errors of the checkpoint and of methods, and the share of the masks' error that was recovered."""
    if "error" not in layers or layers["error"].isna().all():
        return []
    measured = layers.dropna(subset=["error"])
    methods = [str(name) for name in measured if str(name).startswith(ERROR_OF)]
    prefix = _prefix(measured, *methods[:1] or ["error"])
    means = [f"{method_of(name)} {number(float(measured[prefix + name].mean()))}" for name in methods]
    where = "" if len(measured) == len(layers) else f" over {out_of(len(measured), len(layers), 'layer')}"
    texts = [f"Mean {'held-out ' if prefix else ''}error{where} {number(float(measured[f'{prefix}error'].mean()))}."]
    if means:
        texts.append(f"Methods at this sparsity, fitted to the calibration tokens: {listing(means, len(means))}.")
        is_dense = "compared_target" in measured and (summary["method"] or {}).get("target") == DENSE
        aimed = [name for name in methods if name.removeprefix(ERROR_OF) in (AIMED if is_dense else (METHOD,))]
        aim = f"{listing([method_of(name) for name in aimed])} {'aims' if len(aimed) == 1 else 'aim'} at the dense "
        aim += (
            f"model's outputs{', as this checkpoint does,' if is_dense else ''} and other methods at each layer's own, "
        )
        texts += [f"{aim}which leaves higher errors."] if aimed else []
    if len(recovered := measured["recovered"].dropna()):
        share = percent(float(recovered.median()), 0)
        median = f", the median of {count(len(recovered), 'layer')}" if len(recovered) > 1 else ""
        text = f"On calibration tokens, compensation recovered {share} of what a least-squares refit of the masks would"
        texts.append(f"{text}{median}.")
    return texts


def _prefix(rows: pd.DataFrame, name: str) -> str:
    """The prefix of error columns: `HELD_OUT` if held-out errors were measured, else ""."""
    return HELD_OUT if rows.get(HELD_OUT + name, pd.Series(dtype=float)).notna().any() else ""


def _maker(summary: dict[str, Any]) -> list[str]:
    """Which method's masks are nearest, and whether they match."""
    nearest = summary["nearest"]
    if nearest is None:
        return []
    target = ", towards the dense model's outputs" if nearest["target"] == "dense" else ""
    method, shares = METHODS[nearest["name"]].label + target, f"both remove {percent(nearest['agreement'])} of the "
    shares += f"weights that either removes, {percent(nearest['chance'])} by chance"
    if summary["method"] is None:
        where = count(nearest["layers"], "layer")
        return [f"The masks match no method that was tried; the nearest is {method}: over {where} {shares}."]
    where = out_of(nearest["layers"], summary["layers"], "layer")
    return [f"Masks of {where} match those of {method}: {shares}. {says_alike(nearest)}".rstrip()]


def says_alike(nearest: Mapping[str, Any]) -> str:
    """In how many layers the checkpoint's method and the one most like it remove the same; "" without such a method."""
    if not nearest["alike"]:
        return ""
    other, layers = max(nearest["alike"].items(), key=lambda item: item[1])
    text = f"{METHODS[nearest['name']].label} and {METHODS[other].label} remove the same weights in"
    if layers == nearest["compared"]:
        return f"{text} {out_of(layers, layers, 'layer')}, so nothing tells which it was."
    return f"{text} {count(layers, 'layer')} and differ in {word(nearest['compared'] - layers)}."
