// Streamlit (1.67) repaints what is its own and calls this once more, but runs no script.
export default ({data, parentElement, setTriggerValue}) => {
  const shown = getComputedStyle(parentElement).colorScheme;
  const asked = parentElement.dataset.asked;
  parentElement.dataset.asked = shown;  // asked for once, whatever comes of it
  if (shown !== data.drawn && shown !== asked) setTriggerValue("changed", shown);
}
