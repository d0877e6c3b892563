"""Entry point of the app: navigation and what all pages share around them. Run by `make app`."""

import sys
from pathlib import Path

import streamlit as st

# Streamlit puts this folder on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).parents[1]))

PRODUCT = (
    '<div class="product"><b>ROSE Explorer</b><span>See, check and prune language models in one shot, and tune what is '
    "left</span></div>"
)
STYLE = """<style>
.stMainBlockContainer { padding: 0.75rem 3rem 4rem; }  /* figures need the room */
.stMainBlockContainer h1 { padding: 0 0 0.5rem; }
.product { display: flex; flex-wrap: wrap; gap: 0 0.75rem; font-size: 0.875rem; }
.product span { opacity: 0.8; }
/* Plotly's buttons stand in the lower right corner, where no title is. */
.js-plotly-plot .modebar-container { top: auto !important; bottom: 0; }
.js-plotly-plot .modebar { top: auto !important; bottom: 2px; }
/* The selected button of a row is text on a tint of the primary colour, where only the text colour is readable. */
[data-testid="stButtonGroup"] :is([aria-checked="true"], [aria-pressed="true"], [data-selected="true"]),
[data-testid="stButtonGroup"] :is([aria-checked="true"], [aria-pressed="true"], [data-selected="true"]) * {
  color: var(--selected-text) !important;
}
/* Streamlit's own colours for captions, and for a slider's value in the dark, lie below a contrast of 4.5:1. */
[data-testid="stSliderThumbValue"] { color: var(--selected-text) !important; }
[data-testid="stCaptionContainer"] { color: var(--selected-text) !important; opacity: 0.76; }
.st-key-theme { display: none; }
.st-key-explore a { background: var(--primary); justify-content: center; }
.st-key-explore a * { color: white !important; }
/* Streamlit shows the focus of these links by a tint that nobody sees. */
:is([data-testid="stSidebarNavLink"], [data-testid="stPageLink-NavLink"]):focus-visible {
  outline: 2px solid var(--selected-text); outline-offset: -2px;
}
/* The chosen layer and the sparsity stand below the pages, on a screen of 800 pixels too. */
[data-testid="stSidebarHeader"] { height: 2.25rem; margin-bottom: 0.25rem; }
[data-testid="stSidebarNavLink"] { margin-block: 0; min-height: 1.75rem; }
[data-testid="stSidebarNavLinkContainer"] { height: auto; }
[data-testid="stNavSectionHeader"] { margin-block: 0.25rem 0; }
[data-testid="stSidebarNavItems"] > div { margin-top: 0.25rem; padding-top: 0; }
[data-testid="stSidebarNavSeparator"] { padding-top: 0.5rem; }
[data-testid="stSidebarUserContent"] { padding-block: 0.5rem 2rem; }
/* A page that waits for a study shows how far it is, in place of what will stand there: once is enough. */
body:has(.st-key-waiting-cancel, .st-key-waiting-stopping) .st-key-sidebar-progress { display: none; }
button.picture {
  display: block; width: 100%; margin-bottom: 0.5rem; padding: 0.35rem 0.75rem; font: inherit; color: inherit;
  background: transparent; border: 1px solid currentColor; border-radius: 8px; cursor: pointer;
}
div[data-testid="stButtonGroup"] > div { flex-wrap: wrap; }  /* rather than hide what does not fit in a row */
.figure-title { margin-bottom: -0.75rem; }
div[class*="-figure-head"] { flex-wrap: nowrap !important; }
.figure-title b { display: block; font-size: 1.125rem; line-height: 1.3; }
.figure-title span { font-size: 0.875rem; opacity: 0.76; }
@media (min-width: 1000px) { .katex-display { overflow: visible !important; } }  /* not scrolled by a pixel or two */
@media (max-width: 640px) {
  .stMainBlockContainer { padding: 4.5rem 1rem 4rem; }
}
</style>"""
# Streamlit (1.67) enters every change of the address into the browser's history: several at each visit of a page, as it
# clears the address and the page writes into it again. Back is to lead to the page before, as it was left, or to undo a
# choice of a layer: nothing else is entered. Neither is a page that leads on to another before anything was pressed.
HISTORY = """<script>
if (!window.pageHistory) {
  window.pageHistory = true;
  const enter = history.pushState.bind(history), replace = history.replaceState.bind(history);
  let touched = false, leaving = false;
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, () => { touched = true; }, true);
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href]:not([target=_blank])");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    touched = true;  // by a screen reader, too
    leaving = link.pathname !== location.pathname;
  }, true);
  history.pushState = (state, _title, address) => {
    const here = new URL(location.href), there = new URL(address, here);
    const moves = there.pathname !== here.pathname;
    const chooses = there.searchParams.get("layer") !== here.searchParams.get("layer");
    if (leaving && !moves) return;
    const enters = touched && (moves || chooses);
    touched = leaving = false;
    (enters ? enter : replace)(state, "", address);
  };
}
</script>"""
# The parts of Streamlit's navigation are no items of the list that they stand in (1.67): they become groups with names.
GROUPS = """<script>
if (!window.pageGroups) {
  window.pageGroups = true;
  const list = "[data-testid=stSidebarNavItems]";
  const name = () => {
    for (const plain of document.querySelectorAll(`${list}:not([role]), ${list} li:not([role])`)) plain.role = "none";
    for (const group of document.querySelectorAll(`${list} > div:not([role])`)) {
      group.role = "group";
      group.ariaLabel = group.querySelector("header")?.querySelector("p")?.innerText ?? "";
    }
  };
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  name();
}
</script>"""
# Page Down would move a slider with the focus by ten steps; it scrolls the page instead, and on Learn turns lessons.
KEYS = """<script>
if (!window.pageKeys) {
  window.pageKeys = true;
  addEventListener("keydown", (event) => {
    const way = {PageDown: 1, PageUp: -1}[event.key];
    if (!way || !event.target.matches("input[type=range]") || document.querySelector(".st-key-lesson-next")) return;
    document.querySelector("[data-testid=stMain]").scrollBy(0, 0.9 * way * innerHeight);
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);
}
</script>"""

