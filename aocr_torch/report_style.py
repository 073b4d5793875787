"""Style and script of the report page; the state of its filters is the page's address, `report.html#search=rue`."""

STYLE = """
:root { --paper: #fff; --ink: #1d2430; --faint: #667085; --line: #e1e5ec; --soft: #f4f6f9; --blue: #2f6fdb;
  --bad: #c62828; --bad-soft: #fde7e5; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181f; --ink: #e6e9ef; --faint: #98a2b3; --line: #2c3440;
  --soft: #1d232d; --blue: #6ea1ff; --bad: #ff8a80; --bad-soft: #4a1f1f; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 1180px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .2rem 0 .8rem; } h2 { font-size: 1.15rem; margin: 1.8rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; } p { margin: .3rem 0 .7rem; } a { color: var(--blue); }
small, em, .facts dt { color: var(--faint); font-size: .85rem; }
bdi, .text, td { overflow-wrap: anywhere; } bdi, .text button, del { white-space: pre-wrap; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: .6rem 1.2rem; margin: 0;
  padding: .8rem 1rem; background: var(--soft); border-radius: 8px; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 1.5rem; overflow-wrap: anywhere; }
.notes { margin-top: .8rem; border-left: 3px solid #e0a100; padding-left: .8rem; overflow-wrap: anywhere; }
.headline { font-size: 1.1rem; margin-top: 1.4rem; } .headline strong { font-size: 2.2rem; margin-right: .2rem; }
.groups { columns: 2 420px; column-gap: 2.5rem; }
.groups > section { break-inside: avoid; padding-top: .1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--faint); font-size: .8rem; }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.groups td, .groups th, .measures td:nth-child(n + 2) { white-space: nowrap; }
.groups td:last-child { width: 45%; min-width: 90px; padding-right: 0; vertical-align: middle; }
.measures small { display: block; }
.confusions { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 0 1.5rem;
  padding: 0; list-style: none; }
.confusions li { display: grid; grid-template-columns: 1fr auto 7.6rem; gap: .6rem; align-items: baseline;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
.confusions a { text-decoration: none; white-space: nowrap; }
.confusions small { text-align: right; white-space: nowrap; }
.glyph { font-size: 1.1rem; font-weight: 600; }
.bar { position: relative; height: .8rem; background: var(--soft); border-radius: 3px; }
.bar b { position: absolute; inset: 0 auto 0 0; background: var(--blue); opacity: .75; border-radius: 3px; }
.bar u { position: absolute; top: calc(50% - 1px); height: 2px; background: var(--ink); }
.bar i { position: absolute; top: -3px; bottom: -3px; width: 3px; margin-left: -1px; background: #e0a100; }
#filter { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: .5rem; align-items: center;
  padding: .6rem 0; background: var(--paper); border-bottom: 1px solid var(--line); }
#filter input, #filter select, #more, #more_filters a { font: inherit; font-size: 16px; padding: .35rem .6rem;
  color: inherit; background: var(--soft); border: 1px solid var(--line); border-radius: 6px; }
#filter input { flex: 1 1 13rem; min-width: 0; } #filter select { flex: 0 1 auto; min-width: 0; }
#more_filters { display: contents; } #more_filters a { text-decoration: none; font-size: .85rem; }
#count, article output { color: var(--faint); font-size: .85rem; margin-left: auto; } #more { margin: .8rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 1rem; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .7rem; min-width: 0; }
article[hidden] { display: none; }
article header { display: flex; gap: .6rem; align-items: baseline; flex-wrap: wrap; margin-bottom: .5rem; }
.tag { font-size: .75rem; padding: .05rem .5rem; border-radius: 99px; background: var(--soft); }
.views { display: grid; grid-template-columns: repeat(var(--views), 1fr); gap: 2px;
  max-width: calc(var(--views) * 240px); cursor: pointer; }
.views span { position: relative; aspect-ratio: var(--ratio); }
.views img { width: 100%; height: 100%; display: block; }
.views i { position: absolute; inset: 0; background-image: var(--heat); background-repeat: no-repeat;
  background-size: calc(var(--views) * 100%) calc((var(--rows) + 1) * 100%);
  background-position: calc(var(--view) * 100% / max(var(--views) - 1, 1))
    calc(var(--number, 0) * 100% / max(var(--rows), 1)); print-color-adjust: exact; }
article.plain .views i { display: none; }
article dl { display: grid; grid-template-columns: auto 1fr; gap: .2rem .8rem; margin: .6rem 0 0; }
article dt { color: var(--faint); font-size: .85rem; } article dd { margin: 0; font-size: 1.05rem; }
.text button, .text del { font: inherit; padding: .05rem .12rem; margin: 0 1px 2px 0; border: 0; border-radius: 3px;
  min-width: .7em; color: inherit; background: var(--soft); cursor: pointer; }
.text button.wrong { background: var(--bad-soft); color: var(--bad); font-weight: 600; }
.text button[aria-pressed=true] { outline: 2px solid var(--blue); }
.text del { color: var(--bad); background: none; cursor: default; }
.records td:nth-child(2), .records td:nth-child(3) { white-space: pre-wrap; }
.records tr.wrong td:nth-child(3) { color: var(--bad); }
@media (max-width: 600px) {
  .groups { font-size: .85rem; } .groups th, .groups td { padding-right: .45rem; }
  .groups td:last-child { min-width: 60px; }
  .views { grid-template-columns: repeat(var(--narrow), 1fr); }
  .measures thead { display: none; }
  .measures tr { display: grid; grid-template-columns: auto 1fr; gap: 0 .8rem; border-bottom: 1px solid var(--line); }
  .measures td { border: 0; padding: .1rem 0; } .measures td:first-child { grid-column: 1 / -1; }
  .text button { padding: .2rem .4rem; margin: 0 2px 4px 0; }
  .records thead { display: none; }
  .records tr { display: grid; grid-template-columns: 1fr auto auto; gap: 0 .8rem;
    border-bottom: 1px solid var(--line); }
  .records td { border: 0; padding: .1rem 0; }
  .records td:first-child { order: 3; color: var(--faint); font-size: .8rem; }
  .records td:nth-child(2), .records td:nth-child(3) { grid-column: 1 / -1; }
}
"""

