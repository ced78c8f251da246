// Comfort only: the page is complete without it. Tables of class `sortable` get sorting headings and a filter.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const number = (text) => {
    const found = text.replace(/,/g, "").match(/^-?(inf|nan|[\d.]+(e[+-]?\d+)?)/);
    return !found ? null : /inf|nan/.test(found[1]) ? Infinity : Number(found[0]);
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.classList.contains("n") !== /ending$/.test(heading.ariaSort || "")
        ? heading.ariaSort !== "descending" : heading.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].textContent;
      const compare = (x, y) => {
        const [a, b] = [number(key(x)), number(key(y))];
        if (a !== null && b !== null) return a - b;
        if (a !== null || b !== null) return a === null ? -1 : 1;
        return key(x).localeCompare(key(y), "en", { numeric: true });
      };
      body.append(...[...rows].sort((x, y) => (down ? compare(y, x) : compare(x, y))));
    });
  });
  if (rows.length < 12) continue;
  const tools = document.createElement("div"), label = document.createElement("label");
  const search = document.createElement("input"), count = document.createElement("span");
  tools.className = "tools";
  search.type = "search";
  count.setAttribute("role", "status");
  label.append("Show rows with ", search);
  tools.append(label);
  const update = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted) || (wrong.checked && !row.querySelector(".wrong"));
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
  };
  const wrong = document.createElement("input"), only = document.createElement("label");
  wrong.type = "checkbox";
  only.append(wrong, " above the limit only");
  if (table.querySelector(".wrong")) tools.append(only);
  tools.append(count);
  table.parentElement.before(tools);
  search.addEventListener("input", update);
  wrong.addEventListener("change", update);
}
