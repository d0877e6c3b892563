// The columns of a layer as they will be visited, and the share of its weights that each block gives up: both are
// dragged. A click chooses a block, a drag over columns chooses these, a drag of what is chosen moves it. Arrow keys move
// what is chosen and change the share of its block, Tab alone leaves.
const TALL = 118, GAP = 26, LOW = 84;

export default function ({data, parentElement, setTriggerValue}) {
  const canvas = parentElement.querySelector("canvas");
  const state = (canvas.state ??= {chosen: null});
  const seen = JSON.stringify([data.columns, data.shares, data.layer]);
  if (state.seen !== seen || state.ink !== data.ink.text) {
    const kept = state.layer === data.layer ? state.chosen : null;
    Object.assign(state, {seen, layer: data.layer, ink: data.ink.text, chosen: kept, columns: [...data.columns],
      shares: [...data.shares], prices: [...data.prices], colours: [...data.colours]});
  }
  const count = data.columns.length, unit = data.unit;
  const starts = [0];
  for (const width of data.widths) starts.push(starts.at(-1) + width);
  const blockOf = (column) => Math.max(0, Math.min(data.widths.length - 1, starts.findIndex((s) => s > column) - 1));
  const most = (block) => data.widths[block] / count;

  const draw = (caret = null) => {
    const box = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    canvas.width = box.width * ratio;
    canvas.height = box.height * ratio;
    const c = canvas.getContext("2d"), step = box.width / count;
    c.scale(ratio, ratio);
    c.font = "14px 'Source Sans', sans-serif";
    const low = Math.min(...state.prices), high = Math.max(...state.prices) || 1;
    state.prices.forEach((price, at) => {
      const tall = 8 + (TALL - 8) * (price - low) / (high - low || 1);
      c.fillStyle = state.colours[at];
      c.fillRect(at * step, TALL - tall, Math.max(step, 0.6), tall);
    });
    if (state.chosen) {
      c.strokeStyle = data.ink.mark;
      c.lineWidth = 3;
      c.strokeRect(state.chosen[0] * step, 1.5, (state.chosen[1] - state.chosen[0]) * step, TALL - 1.5);
    }
    if (caret !== null) {
      c.fillStyle = data.ink.mark;
      c.fillRect(caret * step - 2, 0, 4, TALL + 8);
    }
    const foot = TALL + GAP + LOW;
    c.lineWidth = 1;
    data.widths.forEach((width, block) => {
      const left = starts[block] * step, wide = width * step;
      c.strokeStyle = data.ink.text;
      c.strokeRect(left + 0.5, TALL + 0.5, wide, 6);
      c.fillStyle = data.ink.text;
      if (wide > 50) c.fillText(data.names[block], left + 4, TALL + GAP - 5);
      const part = state.shares[block] / most(block), tall = LOW * part;
      c.fillStyle = data.ink.bar;
      c.globalAlpha = 0.75;
      c.fillRect(left + 3, foot - tall, wide - 6, tall);
      c.globalAlpha = 1;
      c.fillStyle = data.ink.text;
      if (wide > 46) c.fillText(`${(100 * part).toFixed(0)} %`, left + 8, foot - 6);
    });
    c.strokeStyle = data.ink.text;
    c.setLineDash([5, 4]);
    c.beginPath();
    c.moveTo(0, foot - LOW * data.ratio);
    c.lineTo(box.width, foot - LOW * data.ratio);
    c.stroke();
    c.setLineDash([]);
  };

  const sendLater = (name, value) => {
    clearTimeout(state.timer);
    state.timer = setTimeout(() => setTriggerValue(name, value), 250);
  };
  const move = (to, later) => {  // what is chosen goes before the column now at `to`
    const [first, end] = state.chosen;
    const gap = Math.round(to / unit) * unit;
    if (gap >= first && gap <= end) return draw();
    for (const name of ["columns", "prices", "colours"]) {
      const taken = state[name].splice(first, end - first);
      state[name].splice(gap > first ? gap - (end - first) : gap, 0, ...taken);
    }
    const at = gap > first ? gap - (end - first) : gap;
    state.chosen = [at, at + end - first];
    draw();
    (later ? sendLater : setTriggerValue)("moved", [...state.columns]);
  };
  const give = (block, share) => {  // and the others together keep the sparsity
    const limited = Math.max(0, Math.min(most(block), share)), others = state.shares.map((_, b) => b !== block);
    const sum = (keep) => state.shares.reduce((total, s, b) => total + (keep(b) ? s : 0), 0);
    let wanted = data.ratio - limited;
    const room = data.widths.reduce((total, _, b) => total + (others[b] ? most(b) : 0), 0);
    if (wanted < 0 || wanted > room) wanted = Math.max(0, Math.min(room, wanted));
    state.shares[block] = data.ratio - wanted;
    for (let round = 0; round < 20; round++) {
      const off = wanted - sum((b) => others[b]);
      if (Math.abs(off) < 1e-9) break;
      const free = state.shares.map((s, b) => others[b] ? (off > 0 ? most(b) - s : s) : 0);
      const total = free.reduce((a, b) => a + b, 0) || 1;
      state.shares = state.shares.map((s, b) => s + off * free[b] / total);
    }
    draw();
  };

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return {column: Math.max(0, Math.min(count, (event.clientX - box.left) / box.width * count)), y: event.clientY - box.top};
  };
  canvas.onpointerdown = (event) => {
    const {column, y} = place(event), at = Math.min(count - 1, Math.floor(column));
    canvas.setPointerCapture(event.pointerId);
    const inside = state.chosen && at >= state.chosen[0] && at < state.chosen[1];
    state.drag = y > TALL + 8 ? (data.own ? {kind: "share", block: blockOf(at)} : null)
      : {kind: inside ? "move" : "choose", from: at, moved: false};
  };
  canvas.onpointermove = (event) => {
    const drag = state.drag, {column, y} = place(event);
    if (!drag) return;
    if (drag.kind === "share") return give(drag.block, most(drag.block) * (TALL + GAP + LOW - y) / LOW);
    drag.moved ||= Math.abs(column - drag.from) > count / 200;
    if (!drag.moved) return;
    if (drag.kind === "move") return draw(Math.round(column / unit) * unit);
    const ends = [drag.from, column].sort((a, b) => a - b);
    state.chosen = [Math.floor(ends[0] / unit) * unit, Math.min(count, Math.ceil(ends[1] / unit) * unit)];
    draw();
  };
  canvas.onpointerup = (event) => {
    const drag = state.drag, {column} = place(event);
    state.drag = null;
    if (!drag) return;
    if (drag.kind === "share") return setTriggerValue("shared", [...state.shares]);
    if (drag.moved && drag.kind === "move") return move(column, false);
    if (!drag.moved) state.chosen = [starts[blockOf(drag.from)], starts[blockOf(drag.from) + 1]];
    draw();
  };
  canvas.onkeydown = (event) => {
    state.chosen ??= [0, starts[1]];
    const [first, end] = state.chosen, block = blockOf(first), by = event.shiftKey ? data.widths[block] : unit;
    const ways = {ArrowLeft: () => move(Math.max(0, first - by), true), ArrowRight: () => move(Math.min(count, end + by), true),
      Home: () => move(0, true), End: () => move(count, true)};
    for (const [key, up] of [["ArrowUp", 1], ["ArrowDown", -1]]) ways[key] = () => {
      if (!data.own) return;
      give(block, state.shares[block] + up * 0.02 * most(block));
      sendLater("shared", [...state.shares]);
    };
    for (const [key, other] of [["PageDown", block + 1], ["PageUp", block - 1]]) ways[key] = () => {
      const next = Math.max(0, Math.min(data.widths.length - 1, other));
      state.chosen = [starts[next], starts[next + 1]];
      draw();
    };
    if (!ways[event.key]) return;
    ways[event.key]();
    event.preventDefault();
    event.stopPropagation();
  };
  canvas.setAttribute("aria-label", data.says);
  const watcher = new ResizeObserver(() => draw());
  watcher.observe(canvas);
  draw();
  return () => watcher.disconnect();
}
