for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const number = head.classList.contains("number");
      const rows = [...body.rows].filter((row) => !row.classList.contains("total"));
      const totals = [...body.rows].filter((row) => row.classList.contains("total"));
      const key = (row) => (number ? row.cells[column].dataset.sort : row.cells[column].textContent);
      const known = rows.filter((row) => key(row));
      const empty = rows.filter((row) => !key(row));
      known.sort((a, b) => (number ? key(a) - key(b) : key(a).localeCompare(key(b), "en", { numeric: true })));
      if (down) known.reverse();
      body.append(...known, ...empty, ...totals);
    });
  });
}
