"""Pieces that several pages draw: a figure with its caption and downloads, empty states, running work."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import streamlit as st

from app import session, words
from app.figures import style
from app.figures.style import Drawing
from app.jobs import ABANDONED_AFTER, Batch, Job
from app.study.setup import LIMITS
from app.study.study import Study
from app.words import short_layer

# Presses the camera of the figure that a button names, after telling it the format: Plotly itself is out of reach here.
PICTURES = """<script>
if (!window.rosePictures) {
  window.rosePictures = true;
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.picture");
    if (!button) return;
    const figure = document.querySelector(`.st-key-${button.dataset.figure} .js-plotly-plot`);
    const camera = figure && figure.querySelector('.modebar-btn[data-title^="Download plot"]');
    if (!camera) return;
    const options = figure._context.toImageButtonOptions, usual = options.format;
    options.format = button.dataset.format;
    camera.click();
    setTimeout(() => { options.format = usual; }, 0);
  });
}
</script>"""
SVG = {"displaylogo": False, "toImageButtonOptions": {"format": "svg"}}  # of the figure as an HTML file
KEPT = ". Layers measured so far are shown; nothing was changed."
START_PAGE = "views/start.py"
PATIENCE = 1.5  # seconds a page waits for a batch before it shows progress instead
URL: Final = "query-params"  # a widget bound to it keeps its choice in the URL


def choose(label: str, options: Mapping[Any, str], key: str, **more: Any) -> Any:
    """One of a few, as buttons in a row; the choice is in the URL.

    Args:
        options: what the code knows -> what people read, which is also what the URL carries; the first is the default.
        more: of `st.segmented_control`.
    """
    return st.segmented_control(
        label,
        list(options),
        **({"default": next(iter(options))} | more),
        required=True,
        format_func=options.__getitem__,
        key=key,
        bind=URL,
    )


def section(options: Mapping[str, str], key: str, label: str = "Section", **more: Any) -> Any:
    """Which part of a page is shown; the label is for those who cannot see the buttons."""
    return choose(label, options, key, label_visibility="collapsed", **more)


def show(
    drawing: Drawing,
    key: str,
    *,
    on_select: Callable[[], None] | None = None,
    height: Any = "content",
    wide: bool = False,
) -> None:
    """A figure with its computed caption and its downloads.

    Args:
        drawing: what to show.
        key: unique on the page.
        on_select: callback for clicks on marks; the selection is in `st.session_state[key]`.
        height: pixels, "content" or "stretch".
        wide: whether the figure has the width of the page, so that its title may have longer lines.
    """
    if wide:
        style.widen_title(drawing.figure)
    layout = (
        drawing.figure.layout
    )  # a figure's own title cannot break its lines: this one takes its place on narrow screens
    said = (html.escape(re.sub("<.*?>", "", layout.meta[part])) for part in ("finding", "what"))
    st.html(
        '<div class="narrow-title" data-finding="{}" data-what="{}" style="margin-bottom: -{}px"></div>'.format(
            *said, layout.margin.t
        )
    )
    st.plotly_chart(
        drawing.figure,
        key=key,
        height=height,
        theme=None,  # the figures carry their own light and dark templates
        on_select=on_select or "ignore",
        selection_mode="points",
        alt=drawing.alt,
        config={
            "displaylogo": False,
            "toImageButtonOptions": {"format": "png", "filename": key, "scale": 2},
            "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
        },
    )
    with st.container(horizontal=True, vertical_alignment="top"):
        st.caption(drawing.caption, width="stretch")
        menu = st.popover(
            "Download", icon=":material/download:", width="content", key=f"{key}-downloads", on_change="rerun"
        )
    if menu.open:  # large tables are only written out for those who ask
        with menu:
            downloads(drawing, key)


def downloads(drawing: Drawing, key: str) -> None:
    """The figure and its data as files, which work without a network."""
    table = drawing.data
    files = {
        "Table, CSV": ("csv", table.to_csv(index=False)),
        "Table, JSON": ("json", json.dumps(json.loads(table.to_json(orient="records")), indent=1)),
        "Figure, HTML": ("html", as_html(drawing)),
    }
    for label, (kind, content) in files.items():
        st.download_button(label, content, f"{key}.{kind}", on_click="ignore", key=f"{key}-{kind}")
    pictures(key)


def pictures(key: str) -> None:
    """The figure as PNG and SVG, drawn by the browser that shows it: no program on the server has to draw it again."""
    buttons = "".join(
        f'<button class="picture" data-figure="{key}" data-format="{form}">Figure, {form.upper()}</button>'
        for form in ("png", "svg")
    )
    st.html(buttons + PICTURES, unsafe_allow_javascript=True)


def report_button(runs: Callable[[], Sequence[Any]], name: str, key: str, **more: Any) -> None:
    """Hands out finished runs as one HTML file; it is made only for those who ask.

    Args:
        runs: gives the `app.runs.finished.FinishedRun`s.
        name: of the file, without its ending.
        more: of `st.download_button`.
    """

    def make() -> str:
        from app.runs import html_page, html_report  # with all figures: no page waits for them

        return html_page.to_html(html_report.report_of(runs()))

    st.download_button(
        "Report, HTML",
        make,
        f"{name}.html",
        mime="text/html",
        icon=":material/description:",
        on_click="ignore",
        key=key,
        help="One file to send: findings, interactive figures, settings and versions. It needs no network.",
        **more,
    )


def edited_setup() -> None:
    """Says what was edited on the start page and is not in use yet; for pages that need no measured layers."""
    edits = session.edits()
    if not edits:
        return
    labels = {name: label for name, (label, *_) in LIMITS.items()} | {"dtype": "Weights in", "stream": "On disk"}
    said = ", ".join(f"{labels.get(name, words.sentence(name))} `{value}`" for name, value in edits.items())
    with st.container(horizontal=True, vertical_alignment="center", key="edited-setup"):
        st.info(f"Edited on the start page, and not in use yet: {said}.", icon=":material/edit:", width="stretch")
        st.button(
            "Use it here",
            icon=":material/check:",
            on_click=session.use_draft,
            key="use-draft",
            help="Without measuring layers. Pages about layers stay empty until they are measured on the start page.",
        )


def keep_choice(key: str, offered: Mapping[str, Any]) -> list[str]:
    """Lets a widget's choice, of one name or of several, follow what it names when names change.

    Names change when runs arrive that would have the same ones. What is not offered any more is not chosen either.
    Call it before the widget.

    Args:
        offered: by name, what is to be told apart: the same are one object, or equal tuples.

    Returns:
        The names, as they are now, of what was offered before.
    """
    state = st.session_state
    before, chosen = state.get(f"{key}-offered", {}), state.get(key)
    state[f"{key}-offered"] = dict(offered)
    names = {old: _name_of(one, offered) for old, one in before.items()}
    asked = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
    found = [name for name in (names.get(one, one) for one in asked) if name in offered]
    if found != asked:
        if isinstance(chosen, list):
            state[key] = found
        elif found:
            state[key] = found[0]
        else:
            del state[key]
    return [name for name in names.values() if name is not None]


def _name_of(wanted: Any, offered: Mapping[str, Any]) -> str | None:
    def is_wanted(one: Any) -> bool:
        return one is wanted or (isinstance(one, tuple) and isinstance(wanted, tuple) and one == wanted)

    return next((name for name, one in offered.items() if is_wanted(one)), None)


# Arrows step through the frames of an animation in its HTML file; Plotly itself only plays them.
STEP_BY_KEY = """
const plot = document.getElementById("{plot_id}"), frames = plot._transitionData._frames.map((one) => one.name);
const now = {mode: "immediate", frame: {duration: 0, redraw: true}, transition: {duration: 0}};
let at = 0;
plot.on("plotly_animatingframe", (event) => { at = frames.indexOf(event.name); });
document.addEventListener("keydown", (event) => {
  const by = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (!by) return;
  at = Math.min(Math.max(at + by, 0), frames.length - 1);
  Plotly.animate(plot, [frames[at]], now);
});
"""


def as_html(drawing: Drawing) -> str:
    """The figure as one file that needs no network; an animation in it plays, and arrow keys step through it."""
    script = STEP_BY_KEY if drawing.figure.frames else None
    return drawing.figure.to_html(include_plotlyjs=True, config=SVG, auto_play=False, post_script=script)


def live(draw: Callable[[], None], every: float | None) -> None:
    """A part of the page that is redrawn by itself.

    It has a container to itself. When its redraw follows a redraw of the whole page at once, Streamlit (1.67) drops
    what the page has sent for it: the elements that follow would move up by one place, and the redraw would then
    overwrite the first of them.

    Args:
        draw: draws it.
        every: seconds between redraws; None for one that is redrawn by its own widgets only.
    """
    with st.container():
        st.fragment(draw, run_every=every)()


def empty(what: str) -> None:
    """An empty page: what would be here, and a link to get it."""
    with st.container(border=True, height=280, horizontal_alignment="center", vertical_alignment="center"):
        st.markdown(f"**{what}**", width="content")
        st.page_link(START_PAGE, label="Choose a model and measure its layers", icon=":material/play_arrow:")


def require_study(what: str) -> Study:
    """The current study, or an empty state that says what to do; the page ends there."""
    study = session.study()
    if study is None or not study.layer_names:
        if study is not None and study.job.status == "running":
            st.info("The model is loading; results appear here as soon as the first layers are measured.")
            wait_for(study, lambda: bool(study.layer_names))
        else:
            empty(what)
        st.stop()
    return study


def require_weights() -> None:
    """Ends a page that runs the whole model, where its weights stay on disk."""
    if session.setup().stream:
        st.info(
            "The weights of this model stay on disk, and this page needs all of them in memory. A terminal can prune "
            "it as it is, with `rose prune --stream`; or choose a set-up with the weights in memory.",
            icon=":material/hard_drive:",
        )
        st.page_link(START_PAGE, label="Change the set-up", icon=":material/tune:")
        st.stop()


def begin_restored(study: Study) -> None:
    """Collects the input statistics that a study from disk lacks, for pages that need more than its numbers.

    Where that was cancelled, or has failed, it ends the page and offers to try again.
    """
    if not can_have_inputs(study):
        st.stop()


def can_have_inputs(study: Study) -> bool:
    """Begins to collect inputs as `begin_restored`; False where that ended early, which is said.

    Where it ended because nobody watched, it begins anew.
    """
    if study.job.status == "kept" or (study.is_restored and study.job.abandoned):
        session.start()
        st.rerun()
    if not study.is_restored or study.job.status not in ("failed", "cancelled"):
        return True
    why = "was cancelled." if study.job.status == "cancelled" else f"failed: {study.job.message}"
    st.warning(f"This needs the inputs of layers. Collecting them {why}", icon=":material/input:")
    st.button("Collect the inputs", icon=":material/input:", on_click=_collect, key="collect-inputs")
    return False


def _collect() -> None:
    session.start()


def require_layer(what: str, numbers: Callable[[Study, str], None] | None = None) -> tuple[Study, str]:
    """The current study and the chosen layer, measured; or a sentence that says what is missing.

    `numbers` draws what a measured layer's numbers tell while its inputs are still collected.
    """
    study = require_study(what)
    layer = session.layer()
    if layer is None or layer not in study.layer_names:
        st.info("Choose a layer in the sidebar.")
        st.stop()
    if layer in study.failed:
        st.error(f"This layer could not be measured: {study.failed[layer]}", icon=":material/error:")
        st.stop()
    if layer in study.left_dense:
        st.info("No calibration token was routed to this expert, so it stays dense; more samples may reach it.")
        st.stop()
    if not study.has(layer):
        begin_restored(study)
        if study.job.status == "running":
            if any(record.layer == layer for record in study.all_records()):
                if numbers:
                    numbers(study, layer)
                st.info(f"Pictures of {short_layer(layer)} appear here as soon as its inputs are collected.")
            else:
                st.info(f"{short_layer(layer)} has not been measured yet; it appears here as soon as it is.")
            wait_for(study, lambda: study.has(layer))
        else:
            st.warning(f"The run ended before it reached {layer}; start it again on the start page.")
        st.stop()
    return study, layer


def wait_for(study: Study, ready: Callable[[], bool], shown: bool = True) -> None:
    """Redraws the page once `ready()` holds or the run has ended, and shows how far it is until then.

    The page must not call this again then, or it would be redrawn forever.
    """

    def poll() -> None:
        if shown:
            study_status(study, "waiting")
        if ready() or study.job.status != "running":
            st.rerun()

    live(poll, 1.0)


def study_status(study: Study, key: str) -> None:
    """How far a study is; that of one whose numbers are all there only while it collects inputs."""
    if not study.is_restored:
        job_status(study.job, key)
    elif study.job.status == "running":
        job_status(study.job, key, doing="Collecting inputs")


def job_status(job: Job, key: str, rest: str = KEPT, doing: str = "") -> None:
    """Progress with rate and time left, and a cancel button; to be drawn by a live part.

    Args:
        key: unique on the page.
        rest: of the sentence that says that it was cancelled.
        doing: what goes from decoder block to decoder block, where that is not measuring.
    """
    if job.status == "running":
        job.watch(session.viewer())
        progress = job.progress
        if progress is None:
            st.progress(0.0, text=f"{job.message} …, {duration(job.seconds)} so far")
        else:
            since = job.since_progress  # a large block takes long; the clock must not stand still meanwhile
            left = "" if progress.remaining is None else f", about {duration(max(1, progress.remaining - since))} left"
            where = f"decoder block {progress.block_index} (0 to {progress.blocks - 1})"
            where = f"{doing}, {where}" if doing else where.capitalize()
            rate = ""
            if progress.layers_done and progress.seconds:
                rate = f", {progress.layers_done / progress.seconds:.1f} layers a second"
            text = f"{where}, {duration(job.seconds)} so far{left}{rate}"
            st.progress(min(progress.fraction, 1.0), text=text)
        cancel_button(job, key)
    elif job.status == "failed":
        st.error(job.message, icon=":material/error:")
    elif job.status == "cancelled":
        stopped(job, rest)


def finished(pieces: Sequence[Callable[[], Any]], key: str, signature: object, noun: str = "sweep") -> bool:
    """Runs the pieces in the background and says whether all are finished; draws progress where not.

    What the pieces return must be remembered elsewhere: nothing is run again for the same signature only because
    the page is drawn again. `noun` is what one piece makes.
    """
    slot = f"{key}-batch"
    known, batch = st.session_state.get(slot, (None, None))
    if batch is not None and known != signature:
        session.leave(batch.job)
        del st.session_state[slot]  # or whoever comes back to the former signature would be told of its end
        batch = None
    if batch is None:
        if not pieces:
            return True
        batch = Batch(pieces)
        made = batch  # for the sidebar, which outlives this run of the page
        session.start_job(
            batch.job, lambda: f":material/swap_vert: Work on one layer, {made.done} of {made.total} done"
        )
        st.session_state[slot] = (signature, batch)
        batch.job.wait(PATIENCE)
    if batch.job.status == "done":
        del st.session_state[slot]
        return True
    _progress(batch, key, slot, noun)
    return False


def _progress(batch: Batch, key: str, slot: str, noun: str) -> None:
    running = batch.job.status == "running"

    def made() -> str:
        return f"{batch.done} of {batch.total} {noun if batch.total == 1 else noun + 's'} done"

    def poll() -> None:
        job = batch.job
        if job.status == "running":
            job.watch(session.viewer())
            left = "" if batch.remaining is None else f", about {duration(batch.remaining)} left"
            st.progress(batch.done / batch.total, text=f"{made()}{left}")
            cancel_button(job, key)
            return
        if running:
            st.rerun()
        if job.status == "failed":
            st.error(job.message, icon=":material/error:")
        else:
            stopped(job, f" after {made()}; finished ones are kept.")
        if st.button("Run the rest", key=f"{key}-again", icon=":material/refresh:"):
            del st.session_state[slot]
            st.rerun()

    live(poll, 0.5 if running else None)


def cancel_button(job: Job, key: str) -> None:
    """Leaves the job. By a callback, which runs before anything else does: a fragment's next poll may interrupt the
    run that a click has started, and an `if st.button` further down would then never see the click."""
    if job.is_cancelled:  # it stops once the step at work is done
        st.button("Stopping …", key=f"{key}-stopping", icon=":material/hourglass_top:", disabled=True)
    else:
        st.button("Cancel", key=f"{key}-cancel", icon=":material/stop:", on_click=_cancel, args=(job,))


def _cancel(job: Job) -> None:
    if not session.leave(job):
        st.toast("Another session is watching this run; it goes on.", icon=":material/group:")


def stopped(job: Job, rest: str) -> None:
    """Says that work was cancelled, by somebody or because nobody watched it; `rest` ends the sentence."""
    how = f"No page had been open for {ABANDONED_AFTER:.0f} s, so this was stopped" if job.abandoned else "Cancelled"
    st.warning(how + rest, icon=":material/stop:")


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days"


def size(count: float) -> str:
    """Bytes in a readable unit."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
