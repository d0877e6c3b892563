// What all pages share; Streamlit runs this again at every visit, and only the first run counts.
if (!window.pageShared) {
  window.pageShared = true;

  // Streamlit (1.67) enters every change of the address into the browser's history: several at each visit of a page, as it
  // clears the address and the page writes into it again. Back should return to the page before,
  // or undo the choice of a layer. Other changes of the address, and pages that redirect, are not entered.
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
