"""Lessons on a projector: the page fills the screen, and keys turn it wherever the focus is.

Streamlit does not offer this, so a style sheet and a script do it. The script is part of the page (`st.html` with
JavaScript). It catches keys before any widget does and clicks the page's buttons. It does nothing where these are not
on screen.
"""

from pathlib import Path

import streamlit as st

from app.figures.style import Drawing

# The page is laid out for this many pixels; on a projector it is enlarged until it fills the screen.
WIDTH, HEIGHT = 1080, 668
STAGE = 600  # of these, for a lesson
FIGURE, CAPTION, LARGER = 480, 50, 1.2  # of the stage; of a figure for its caption; its text against the page's

ASIDE = '<style>:has(> [class*="st-key-lesson-projector-o"]) { position: absolute; width: 1px; }</style>'
STYLE = """
<style>
[data-testid="stHeader"] { display: none; }
.stApp { zoom: var(--lesson-zoom, 1); }
.stApp .st-key-lesson-text :is(p, li) { font-size: 1.05rem; }
.stApp .st-key-lesson-written :is(p, li) { margin-bottom: 0.5rem; }
[data-testid="stMain"]::before { display: none; }
:has(> :is(.st-key-lesson-text, .st-key-lesson-stage)) {
  --tall: max(600px, 100vh / var(--lesson-zoom, 1) - 76px);
  flex-basis: var(--tall) !important; height: var(--tall) !important;
}
.stMainBlockContainer { padding: 0.6rem 1.5rem 0 !important; max-width: none; }
:has(> .stHtml .product), .st-key-lesson-stage [class*="-downloads"] { display: none; }
</style>
"""

SCRIPT = Path(__file__).with_name("projector.js").read_text(encoding="utf-8")
SCRIPT = SCRIPT.replace("WIDTH", str(WIDTH)).replace("HEIGHT", str(HEIGHT))


def is_on() -> bool:
    return st.query_params.get("projector") == "on"


def turn(on: bool) -> None:
    if on:
        st.query_params.projector = "on"
    else:
        st.query_params.pop("projector", None)


def fit(key: str, drawing: Drawing) -> None:
    """Makes a figure as high as the stage has room, with larger text; a low figure only gets the larger page's text.

    Plotly measures enlarged pixels and is then enlarged once more, so its box is made smaller by the same factor.
    """
    layout, larger = drawing.figure.layout, 1.0
    height = layout.height - layout.meta["freed"]  # its title is text of the page
    if height > STAGE / 2:
        height, larger = FIGURE - CAPTION * bool(drawing.caption), LARGER
        drawing.figure.update_layout(height=height / larger + layout.meta["freed"])
    st.html(
        f"<style>.st-key-{key} {{ height: {height}px; flex: none; }}"
        f".st-key-{key} :is([data-testid=stFullScreenFrame], [data-testid=stPlotlyChart]) {{ overflow: visible; "
        f"height: calc({height / larger**2}px / var(--lesson-zoom)) !important; }}"
        f".st-key-{key} [data-testid=stFullScreenFrame] {{ zoom: {larger}; "
        f"width: calc(100% / {larger} / var(--lesson-zoom)) !important; }}"
        f".st-key-{key} .js-plotly-plot {{ overflow: visible !important; }}</style>"
    )


def draw() -> None:
    """The keys, and on a projector the style sheet."""
    with st.container(key=f"lesson-projector-{'on' if is_on() else 'off'}", height=1, border=False):
        st.html(f"{ASIDE}{STYLE if is_on() else ''}<script>{SCRIPT}</script>", unsafe_allow_javascript=True)


def button() -> None:
    """Turns the projector on, or off again."""
    on = is_on()
    fill = "Fills the window; F11 hides the browser too. Works with arrow keys, space and a presenter's clicker."
    icon = f":material/{'close_fullscreen' if on else 'present_to_all'}:"
    st.button(
        "Leave the projector" if on else "Projector", icon=icon, key="lesson-leave" if on else "lesson-project",
        type="tertiary", on_click=turn, args=(not on,), help="Escape" if on else fill,
    )  # fmt: skip
