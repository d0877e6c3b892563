// What all pages share; Streamlit runs this again at every visit, and only the first run counts.
if (!window.pageShared) {
  window.pageShared = true;

  // Streamlit (1.67) enters every change of the address into the browser's history: several at each visit of a page, as it
  // clears the address and the page writes into it again. Back should return to the page before,
  // or undo the choice of a layer. Other changes of the address, and pages that redirect, are not entered.
  {
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

  // Streamlit 1.67 puts sections into a list without list roles: this gives them the role of named groups.
  {
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

  // Page Down would move a slider with the focus by ten steps; it scrolls the page instead, and on Learn turns lessons.
  addEventListener("keydown", (event) => {
    const way = {PageDown: 1, PageUp: -1}[event.key];
    if (!way || !event.target.matches("input[type=range]") || document.querySelector(".st-key-lesson-next")) return;
    document.querySelector("[data-testid=stMain]").scrollBy(0, 0.9 * way * innerHeight);
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  // The page's font is missing when Plotly (7.1) draws a picture to save: a font of the system takes its place, in which
  // labels are wider than the margins that were measured. The picture is laid out in that font, and as much wider.
  {
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

  // A download button presses the camera of the figure that it names, after telling it the format: Plotly itself is out of
  // reach here.
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.picture");
    if (!button) return;
    const figure = document.querySelector(`.st-key-${button.dataset.figure} .js-plotly-plot`);
    const camera = figure && figure.querySelector('.modebar-btn[data-title^="Download plot"]');
    if (!camera) return;
    const options = figure._context.toImageButtonOptions, usual = options.format;
    options.format = button.dataset.format;
    camera.dispatchEvent(new MouseEvent("click"));  // it does not bubble, so it closes no menu
    setTimeout(() => { options.format = usual; }, 0);
  });
  // Plotly saves by a link in the page, which it presses: no press outside the menu, which stays open.
  document.body.addEventListener("click", (event) => {
    if (!event.isTrusted && event.target.matches("a[download]")) event.stopPropagation();
  });
}
