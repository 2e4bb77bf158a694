// Sorts a table by the column whose heading is clicked, or on which Enter is pressed: rising, then falling.
// Cells without a number stand last. Shows the values of curves under the pointer, or by the arrow keys, and saves figures.
// Without this script the tables stay in their order, and figures are pictures.
function key(row, column) {
  const cell = row.cells[column];
  const text = ((cell && cell.querySelector(".value")) || cell || row).textContent.trim();
  const number = parseFloat(text.replace(/[≈,\s]/g, "").replace("−", "-"));
  return Number.isNaN(number) ? text : number;
}
function compare(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
}
function sortBy(heading) {
  const rising = heading.getAttribute("aria-sort") !== "ascending";
  const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
  table.querySelectorAll("thead th").forEach((other) => other.setAttribute("aria-sort", "none"));
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const numbers = [], words = [];
  for (const row of body.rows) (typeof key(row, column) === "number" ? numbers : words).push(row);
  for (const rows of [numbers, words]) {
    rows.sort((a, b) => (rising ? 1 : -1) * compare(key(a, column), key(b, column)));
    body.append(...rows);
  }
}
for (const heading of document.querySelectorAll("thead th")) {
  if (heading.closest("table").tBodies[0].rows.length < 2) continue;
  heading.tabIndex = 0;
  heading.setAttribute("aria-sort", "none");
  heading.title = "sort by this column";
  heading.addEventListener("click", () => sortBy(heading));
  heading.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sortBy(heading);
  });
}
function readOff(figure) {
  const data = JSON.parse(figure.dataset.readings), [left, right] = data.ends, last = data.x.length - 1;
  const image = figure.querySelector("img"), box = document.createElement("div");
  let i = 0;
  box.className = "readout";
  box.setAttribute("aria-live", "polite");
  box.hidden = true;
  figure.append(box);
  figure.tabIndex = 0;
  const show = (index, pointerX, pointerY) => {
    i = Math.max(0, Math.min(last, index));
    const rows = data.curves.map(([name, values]) => `${name}: ${values[i] === null ? "no pairs left" : values[i].toFixed(4)}`);
    box.textContent = [`${data.what.replace(" [%]", "")}: ${data.x[i]} %. ${data.error}:`, ...rows].join("\n");
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect(), room = document.documentElement;
    const x = pointerX + 14 + width <= room.clientWidth ? pointerX + 14 : Math.max(0, pointerX - 14 - width);
    box.style.left = `${x}px`;
    box.style.top = `${Math.max(0, Math.min(pointerY + 14, room.clientHeight - height))}px`;
  };
  image.addEventListener("pointermove", (event) => {
    const place = image.getBoundingClientRect(), share = (event.clientX - place.left) / place.width;
    show(Math.round(((share - left) / (right - left)) * last), event.clientX, event.clientY);
  });
  image.addEventListener("pointerleave", () => { box.hidden = true; });
  figure.addEventListener("blur", () => { box.hidden = true; });
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const place = image.getBoundingClientRect(), next = Math.max(0, Math.min(last, box.hidden ? i : i + step));
    show(next, place.left + place.width * (left + ((right - left) * next) / last), place.top + place.height / 3);
  });
}
document.querySelectorAll("figure[data-readings]").forEach(readOff);
for (const image of document.querySelectorAll("figure img[src^='data:image/svg']")) {
  const link = document.createElement("a"), name = image.closest("figure").querySelector(".name");
  link.textContent = "SVG";
  link.href = image.src;
  link.download = `${image.alt.replace(/[^\w.]+/g, "_")}.svg`;
  link.className = "save";
  link.setAttribute("aria-label", `Save as SVG: ${image.alt}`);
  name.append(" ", link);
}
// on a narrow screen the table comes before the details of the answer
if (window.matchMedia("screen and (max-width: 760px)").matches) {
  document.querySelectorAll(".findings details").forEach((details) => { details.open = false; });
}