SCRIPT = """
"use strict";
const rows = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filter"), table = document.getElementById("rows");
const more = document.getElementById("more"), chips = document.getElementById("more_filters");
const PAGE = 200;
let shown = PAGE;
const orders = {sure: (a, b) => b[3] - a[3], unsure: (a, b) => a[3] - b[3], worst: (a, b) => b[4] - a[4]};

let wanted = new URLSearchParams(location.hash.slice(1));

function matcher() {
  const search = (wanted.get("search") || "").toLowerCase(), show = wanted.get("show");
  const number = name => wanted.has(name) ? Number(wanted.get(name)) : null;
  const [length, low, high, confusion] = ["length", "low", "high", "confusion"].map(number);
  return ([name, label, text, confidence, edits, confusions]) =>
    (!search || [name, label, text].some(each => each.toLowerCase().includes(search)))
    && (!show || (show === "right") === (label === text))
    && (length === null || [...label].length === length)
    && (low === null || confidence >= low) && (high === null || confidence < high || high >= 1)
    && (confusion === null || confusions.includes(confusion));
}

function cell(text) {
  const td = document.createElement("td"), bdi = document.createElement("bdi");
  bdi.textContent = text;
  td.append(bdi);
  return td;
}

function line(row) {
  const tr = document.createElement("tr");
  if (row[1] !== row[2]) tr.className = "wrong";
  tr.append(...[row[0], row[1], row[2], row[3].toFixed(3), row[4]].map(cell));
  return tr;
}

function apply() {
  const found = rows.filter(matcher()), kept = new Set(found);
  if (orders[wanted.get("sort")]) found.sort(orders[wanted.get("sort")]);
  for (const name of ["search", "show", "sort"])
    if (form.elements[name].value !== (wanted.get(name) || "")) form.elements[name].value = wanted.get(name) || "";
  chips.replaceChildren(...["length", "low", "high", "confusion"].filter(name => wanted.has(name)).map(name => {
    const chip = document.createElement("a"), rest = new URLSearchParams(wanted);
    rest.delete(name);
    chip.href = "#" + rest;
    chip.textContent = ({low: "confidence ≥", high: "confidence <"}[name] || name) + " " + wanted.get(name) + " ×";
    return chip;
  }));
  let pictures = 0;
  for (const card of document.querySelectorAll("article")) {
    card.hidden = !kept.has(rows[card.dataset.row]);
    pictures += !card.hidden;
  }
  table.replaceChildren(...found.slice(0, shown).map(line));
  more.hidden = found.length <= shown;
  document.getElementById("count").textContent = `${found.length} of ${rows.length} records, ${pictures} with pictures`;
}

form.addEventListener("input", () => {
  for (const name of ["search", "show", "sort"])
    form.elements[name].value ? wanted.set(name, form.elements[name].value) : wanted.delete(name);
  try { history.replaceState(null, "", "#" + wanted); } catch { /* a preview in a frame has no address */ }
  shown = PAGE;
  apply();
});
form.addEventListener("submit", event => event.preventDefault());
more.addEventListener("click", () => { shown += 5 * PAGE; apply(); });
window.addEventListener("hashchange", () => {
  wanted = new URLSearchParams(location.hash.slice(1));
  shown = PAGE;
  apply();
  document.getElementById("records").scrollIntoView();
});
document.addEventListener("click", event => {
  const card = event.target.closest("article"), button = event.target.closest("button[data-number]");
  if (!card || !(button || event.target.closest(".views"))) return;
  const was = card.querySelector("[aria-pressed=true]");
  if (was) was.removeAttribute("aria-pressed");
  const chosen = button && button !== was;
  if (chosen) button.setAttribute("aria-pressed", "true");
  card.querySelector("output").textContent = chosen ? `${button.textContent} ${button.title}` : "";
  card.style.setProperty("--number", chosen ? button.dataset.number : 0);
  card.classList.toggle("plain", !button && !was && !card.classList.contains("plain"));
});
apply();
"""
