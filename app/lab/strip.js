// The columns of a layer as they will be visited. Each block is a handle below its columns: it is dragged to another
// place, where it snaps between two blocks. Arrow keys move the chosen block, Page Up and Page Down choose another one.
const LEFT = 64, TOP = 26, TALL = 148, HANDLE = 30, FONT = "14px 'Source Sans', sans-serif";

export default function ({data, parentElement, setTriggerValue}) {
  const canvas = parentElement.querySelector("canvas"), state = (canvas.state ??= {chosen: 0});
  const seen = JSON.stringify([data.layer, data.size, data.names, data.widths, data.values]);
  if (state.seen !== seen) {
    if (state.layer !== data.layer || state.size !== data.size) state.chosen = 0;
    Object.assign(state, {seen, layer: data.layer, size: data.size, order: data.widths.map((_, place) => place)});
    state.chosen = Math.min(state.chosen, data.widths.length - 1);
  }
  const first = [0];
  for (const width of data.widths) first.push(first.at(-1) + width);
  const count = first.at(-1), sorted = [...data.values].sort((a, b) => a - b);
  // A column far above all others is cut off, with a mark, or the others could not be compared.
  const usual = sorted[Math.floor(0.995 * (count - 1))], largest = sorted[count - 1];
  const low = data.zero ? 0 : sorted[0], high = largest - low > 1.8 * (usual - low) && usual > low ? low + 1.2 * (usual - low) : largest;
  const rough = (high - low || 1) / 3, power = 10 ** Math.floor(Math.log10(rough));
  const tick = power * [1, 2, 5, 10].find((step) => step * power >= rough);

  const layout = () => {  // [block, left, width], in pixels, as it stands now
    const wide = canvas.getBoundingClientRect().width - LEFT;
    let at = 0;
    return state.order.map((block) => {
      const part = [block, LEFT + at * wide / count, data.widths[block] * wide / count];
      at += data.widths[block];
      return part;
    });
  };
  const handle = (c, block, left, wide, isChosen) => {
    const y = TOP + TALL + 5;
    c.beginPath();
    c.roundRect(left + 1, y, Math.max(2, wide - 2), HANDLE, 6);
    c.fillStyle = isChosen ? data.ink.tint : data.ink.box;
    c.fill();
    c.strokeStyle = isChosen ? data.ink.mark : data.ink.grid;
    c.lineWidth = isChosen ? 2 : 1;
    c.stroke();
    const name = data.names[block].find((text) => text && c.measureText(text).width < wide - 8);
    c.fillStyle = data.ink.text;
    c.textAlign = "center";
    if (name) c.fillText(name, left + wide / 2, y + 20);
  };
  const draw = () => {
    const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1, c = canvas.getContext("2d");
    canvas.width = box.width * ratio;
    canvas.height = box.height * ratio;
    c.scale(ratio, ratio);
    c.font = FONT;
    const height = (value) => TOP + TALL - TALL * Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
    c.fillStyle = data.ink.muted;
    c.textAlign = "left";
    c.fillText(data.axis, 0, 14);
    c.textAlign = "right";
    for (let value = Math.ceil(low / tick) * tick; value <= high + 1e-9; value += tick) {
      const y = Math.round(height(value)) + 0.5, digits = Math.max(0, -Math.floor(Math.log10(tick)));
      c.fillStyle = data.ink.muted;
      c.fillText(value.toFixed(digits), LEFT - 8, y + 5);
      c.fillStyle = data.ink.grid;
      c.fillRect(LEFT, y, box.width - LEFT, 1);
    }
    for (const [block, left, wide] of layout()) {
      const step = wide / data.widths[block];
      for (let k = 0; k < data.widths[block]; k++) {
        const column = first[block] + k, y = height(data.values[column]);
        c.fillStyle = data.marked[column] ? data.ink.accent : data.ink.quiet;
        c.fillRect(left + k * step, y, Math.max(step - 0.15, 0.6), TOP + TALL - y);
        if (data.values[column] > high) c.fillRect(left + k * step - 2, TOP - 5, 5, 3);
      }
    }
    layout().forEach(([block, left, wide], place) => handle(c, block, left, wide, place === state.chosen));
    c.fillStyle = data.ink.muted;
    c.textAlign = "left";
    c.fillText("pruned first", LEFT, TOP + TALL + HANDLE + 24);
    c.textAlign = "right";
    c.fillText("last", box.width - 1, TOP + TALL + HANDLE + 24);
    if (state.drag?.moved) {
      const parts = layout(), [block, , wide] = parts[state.chosen];
      const x = state.drag.gap < parts.length ? parts[state.drag.gap][1] : box.width;
      c.fillStyle = data.ink.mark;
      c.fillRect(Math.min(x, box.width - 2) - 2, TOP, 4, TALL + HANDLE + 8);
      c.globalAlpha = 0.85;
      handle(c, block, state.drag.x - wide / 2, wide, true);
      c.globalAlpha = 1;
    }
  };

  const move = (to) => {  // the chosen block goes before the block that now stands at place `to`
    const from = state.chosen, place = to > from ? to - 1 : to;
    if (place === from) return draw();
    state.order.splice(place, 0, ...state.order.splice(from, 1));
    state.chosen = place;
    draw();
    clearTimeout(state.timer);
    state.timer = setTimeout(() => setTriggerValue("moved", [...state.order]), 120);
  };
  const at = (event) => event.clientX - canvas.getBoundingClientRect().left;
  canvas.onpointerdown = (event) => {
    const x = at(event), place = layout().findIndex(([, left, wide]) => x >= left && x < left + wide);
    if (place < 0) return;
    canvas.setPointerCapture(event.pointerId);
    state.chosen = place;
    state.drag = {from: x, x, gap: place, moved: false};
    draw();
  };
  canvas.onpointermove = (event) => {
    if (!state.drag) return;
    const x = at(event), parts = layout();
    state.drag.x = x;
    state.drag.moved ||= Math.abs(x - state.drag.from) > 6;
    state.drag.gap = parts.filter(([, left, wide]) => left + wide / 2 < x).length;
    draw();
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    const drag = state.drag;
    state.drag = null;
    if (drag?.moved && event.type === "pointerup") move(drag.gap);
    else draw();
  };
  canvas.onkeydown = (event) => {
    const last = state.order.length, chosen = state.chosen;
    const choose = (place) => {
      state.chosen = Math.max(0, Math.min(last - 1, place));
      draw();
    };
    const ways = {ArrowLeft: () => move(Math.max(0, chosen - 1)), ArrowRight: () => move(Math.min(last, chosen + 2)),
      Home: () => move(0), End: () => move(last), PageUp: () => choose(chosen - 1), PageDown: () => choose(chosen + 1)};
    if (!ways[event.key]) return;
    ways[event.key]();
    event.preventDefault();
    event.stopPropagation();
  };
  canvas.setAttribute("aria-label", data.says);
  const watcher = new ResizeObserver(draw);
  watcher.observe(canvas);
  draw();
  return () => watcher.disconnect();
}
