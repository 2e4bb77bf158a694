// Sorts a table by the column whose heading is clicked, or on which Enter is pressed: rising, then falling.
// Cells without a number stand last. Without this script the tables stay in their order.
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
