// Arrows step through the frames of an animation in its HTML file; Plotly itself only plays them.
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
