// Page Down and Page Up are what a presenter's clicker sends. Arrows and space belong to a focused slider or text field.
// WIDTH and HEIGHT are replaced by those of projector.py.
(() => {
  const page = document.querySelector("[data-testid=stMain]");
  if (document.querySelector(".st-key-lesson-projector-on")) page?.scrollTo(0, 0);  // it begins at the top
  const zoom = () => document.documentElement.style.setProperty(
    "--lesson-zoom", Math.max(1, Math.min(innerWidth / WIDTH, innerHeight / HEIGHT)));
  zoom();
  if (window.lessonKeys) return;
  window.lessonKeys = true;
  addEventListener("resize", zoom);
  const press = (...keys) => {
    for (const key of keys) {
      const button = document.querySelector(`.st-key-${key} button:not([disabled])`);
      if (button) { button.click(); return true; }
    }
    return false;
  };
  const typing = (element, key) => element?.matches(
    `input:not([type=radio]${key === " " ? "" : ", [type=checkbox]"}), textarea, [role=slider], .board *`);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !document.querySelector(".st-key-lesson-next")) return;
    const projector = document.querySelector(".st-key-lesson-projector-on");
    let done = false;
    if (event.key === "PageDown") done = press("lesson-next") || true;
    else if (event.key === "PageUp") done = press("lesson-previous") || true;
    else if (!projector || typing(document.activeElement, event.key)) return;
    else if (event.key === "ArrowRight") done = press("lesson-next");
    else if (event.key === "ArrowLeft") done = press("lesson-previous");
    else if (event.key === " ") done = press("lesson-reveal", "lesson-next");
    else if (event.key === "Escape") done = press("lesson-leave");
    if (done) { event.preventDefault(); event.stopImmediatePropagation(); }
  }, true);
})();
