"use strict";
// Picture and heatmap, side by side until here, are laid over each other with a slider between them.
function slide(root) {
  for (const pair of root.querySelectorAll(".pair:not(.sliding)")) {
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 0.5, value: 50 });
    slider.setAttribute("aria-label", "Boundary between the picture on the left and the heatmap on the right");
    const move = () => pair.style.setProperty("--at", slider.value + "%");
    slider.addEventListener("input", move);
    const knob = document.createElement("span");
    knob.className = "knob";
    pair.append(slider, knob);
    pair.classList.add("sliding");
    move();
  }
}
slide(document);
// Columns of the index sort at a click; what has no value stays at the end.
const index = document.getElementById("index");
for (const head of index ? index.querySelectorAll("th[data-sort]") : []) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
    const number = head.dataset.sort === "number";
    const value = (row) => row.cells[head.cellIndex].dataset.value;
    const order = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      return down * (number ? a - b : a.localeCompare(b));
    };
    const rows = [...index.tBodies[0].rows].sort((a, b) => order(value(a), value(b)));
    index.tBodies[0].append(...rows);
    for (const other of index.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
  });
}
