// Tables are sorted by a click on a column's head: numbers from the largest on, names from the first on.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === (column ? "descending" : "ascending") ? !column : !!column;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = (row) => (column ? Number(row.cells[column].dataset.key) : row.cells[0].dataset.key);
      const order = (a, b) => (column ? key(a) - key(b) : key(a).localeCompare(key(b)));
      const rows = [...table.tBodies[0].rows].sort((a, b) => (falling ? order(b, a) : order(a, b)));
      table.tBodies[0].replaceChildren(...rows);
    });
  });
}
