export default ({data, parentElement, setTriggerValue}) => {
  const place = parentElement.querySelector(".board"), text = (value) => value.toFixed(1).replace("-", "−");
  const focused = document.activeElement?.dataset?.column;
  place.replaceChildren();
  const row = (part, name) => {
    const line = place.appendChild(document.createElement(part)).appendChild(document.createElement("tr"));
    line.appendChild(Object.assign(document.createElement("th"), {textContent: name, scope: "row"}));
    return line;
  };
  const cell = (line, at, kind = "td") => {
    const made = line.appendChild(document.createElement(kind));
    if (at % 3 === 0) made.className = "edge";
    return made;
  };
  const move = (column, to) => {
    const order = data.order.filter((other) => other !== column);
    order.splice(Math.min(Math.max(to, 0), order.length), 0, column);
    if (order.join() !== data.order.join()) setTriggerValue("order", order);
  };
  const head = row("thead", "column");
  data.order.forEach((column, at) => {
    const button = cell(head, at, "th").appendChild(document.createElement("button"));
    button.textContent = column;
    button.dataset.column = column;
    button.ariaLabel = `Column ${column}, step ${at + 1}: arrow keys move it`;
    button.onkeydown = (event) => {
      const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (by) { event.preventDefault(); move(column, at + by); }
    };
    button.onpointerdown = (event) => { button.setPointerCapture(event.pointerId); button.classList.add("held"); };
    button.onpointerup = (event) => {
      button.classList.remove("held");
      const centres = [...head.querySelectorAll("button")].map((one) => one.getBoundingClientRect())
        .map((box) => box.left + box.width / 2);
      const others = centres.filter((_, other) => other !== at);
      move(column, others.filter((centre) => centre < event.clientX).length);
    };
    if (String(column) === focused) button.focus();
  });
  data.weights.forEach((weights, output) => {
    const line = row("tbody", `output ${output}`);
    data.order.forEach((column, at) => {
      const shown = cell(line, at), gone = data.removed[output][column];
      if (gone) shown.classList.add("gone");
      const input = shown.appendChild(document.createElement("input"));
      Object.assign(input, {inputMode: "decimal", value: text(weights[column])});
      input.ariaLabel = `Weight of output ${output}, column ${column}`;
      input.onchange = () => {
        const value = Number(input.value.replace("−", "-").replace(",", "."));
        if (Number.isFinite(value)) setTriggerValue("weight", [output, column, value]);
        else input.value = text(weights[column]);
      };
      const after = shown.appendChild(document.createElement("small"));
      after.textContent = gone ? "gone" : `→ ${text(data.after[output][column])}`;
    });
  });
  const prices = row("tfoot", "price d");
  data.prices.forEach((price, at) => { cell(prices, at).textContent = price.toFixed(2); });
};