# The page's font is missing when Plotly (7.1) draws a picture to save: a font of the system takes its place, in which
# labels are wider than the margins that were measured. The picture is laid out in that font, and as much wider.
SAVED = """<script>
if (!window.pageSaved) {
  window.pageSaved = true;
  const family = "Segoe UI, sans-serif", context = document.createElement("canvas").getContext("2d");
  const width = (font) => {
    context.font = `16px ${font}`;
    return context.measureText("Relative range of every layer").width;
  };
  addEventListener("click", (event) => {
    const camera = event.target.closest('.modebar-btn[data-title^="Download plot"]');
    const figure = camera && camera.closest(".js-plotly-plot");
    if (!figure) return;
    const {layout, _fullLayout: {font, width: shown, height: tall}, _context: {toImageButtonOptions: options}} = figure;
    const {font: own, title, margin, meta} = layout;
    layout.font = {...own, family};
    options.width = Math.ceil(Math.max(720, shown) * Math.max(1, width(family) / width(font.family)));
    if (meta?.title) {  // on the page it is text above the figure
      layout.title = meta.title;
      layout.margin = {...margin, t: margin.t + meta.freed};
      options.height = tall + meta.freed;
    }
    setTimeout(() => {  // Plotly has copied all of them
      Object.assign(layout, {font: own, title, margin});
      delete options.width;
      delete options.height;
    }, 0);
  }, true);
}
</script>"""


def draw() -> None:
    page = st.navigation(
        {
            "": [st.Page("views/start.py", title="Start", icon=":material/play_circle:", default=True)],
            "Understand": [
                st.Page("views/learn.py", title="Learn", icon=":material/school:"),
                st.Page("views/layers.py", title="Layers", icon=":material/grid_on:"),
                st.Page("views/layer.py", title="Layer", icon=":material/layers:"),
                st.Page("views/order_lab.py", title="Order lab", icon=":material/swap_vert:"),
            ],
            "Prune": [
                st.Page("views/prune.py", title="Prune", icon=":material/content_cut:"),
                st.Page("views/smaller.py", title="Make it smaller", icon=":material/compare_arrows:"),
                st.Page("views/structures.py", title="Heads and channels", icon=":material/compress:"),
            ],
            "Judge": [
                st.Page("views/runs.py", title="Compare runs", icon=":material/compare:"),
                st.Page("views/damage.py", title="Layer sensitivity", icon=":material/healing:"),
                st.Page("views/text.py", title="Your text", icon=":material/chrome_reader_mode:"),
                st.Page("views/check.py", title="Check a checkpoint", icon=":material/fact_check:"),
            ],
            "More": [st.Page("views/diffusion.py", title="Diffusion", icon=":material/image:")],
        },
        expanded=True,
    )
    from app import first

    meanwhile = None
    if not first.ready.is_set():  # the example's pictures show until all is read
        meanwhile = st.empty()
        with meanwhile.container():
            first.draw(page.url_path, st.query_params.to_dict())
    from app import components, session, sidebar

    first.ready.set()
    session.begin()
    components.follow_theme()
    ink, primary = {"light": ("#1E1B24", "#A3195B"), "dark": ("#F0EDF5", "#CC3A82")}[session.theme()]  # of config.toml
    st.html(f"<style>:root {{ --selected-text: {ink}; --primary: {primary}; }}</style>")
    sidebar.draw(page.url_path)
    session.publish()  # a page that has nothing to show yet stops the script: after `st.stop` nothing gets into the URL
    if st.session_state.link_problem:
        components.warning(st.session_state.link_problem, ":material/link_off:")
    if meanwhile is not None:
        meanwhile.empty()
    page.run()
    session.publish()
    if session.ended_meanwhile():
        st.rerun()


st.set_page_config(page_title="ROSE Explorer", page_icon=Path(__file__).with_name("icon.svg"), layout="wide")
st.html(STYLE)
st.html(PRODUCT + HISTORY + GROUPS + KEYS + SAVED, unsafe_allow_javascript=True)
draw()
