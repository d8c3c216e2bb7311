"use strict";
(() => {
  const startSorting = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    const order = new Intl.Collator(undefined, { numeric: true });
    const compare = (a, b, numeric) => (numeric ? Number(a) - Number(b) : order.compare(a, b));
    heads.forEach((head, place) => {
      const numeric = head.classList.contains("number");
      head.querySelector(".sort").addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        // Numbers begin with the greatest, names with the first.
        const direction = before === "descending" || (!before && !numeric) ? "ascending" : "descending";
        const sign = direction === "ascending" ? 1 : -1;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", direction);
        const body = table.tBodies[0];
        const value = (row) => row.cells[place].dataset.sort;
        const rows = [...body.rows].sort((a, b) => {
          const [first, second] = [value(a), value(b)];
          if (!first || !second) return Number(!first) - Number(!second); // what is missing comes last
          return sign * compare(first, second, numeric);
        });
        body.append(...rows);
      });
    });
  };

  document.querySelectorAll("table.sortable").forEach(startSorting);

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((each) => { each.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((each) => { each.open = false; }));
})();
