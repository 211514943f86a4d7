"""What makes the page readable and sortable; both become part of it."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --faint: #666; --line: #ddd; --band: #f5f5f5;
  --proven: #00694f; --placebo: #8a5a00; --worse: #a83a00; --unproven: #555; --link: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #161616; --faint: #a5a5a5; --line: #3a3a3a;
  --band: #222; --proven: #4fd3ad; --placebo: #f0b84d; --worse: #ff9166; --unproven: #b5b5b5; --link: #8ab4f8; } }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
thead th.number { white-space: normal; min-width: 4.5rem; overflow-wrap: normal; }
.word { text-align: left; } td.verdict { white-space: normal; min-width: 15rem; }
td:first-child, th:first-child { font-weight: 600; }
td:first-child, th:first-child, .stays { position: sticky; left: 0; background: var(--paper); }
.stays.last { box-shadow: inset -1px 0 0 var(--line); }
tr.first td { border-top: 1px solid var(--line); }
tr.plain td, tr.plain td:first-child, tr.plain td.stays { background: var(--band); }
tr.control td { color: var(--faint); } tr.control td.arm { padding-left: 1.6rem; }
.mark { font-weight: 600; } .proven { color: var(--proven); } .placebo { color: var(--placebo); }
.worse { color: var(--worse); } .unproven { color: var(--unproven); }
.pictures { margin-top: 1rem; display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; flex: 1 1 30rem; max-width: 46rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
@media (max-width: 40rem) { body { padding: .6rem; } table { font-size: .8rem; } th, td { padding: .3rem .4rem; }
  td.verdict { min-width: 11rem; } tr.control td.arm { padding-left: .9rem; } }
ul { padding-left: 1.2rem; } li { margin: .3rem 0; } code { font-size: .85rem; }
.overview { border: 1px solid var(--line); border-radius: 6px; padding: .6rem 1rem; }
.overview p { margin: .3rem 0; } progress { width: 100%; height: 1rem; accent-color: var(--proven); }
.faint { color: var(--faint); } .done { color: var(--proven); } .failed { color: var(--worse); }
.running { color: var(--placebo); } a { color: var(--link); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
th button::after { content: " \\2195"; color: var(--faint); font-weight: 400; }
th[aria-sort=ascending] button::after { content: " \\25B2"; color: inherit; }
th[aria-sort=descending] button::after { content: " \\25BC"; color: inherit; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table.sorted tr.first td { border-top: 0; } table.sorted tr.control td.arm { padding-left: .6rem; }
.tall { max-height: 70vh; overflow-y: auto; }
.tall thead th { position: sticky; top: 0; background: var(--paper); z-index: 1; }
.tall thead th:first-child, .tall thead th.stays { z-index: 2; }
"""

# A click on a head sorts: the best first, then the other way round, then as it was. What is sorted, the place in the
# table and the focus outlast the page's reload.
SCRIPT = """
const tables = [...document.querySelectorAll("table")], key = "tables of " + location.pathname;
const headsOf = table => [...table.tHead.rows[0].cells];
const directionOf = head => head.getAttribute("aria-sort");

function numberOf(text) {
  const found = text.replace(/,/g, "").match(/[-+]?[0-9]*\\.?[0-9]+(e[-+]?[0-9]+)?/i);
  return found ? parseFloat(found[0]) : NaN;
}

function orderBy(column, direction, numbers) {
  const textOf = row => row.cells[column].textContent.trim(), sign = direction === "ascending" ? 1 : -1;
  if (direction === "none") return (a, b) => a.dataset.place - b.dataset.place;
  if (!numbers) return (a, b) => sign * textOf(a).localeCompare(textOf(b), undefined, {numeric: true});
  return (a, b) => {
    const x = numberOf(textOf(a)), y = numberOf(textOf(b));
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
  };
}

function sort(table, column, direction) {
  const heads = headsOf(table), body = table.tBodies[0], numbers = heads[column].classList.contains("number");
  heads.forEach((head, index) => head.setAttribute("aria-sort", index === column ? direction : "none"));
  table.classList.toggle("sorted", direction !== "none");
  body.append(...[...body.rows].sort(orderBy(column, direction, numbers)));
}

// The first columns, up to that of the arm, stay where they are while the others scroll, as far as there is room.
function pin(table) {
  const widths = headsOf(table).map(head => head.offsetWidth), room = 0.6 * table.parentElement.clientWidth;
  const last = headsOf(table).findIndex(head => head.classList.contains("arm"));
  const lefts = widths.map((_, column) => widths.slice(0, column).reduce((sum, width) => sum + width, 0));
  const stays = column => column === 0 || (column <= last && lefts[column] + widths[column] <= room);
  [...table.rows].forEach(row => [...row.cells].slice(0, last + 1).forEach((cell, column) => {
    cell.classList.toggle("stays", stays(column));
    cell.classList.toggle("last", stays(column) && !(column < last && stays(column + 1)));
    cell.style.left = stays(column) ? lefts[column] + "px" : "";
  }));
}

tables.forEach(table => {
  pin(table);
  [...table.tBodies[0].rows].forEach((row, index) => { row.dataset.place = index; });
  headsOf(table).forEach((head, column) => {
    const turns = ["ascending", "descending"];
    if (head.classList.contains("number")) turns.reverse();
    head.firstElementChild.addEventListener("click", () => {
      sort(table, column, [...turns, "none"][turns.indexOf(directionOf(head)) + 1]);
    });
  });
});

addEventListener("resize", () => tables.forEach(pin));

addEventListener("pagehide", () => {
  const kept = {};
  tables.forEach(table => {
    const heads = headsOf(table), column = heads.findIndex(head => directionOf(head) !== "none");
    const focus = heads.findIndex(head => head.contains(document.activeElement)), box = table.parentElement;
    const direction = column < 0 ? "none" : directionOf(heads[column]);
    kept[table.dataset.name] = {column, direction, focus, left: box.scrollLeft, top: box.scrollTop};
  });
  try { sessionStorage.setItem(key, JSON.stringify(kept)); } catch (error) { /* the browser forbids it */ }
});

try {
  const kept = JSON.parse(sessionStorage.getItem(key) || "{}");
  tables.forEach(table => {
    const known = kept[table.dataset.name], heads = headsOf(table);
    if (!known) return;
    if (heads[known.column]) sort(table, known.column, known.direction);
    if (heads[known.focus]) heads[known.focus].firstElementChild.focus({preventScroll: true});
    table.parentElement.scrollTo(known.left, known.top);
  });
} catch (error) { /* the browser forbids it */ }
"""
