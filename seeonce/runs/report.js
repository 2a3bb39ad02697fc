"use strict";
// Works on what the page holds: filters, order, word differences, keys. Every text is set as text.
(() => {
  const byId = (id) => document.getElementById(id);
  const body = byId("rows").tBodies[0];
  const rows = [...body.rows];
  const [search, app, activity, pair, order, differs, failed] = [
    "search", "app", "activity", "pair", "order", "differs", "failed",
  ].map(byId);
  const MAX_CELLS = 1000000; // words of one text times words of the other: beyond, marking takes too long

  for (const image of document.querySelectorAll("img[data-picture]")) {
    image.src = byId("picture-" + image.dataset.picture).src;
  }
  const words = rows.map((row) => row.innerText === undefined ? "" : row.textContent.toLowerCase());

  function partsOf(row, column) {
    return [...row.cells[column + 1].querySelectorAll(".part")];
  }

  function plain(part) {
    if (part.original === undefined) part.original = part.textContent;
    return part.original;
  }

  function textOf(row, column) {
    return partsOf(row, column).map(plain).join("\n").replace(/\s+/g, " ").trim();
  }

  function chosen() {
    return pair && pair.value ? pair.value.split(",").map(Number) : null;
  }

  function isDifferent(row) {
    const columns = chosen();
    if (!columns) return "differs" in row.dataset;
    return textOf(row, columns[0]) !== textOf(row, columns[1]);
  }

  function fits(row, number) {
    const has = (names, name) => names.split("\n").includes(name);
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return wanted.every((word) => words[number].includes(word))
      && (!app || !app.value || has(row.dataset.apps, app.value))
      && (!activity || !activity.value || has(row.dataset.activities, activity.value))
      && (!differs || !differs.checked || isDifferent(row))
      && (!failed.checked || "failed" in row.dataset);
  }

  // Longest common subsequence of words; white space belongs to the word before it.
  function difference(before, after) {
    const split = (text) => text.match(/\S+\s*|\s+/g) || [];
    const a = split(before), b = split(after);
    if (a.length * b.length > MAX_CELLS) return null;
    const same = (i, j) => a[i].trim() === b[j].trim();
    const width = b.length + 1;
    const table = new Uint32Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        table[i * width + j] = same(i, j)
          ? table[(i + 1) * width + j + 1] + 1
          : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
      }
    }
    const pieces = [];
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && same(i, j)) { pieces.push(["", b[j]]); i++; j++; }
      else if (j >= b.length || (i < a.length && table[(i + 1) * width + j] >= table[i * width + j + 1])) {
        pieces.push(["del", a[i++]]);
      } else pieces.push(["ins", b[j++]]);
    }
    return pieces;
  }

  function mark(part, before) {
    const pieces = difference(before, plain(part));
    if (!pieces) return;
    const nodes = [];
    let spaced = true; // a word that was the last of its text has no space behind it
    for (const [kind, text] of pieces) {
      if (!spaced) nodes.push(document.createTextNode(" "));
      spaced = /\s$/.test(text);
      const node = kind ? document.createElement(kind) : document.createTextNode(text);
      node.textContent = text;
      nodes.push(node);
    }
    part.replaceChildren(...nodes);
  }

  function unmark() {
    for (const part of document.querySelectorAll(".part.marked")) {
      part.textContent = plain(part);
      part.classList.remove("marked");
    }
  }

  function markRow(row, [after, before]) {
    const old = partsOf(row, before), fresh = partsOf(row, after);
    for (const part of fresh) {
      const counterpart = old.find((one) => one.dataset.part === part.dataset.part);
      const text = counterpart ? plain(counterpart) : "";
      if (!counterpart || plain(part) === text) continue;
      mark(part, text);
      part.classList.add("marked");
    }
  }

  // Rows are marked when they come into view: a report of thousands of answers opens at once.
  const watcher = new IntersectionObserver((entries) => {
    const columns = chosen();
    for (const entry of entries) {
      if (entry.isIntersecting && columns && !entry.target.marked) {
        entry.target.marked = true;
        markRow(entry.target, columns);
      }
    }
  }, { rootMargin: "50%" });

  function markAgain() {
    unmark();
    watcher.disconnect();
    for (const row of rows) { row.marked = false; if (chosen()) watcher.observe(row); }
  }

  function filter() {
    let shown = 0;
    rows.forEach((row, number) => { row.hidden = !fits(row, number); shown += !row.hidden; });
    byId("count").textContent = `${shown} of ${rows.length} frames`;
    byId("none").hidden = shown > 0;
    const current = body.querySelector("tr[tabindex='0']");
    if (!current || current.hidden) select(visibleRows()[0]);
  }

  function sort() {
    const by = order && order.value === "difference";
    const ranked = [...rows].sort((a, b) =>
      (by ? b.dataset.difference - a.dataset.difference : 0) || a.dataset.order - b.dataset.order);
    body.append(...ranked);
  }

  const visibleRows = () => [...body.rows].filter((row) => !row.hidden);

  function select(row, focus = false) {
    if (!row) return;
    for (const other of body.querySelectorAll("tr[tabindex='0']")) other.tabIndex = -1;
    row.tabIndex = 0;
    if (focus) { row.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
  }

  function step(by) {
    const shown = visibleRows();
    const at = shown.indexOf(document.activeElement.closest("tbody tr"));
    select(shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)], true);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    const inRows = document.activeElement.closest("tbody tr[tabindex]") !== null;
    if (event.key === "Escape" && document.activeElement === search) { search.value = ""; filter(); search.blur(); return; }
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (event.key === "j" || (inRows && event.key === "ArrowDown")) { event.preventDefault(); step(1); }
    else if (event.key === "k" || (inRows && event.key === "ArrowUp")) { event.preventDefault(); step(-1); }
  });
  byId("filters").addEventListener("input", (event) => {
    if (event.target === pair) markAgain();
    if (event.target === order) sort();
    filter();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const bar of document.querySelectorAll("rect[data-place]")) {
    bar.addEventListener("click", () => {
      const row = rows.find((one) => one.dataset.place === bar.dataset.place);
      if (row && !row.hidden) select(row, true);
    });
  }
  markAgain();
  document.documentElement.dataset.ready = "";
})();
