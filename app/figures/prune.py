"""Whole-model runs: errors of the layers by method, perplexity, and how a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app import words
from app.figures import overview, palette, style
from app.figures.palette import Theme
from app.figures.style import Drawing
from app.runs.results import perplexity_ratio
from rose import RoseError

DUMBBELLS = 20
ERROR_OF = {
    "relative_error": "on calibration",
    "held_out_error": "on held-out",
    "target_error": "against the dense model's output on calibration",
    "held_out_target_error": "against the dense model's output on held-out",
}


def layer_map(
    records: pd.DataFrame,
    method: str,
    *,
    column: str = "relative_error",
    marked_layer: str | None = None,
    theme: Theme = "light",
) -> Drawing:
    """Error of every layer by one method as a map; beside SparseGPT in the same run, the share of its error saved.

    Args:
        records: columns as in `rose.LayerRecord`.
        column: a key of `ERROR_OF`.

    Raises:
        RoseError: no row of this method with this error.
    """
    table = records.dropna(subset=[column])
    rows = table[table["method"] == method].drop_duplicates("layer")
    if rows.empty:
        raise RoseError("No error has been measured yet; prune a model first.")
    name = ("held_out_" if column == "held_out_error" else "error_") + method
    values = rows.set_index("layer")[column]
    base = table[table["method"] == style.BASELINE].drop_duplicates("layer").set_index("layer")[column]
    if method != style.BASELINE and len(base):
        name, values = f"saved_{method}", 1 - values / base.where(base > 0)
    made = rows[["layer", "block_index", "projection"]].assign(**{name: values.reindex(rows["layer"]).to_numpy()})
    drawing = overview.model_map(made, name, marked_layer=marked_layer, theme=theme)
    said = f" Errors {ERROR_OF[column]} tokens."
    return replace(drawing, caption=drawing.caption + said, alt=drawing.alt + said)


def layer_differences(records: pd.DataFrame, *, column: str = "relative_error", theme: Theme = "light") -> Drawing:
    """Error by several methods on the 20 layers on which they differ most, as dumbbells.

    Args:
        records: columns as in `rose.LayerRecord`.
        column: a key of `ERROR_OF`.

    Raises:
        RoseError: no row with this error, or no two methods that differ.
    """
    table = records.dropna(subset=[column])
    if table.empty:
        raise RoseError("No error has been measured yet; prune a model first.")
    methods = list(dict.fromkeys(table["method"]))
    layers = list(dict.fromkeys(table["layer"]))
    wide = table.pivot_table(index="layer", columns="method", values=column, sort=False).loc[layers, methods]
    looks = {method: palette.method_style(method) for method in methods}
    finding, caption = _compare(wide, looks)
    figure = go.Figure()
    held = ERROR_OF[column]
    shown = _most_different(wide)
    log = _spread(shown.to_numpy(np.float64)) > style.LOG_ABOVE
    scale = "; log scale, as errors spread over more than a factor of 10" if log else ""
    _dumbbells(figure, shown, looks, theme)
    style.base(
        figure,
        theme,
        finding,
        f"Relative error {held} tokens, {words.count(len(shown), 'layer')} on which methods differ most{scale}",
        x=style.ERROR,
        y="layer",
        height=max(320, 190 + 26 * len(shown)),
        legend=True,
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(**({"type": "log", "exponentformat": "power"} if log else {"rangemode": "tozero"}))
    alt = f"Dumbbell chart of error by layer and method. {finding}. {caption}"
    return Drawing(figure, caption, alt, wide.reset_index())


def _most_different(wide: pd.DataFrame) -> pd.DataFrame:
    """The layers on which methods differ most, relative to the larger error."""
    largest = wide.max(axis=1)
    gap = (largest - wide.min(axis=1)) / largest.where(largest > 0)
    chosen = gap[gap > 0].sort_values(ascending=False, kind="stable").head(DUMBBELLS).index
    if not len(chosen):
        raise RoseError("The methods have the same error on every layer, so there are no differences to show.")
    return wide.loc[list(chosen)]


def _run_look(name: str, method: str) -> palette.Style:
    look = palette.method_style(method)
    return look if name == method else look._replace(label=name)


def _spread(values: np.ndarray) -> float:
    """Largest over smallest positive value."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(positive.max() / positive.min()) if positive.size else 1.0


def _compare(wide: pd.DataFrame, looks: dict[str, palette.Style]) -> tuple[str, str]:
    """Title and caption: who is lowest, on how many layers, by how much."""
    mean = wide.mean()
    ranked = [str(m) for m in mean.sort_values().index]
    best = ranked[0]
    listed = ", ".join(f"{looks[m].label} {words.number(float(mean[m]))}" for m in ranked)
    caption = f"Mean error of {words.count(len(wide), 'layer')}, lowest first: {listed}."
    base = style.BASELINE
    if base not in wide.columns or len(ranked) == 1:
        return f"{looks[best].label}: mean error {words.number(float(mean[best]))}", caption
    other = best if best != base else ranked[1]
    better = int((wide[other] < wide[base]).sum())
    return (f"{looks[other].label} has less error than {looks[base].label} on {better} of {len(wide)} layers", caption)


