"""The player of sweeps, in the lessons and in the order lab: play and pause, block by block, position and speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from app import components
from app.figures.style import Drawing

SPEEDS = {1.0: "1×", 0.5: "½×", 2.0: "2×", 4.0: "4×"}
TICK = 1.2  # seconds a block is shown while a sweep plays at speed 1
# Icons alone on screen; those who cannot see them hear what they do.
ICONS = "<style>{} {{ position: absolute; width: 1px; overflow: hidden; clip-path: inset(50%); }}</style>"


@dataclass(frozen=True)
class Player:
    """A player; its widgets and its state have names that begin with `name`."""

    name: str
    first: int = 0  # pruned blocks to begin with

    def live(self, draw: Callable[[], None]) -> None:
        """Draws the part of a page that holds the player, again and again while it plays."""
        timer = self._timer()

        def body() -> None:
            draw()
            if self._timer() != timer:
                st.rerun()  # the whole page: the timer is set, or taken away, there

        components.live(body, timer)

    def step(self, blocks: int) -> int:
        """Blocks pruned now; one more where the sweep plays and the time of a block has passed."""
        state = st.session_state
        # The step of a link: the widget that is bound to it is drawn only after the step has been used.
        linked = st.query_params.get(self._key("step"), str(self.first))
        step = min(state.get(self._key("at"), int(linked) if linked.isdecimal() else self.first), blocks)
        if self.playing and time.monotonic() - state[self._key("ticked")] >= 0.8 * self._tick():
            step, state[self._key("ticked")] = min(step + 1, blocks), time.monotonic()
            if step == blocks:
                state[self._key("playing")] = False
        state[self._key("at")] = state[self._key("step")] = step
        return step

    def rewind(self) -> None:
        """Back to the beginning, where there is another sweep to play."""
        st.session_state[self._key("playing")], st.session_state[self._key("at")] = False, 0

    @property
    def playing(self) -> bool:
        return bool(st.session_state.get(self._key("playing")))

    def controls(self, blocks: int, film: Callable[[], Drawing]) -> None:
        """The row of widgets; `film` is the whole sweep as an animation, for those who take it along."""
        icons = ", ".join(f".st-key-{self.name}-{way} button p" for way in ("back", "forth", "animation"))
        step = st.session_state[self._key("at")]
        label, icon = ("Pause", "pause") if self.playing else ("Play", "play_arrow")
        with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall"):
            st.html(ICONS.format(icons))
            st.button(
                label,
                icon=f":material/{icon}:",
                key=f"{self.name}-play",
                on_click=self._play,
                args=(blocks,),
                width=88,
            )
            for way, by, end in (("back", -1, 0), ("forth", 1, blocks)):
                st.button(
                    f"One block {'back' if by < 0 else 'forward'}",
                    icon=f":material/chevron_{'left' if by < 0 else 'right'}:",
                    key=f"{self.name}-{way}",
                    on_click=self._go,
                    args=(by, blocks),
                    disabled=step == end,
                    width=42,
                )
            st.slider("Blocks pruned", 0, blocks, key=self._key("step"), on_change=self._moved, bind=components.URL)
            st.selectbox("Speed", list(SPEEDS), format_func=SPEEDS.__getitem__, key=self._key("speed"), width=76)
            st.download_button(
                "Download as a film",
                lambda: components.as_html(film()),
                "sweep.html",
                icon=":material/download:",
                on_click="ignore",
                key=f"{self.name}-animation",
                help="The whole sweep as one HTML file that plays in any browser, without a network",
                width=42,
            )

    def _key(self, part: str) -> str:
        return f"{self.name}_{part}"

    def _tick(self) -> float:
        """Seconds a block is shown at the chosen speed."""
        return TICK / (st.session_state.get(self._key("speed")) or 1.0)

    def _timer(self) -> float | None:
        return self._tick() if self.playing else None

    def _play(self, blocks: int) -> None:
        state, begins = st.session_state, not self.playing
        state[self._key("playing")], state[self._key("ticked")] = begins, time.monotonic() if begins else 0.0
        if begins and state.get(self._key("at"), 0) >= blocks:
            state[self._key("at")] = 0

    def _moved(self) -> None:
        """The slider has been moved by hand, which ends the play, or a busy browser repeats what it showed before."""
        state = st.session_state
        at, step = state[self._key("at")], state[self._key("step")]
        is_recent = time.monotonic() - state.get(self._key("ticked"), 0.0) < 5 * TICK
        if not (is_recent and at - 3 < step < at):
            state[self._key("playing")], state[self._key("at")] = False, step

    def _go(self, by: int, blocks: int) -> None:
        state = st.session_state
        at = min(max(state.get(self._key("at"), 0) + by, 0), blocks)
        state[self._key("playing")], state[self._key("at")] = False, at