def _dumbbells(figure: go.Figure, wide: pd.DataFrame, looks: dict[str, palette.Style], theme: Theme) -> None:
    names = [words.short_layer(layer) for layer in wide.index]
    low, high = wide.min(axis=1).to_numpy(np.float64), wide.max(axis=1).to_numpy(np.float64)
    figure.add_scatter(
        x=np.stack([low, high, np.full(len(low), np.nan)], axis=1).ravel(),
        y=[n for name in names for n in (name, name, name)],
        mode="lines",
        line={"color": palette.INKS[theme].muted, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    for method, look in looks.items():
        figure.add_scatter(
            x=wide[method].to_numpy(np.float64),
            y=names,
            customdata=wide.index.tolist(),
            mode="markers",
            name=look.label,
            marker={"color": look.colour, "symbol": look.symbol, "size": 11},
            hovertemplate=f"%{{customdata}}<br>{look.label} %{{x:.4g}}<extra></extra>",
        )


def perplexity_bars(
    table: pd.DataFrame,
    *,
    dense: float | None = None,
    losses: Sequence[Sequence[float]] = (),
    theme: Theme = "light",
) -> Drawing:
    """Perplexity of each pruned model, with a line for the dense one.

    Args:
        table: columns `method` and `perplexity`; a `run` names a bar better than its method.
        dense: perplexity of the model before pruning.
        losses: of each row, its loss on each window; with them the title says whether the best differ clearly.

    Raises:
        RoseError: no perplexity.
    """
    rows = table.dropna(subset=["perplexity"])
    if rows.empty:
        raise RoseError("No perplexity has been measured yet; prune a model and evaluate it.")
    names = "run" if "run" in rows.columns else "method"
    looks = [_run_look(str(n), str(m)) for n, m in zip(rows[names], rows["method"], strict=True)]
    values = rows["perplexity"].to_numpy(np.float64)
    finite = np.isfinite(values)
    known = np.append(values[finite], [] if dense is None else [dense])
    log = _spread(known) > style.LOG_ABOVE
    figure = go.Figure(
        go.Bar(
            x=[look.label for look in looks],
            y=np.where(finite, values, np.nan),
            text=[words.number(v) for v in values],
            textposition="outside",
            cliponaxis=False,
            marker={
                "color": [look.colour for look in looks],
                "pattern": {"shape": [look.pattern for look in looks], "solidity": 0.4},
            },
            hovertemplate="%{x}<br>perplexity %{y:.2f}<extra></extra>",
        )
    )
    if dense is not None:
        figure.add_hline(y=dense, line={"color": palette.INKS[theme].text, "dash": "dash", "width": 2})
    least = np.where(finite, values, np.inf).min()
    # ROSE is SparseGPT where no layer is columnar: equal models share the title.
    best = [look.label for look, value in zip(looks, values, strict=True) if value <= least * (1 + 1e-9)]
    share = "has" if len(best) == 1 else "share"
    finding = f"{' and '.join(best)} {share} the lowest perplexity, {words.number(float(least))}"
    paired = ""
    if len(losses) == len(values) > 1 and len(best) == 1 and all(len(one) for one in losses):
        unclear, paired = _against_best(values, looks, losses)
        if unclear:
            finding = f"No clear difference between {best[0]} and {unclear}"
    if log:
        finding += ", on a log scale"
    line = f"; dashed: dense, {words.number(dense)}" if dense is not None else ""
    style.base(figure, theme, finding, f"Perplexity of each pruned model, lower is better{line}", x="", y="perplexity")
    largest = float(known.max()) if len(known) else 1.0
    if log:
        low = float(known[known > 0].min())
        figure.update_yaxes(
            type="log", range=[np.log10(low) - 0.3, np.log10(largest) + 0.15], exponentformat="power", dtick=1
        )
    else:
        figure.update_yaxes(range=[0, largest * 1.12])
    ordered = sorted(zip(values, looks, strict=True), key=lambda pair: pair[0])
    caption = "Lowest first: " + "; ".join(f"{look.label}: {words.number(float(v))}" for v, look in ordered)
    caption += (f"; dense {words.number(dense)}." if dense is not None else ".") + paired
    alt = f"Bar chart of perplexity. {finding}. {caption}"
    data = rows.reset_index(drop=True)
    return Drawing(figure, caption, alt, data if dense is None else data.assign(dense_perplexity=dense))


def accuracy_bars(table: pd.DataFrame, *, theme: Theme = "light") -> Drawing:
    """Zero-shot accuracy of every model on every task, with standard errors.

    Args:
        table: one row per model and task: task, questions, accuracy, accuracy_error, run, method; the dense model has
            the method "dense".

    Raises:
        RoseError: no accuracy.
    """
    if table.empty:
        raise RoseError("No zero-shot task has been answered yet; choose tasks and prune.")
    tasks = list(dict.fromkeys(table["task"]))
    figure = go.Figure()
    means: dict[str, float] = {}
    for name, rows in table.groupby("run", sort=False):
        method = str(rows["method"].iloc[0])
        look = _run_look(str(name), method)
        values = rows.set_index("task").reindex(tasks)
        means[str(name)] = float(values["accuracy"].mean())
        figure.add_bar(
            x=tasks,
            y=values["accuracy"].to_numpy(np.float64),
            error_y={"array": values["accuracy_error"].to_numpy(np.float64), "color": palette.INKS[theme].text},
            name=look.label,
            marker={
                "color": palette.INKS[theme].muted if method == "dense" else look.colour,
                "pattern": {"shape": look.pattern, "solidity": 0.4},
            },
            hovertemplate=f"{look.label}<br>%{{x}}: %{{y:.1%}}<extra></extra>",
        )
    dense = [str(name) for name in table.loc[table["method"] == "dense", "run"].unique()]
    pruned = {name: mean for name, mean in means.items() if name not in dense}
    over = f"mean over {words.count(len(tasks), 'task')}"
    if not pruned:
        finding = f"The dense model answers {words.percent(means[dense[0]])} correctly, {over}"
    else:
        best = max(pruned, key=pruned.__getitem__)
        finding = f"{best} answers {words.percent(pruned[best])} correctly, {over}"
        if dense:
            finding += f"; the dense model {words.percent(means[dense[0]])}"
    asked = table.drop_duplicates("task")["questions"]
    what = f"Share of questions answered correctly, {words.whole(int(asked.sum()))} in all; lines: standard error"
    style.base(figure, theme, finding, what, y="accuracy", legend=True)
    figure.update_yaxes(
        range=[0, min(1.0, 1.15 * float((table["accuracy"] + table["accuracy_error"].fillna(0)).max()))]
    )
    figure.update_yaxes(tickformat=".0%")
    ranked = sorted(means.items(), key=lambda pair: -pair[1])
    caption = f"Mean accuracy: {', '.join(f'{name} {words.percent(mean)}' for name, mean in ranked)}."
    alt = f"Bar chart of zero-shot accuracy by task. {finding}. {caption}"
    return Drawing(figure, caption, alt, table.reset_index(drop=True))


def _against_best(
    values: np.ndarray, looks: Sequence[palette.Style], losses: Sequence[Sequence[float]]
) -> tuple[str, str]:
    """The runs that do not differ clearly from the best, and a sentence on how far each lies above it."""
    best, *others = np.argsort(values, kind="stable").tolist()
    ratios = {other: perplexity_ratio(losses[other], losses[best]) for other in others}
    unclear = [looks[other].label for other, ratio in ratios.items() if not ratio.is_clear]
    windows = len(losses[best])
    if windows < 2:
        return " or ".join(unclear), " A single window cannot tell a difference from chance; evaluate on more of them."
    listed = "; ".join(
        f"{looks[other].label}: {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
        for other, ratio in ratios.items()
    )
    return (
        " or ".join(unclear),
        f" Times the perplexity of {looks[best].label}, with 95 % intervals over {windows} windows, paired: {listed}.",
    )


def progress_timeline(records: pd.DataFrame, total: int, *, theme: Theme = "light") -> Drawing:
    """Errors of the layers in the order in which a run has pruned them; the axis already has room for all of them.

    Args:
        records: of one run so far, columns as in `rose.LayerRecord`, of which `layer`, `relative_error` and `seconds`
            are shown; may be empty.
        total: layers in the whole run.
    """
    kinds = records["layer"].map(lambda layer: words.place_of(layer)[1])
    place = np.arange(1, len(records) + 1, dtype=np.int32)
    errors = records["relative_error"].to_numpy(np.float64)
    figure = go.Figure()
    for projection, look in palette.projection_styles(list(dict.fromkeys(kinds))).items():
        chosen = (kinds == projection).to_numpy()
        figure.add_scatter(
            x=place[chosen],
            y=errors[chosen],
            customdata=records["layer"][chosen].tolist(),
            mode="markers",
            name=projection,
            marker={"color": look.colour, "symbol": look.symbol, "size": 9},
            hovertemplate="%{customdata}<br>relative error %{y:.4g}<extra></extra>",
        )
    done = len(records)
    who = words.sentence(words.word(done)) if done else "None"
    finding = f"{who} of {total} layers {'is' if done == 1 else 'are'} pruned"
    style.base(
        figure,
        theme,
        finding,
        "Relative error of each layer on the inputs it now gets, in the order pruned",
        x="layers pruned",
        y=style.ERROR,
        legend=len(records) > 0,
    )
    figure.update_xaxes(range=[0, total + 1], dtick=style.whole_step(total), zeroline=False)
    top = float(errors.max()) * 1.08 if done else 1.0
    figure.update_yaxes(range=[0, top or 1.0])
    if not done:
        caption = "No layer is done yet."
    else:
        last = records.iloc[-1]
        caption = (
            f"Last: {words.short_layer(last['layer'])} with an error of {words.number(float(last['relative_error']))}; "
            f"mean so far {words.number(float(errors.mean()))}, "
            f"{words.number(float(records['seconds'].sum()))} s spent on pruning itself."
        )
    alt = f"Scatter chart of relative error by layer in the order pruned. {finding}. {caption}"
    return Drawing(figure, caption, alt, records.reset_index(drop=True).assign(number=place))
