"use strict";
// Works on what the page holds: filters, order, word differences, keys. Every text is set as text.
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const rows = all("#rows tr.stretch");
  const [search, recording, app, activity, baseline, order, differs, failed, wrong] = [
    "search", "recording", "app", "activity", "baseline", "order", "differs", "failed", "wrong",
  ].map(byId);
  const MAX_CELLS = 1000000; // words of one text times words of the other: beyond, marking takes too long
  const numFrames = (some) => some.reduce((sum, row) => sum + Number(row.dataset.frames), 0);

  for (const image of all("img[data-picture]")) image.src = byId("picture-" + image.dataset.picture).src;
  rows.forEach((row, number) => { row.number = number; });
  if (rows.length) rows[0].tabIndex = 0;
  const words = rows.map((row) => row.textContent.toLowerCase());

  function plain(part) {
    if (part.original === undefined) part.original = part.textContent;
    return part.original;
  }

  const partsOf = (answer) => all(".part", answer);
  const textOf = (answer) => partsOf(answer).map(plain).join("\n").replace(/\s+/g, " ").trim();

  // What an answer is held against: the same prompt in the variant that is the baseline, or what was recorded.
  function baseOf(answer) {
    if (!baseline || !baseline.value) return null;
    const [kind, number] = baseline.value.split(" ");
    if (kind === "prompt") return answer.closest("tr").querySelector(`td[data-prompt="${number}"] .answer`);
    return all(".answer", answer.closest("td")).find((one) => variantsOf(one).includes(number)) || null;
  }

  const variantsOf = (answer) => answer.dataset.variants.split(" ");
  const isSame = (answer, base) => answer === base || textOf(answer) === textOf(base);

  function isDifferent(row) {
    if (!baseline || !baseline.value) return "differs" in row.dataset;
    return all(".answer", row).some((answer) => {
      const base = baseOf(answer);
      return base && !answer.hidden && !answer.closest("td").hidden && !isSame(answer, base);
    });
  }

  function fits(row) {
    const has = (names, name) => names.split("\n").includes(name);
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return wanted.every((word) => words[row.number].includes(word))
      && (!recording || !recording.value || row.parentNode.dataset.recording === recording.value)
      && (!app || !app.value || has(row.dataset.apps, app.value))
      && (!activity || !activity.value || has(row.dataset.activities, activity.value))
      && (!differs || !differs.checked || isDifferent(row))
      && (!failed.checked || "failed" in row.dataset)
      && (!wrong || !wrong.checked || "wrong" in row.dataset);
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
    part.classList.add("marked");
  }

  function unmark() {
    for (const part of all(".part.marked")) {
      part.textContent = plain(part);
      part.classList.remove("marked");
    }
  }

  function markRow(row) {
    for (const answer of all(".answer", row)) {
      const base = baseOf(answer);
      if (!base || base === answer) continue;
      for (const part of partsOf(answer)) {
        const counterpart = partsOf(base).find((one) => one.dataset.part === part.dataset.part);
        if (counterpart && plain(part) !== plain(counterpart)) mark(part, plain(counterpart));
      }
    }
  }

  // Rows are marked when they come into view: a report of thousands of answers opens at once.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !entry.target.marked) {
        entry.target.marked = true;
        markRow(entry.target);
      }
    }
  }, { rootMargin: "50%" });

  function markAgain() {
    unmark();
    watcher.disconnect();
    for (const row of rows) { row.marked = false; if (baseline && baseline.value) watcher.observe(row); }
    countEqual();
  }

  // How many of a column's answers are the baseline's, in the table of figures.
  function countEqual() {
    if (!baseline) return;
    const equal = new Map(), both = new Map();
    for (const row of rows) {
      for (const cell of all("td[data-prompt]", row)) {
        for (const answer of all(".answer", cell)) {
          const base = baseOf(answer);
          if (!base) continue;
          for (const variant of variantsOf(answer)) {
            const column = `${cell.dataset.prompt} ${variant}`, frames = Number(row.dataset.frames);
            both.set(column, (both.get(column) || 0) + frames);
            if (isSame(answer, base)) equal.set(column, (equal.get(column) || 0) + frames);
          }
        }
      }
    }
    for (const line of all(".figures tr[data-prompt]")) {
      const column = `${line.dataset.prompt} ${line.dataset.variant}`;
      const share = Math.floor(100 * (equal.get(column) || 0) / both.get(column));
      line.querySelector(".as-baseline").textContent = both.has(column) ? `${share}%` : "–";
    }
  }

  function filter() {
    for (const row of rows) row.hidden = !fits(row);
    for (const heading of all("#rows tr.recording")) {
      heading.hidden = all("tr.stretch", heading.parentNode).every((row) => row.hidden);
    }
    const shown = rows.filter((row) => !row.hidden);
    byId("count").textContent = `${numFrames(shown)} of ${numFrames(rows)} frames`;
    byId("none").hidden = shown.length > 0;
    const current = rows.find((row) => row.tabIndex === 0);
    if (!current || current.hidden) select(visibleRows()[0]);
  }

  function sort() {
    const by = order && order.value === "difference";
    for (const body of byId("rows").tBodies) {
      body.append(...all("tr.stretch", body).sort((a, b) =>
        (by ? b.dataset.difference - a.dataset.difference : 0) || a.number - b.number));
    }
  }

  // Prompts and variants that were unchecked go, from the frames, the figures and the timelines.
  function hide() {
    const gone = { prompt: new Set(), variant: new Set() };
    for (const box of all("[data-hides]")) if (!box.checked) gone[box.dataset.hides].add(box.value);
    for (const one of all("[data-prompt]")) {
      one.hidden = gone.prompt.has(one.dataset.prompt) || gone.variant.has(one.dataset.variant);
    }
    for (const badge of all(".variants .label")) badge.hidden = gone.variant.has(badge.dataset.variant);
    for (const answer of all(".answer")) {
      answer.hidden = variantsOf(answer).every((variant) => gone.variant.has(variant));
    }
  }

  const visibleRows = () => all("#rows tr.stretch").filter((row) => !row.hidden);

  function select(row, focus = false) {
    if (!row) return;
    for (const other of rows) if (other.tabIndex === 0) other.tabIndex = -1;
    row.tabIndex = 0;
    if (focus) { row.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
  }

  function step(by) {
    const shown = visibleRows();
    const at = shown.indexOf(document.activeElement.closest("tr.stretch"));
    select(shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)], true);
  }

  // The table as it is shown: a line a frame, a column for each prompt and variant.
  function csv() {
    const columns = all(".figures tr[data-prompt]").filter((line) => !line.hidden);
    const cell = (text) => {
      const safe = /^ *[=+\-@\t\r\n＝＋－＠]/.test(text) ? `'${text}` : text; // no formula for a spreadsheet
      return `"${safe.replaceAll('"', '""')}"`;
    };
    const head = columns.map((line) => `${line.cells[0].textContent} ${line.cells[1].textContent}`.trim());
    const lines = [["recording", "frame", "time", "file", ...head]];
    for (const row of visibleRows()) {
      const answers = columns.map((line) => {
        const own = row.querySelector(`td[data-prompt="${line.dataset.prompt}"]`);
        const answer = all(".answer", own).find((one) => variantsOf(one).includes(line.dataset.variant));
        return answer ? all(".failure, .part", answer).map((part) => plain(part)).join("\n") : "";
      });
      const folded = all(".folded .one", row), name = (one) => one.querySelector(".name").textContent;
      const frames = folded.length
        ? folded.map((one) => [one.dataset.number, one.dataset.clock, name(one)])
        : [[row.querySelector(".number").textContent.replace(/\D+/g, ""), row.querySelector(".when").textContent, name(row)]];
      for (const frame of frames) lines.push([row.parentNode.dataset.recording, ...frame, ...answers]);
    }
    return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(["\ufeff", csv()], { type: "text/csv" }));
    link.download = "report.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  const large = byId("large");
  function enlarge(image) {
    large.querySelector("img").src = image.src;
    large.querySelector("img").alt = image.alt;
    large.querySelector("p").textContent = image.alt;
    large.showModal();
  }
  large.addEventListener("click", () => large.close());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || large.open) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    const inRows = document.activeElement.closest("tr.stretch") !== null;
    if (event.key === "Escape" && document.activeElement === search) { search.value = ""; filter(); search.blur(); return; }
    if (typing) return;
    if (event.key === "/") { event.preventDefault(); search.focus(); }
    else if (event.key === "j" || (inRows && event.key === "ArrowDown")) { event.preventDefault(); step(1); }
    else if (event.key === "k" || (inRows && event.key === "ArrowUp")) { event.preventDefault(); step(-1); }
  });
  byId("filters").addEventListener("input", (event) => {
    if (event.target === baseline) markAgain();
    if (event.target === order) sort();
    if (event.target.dataset.hides) hide();
    filter();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("csv").addEventListener("click", download);
  byId("rows").addEventListener("click", (event) => {
    const picture = event.target.closest(".picture");
    if (picture) enlarge(picture.querySelector("img"));
    const link = event.target.closest("thead a");
    if (link) document.querySelector(link.getAttribute("href")).open = true;
  });
  for (const bar of all("rect[data-place]")) {
    bar.addEventListener("click", () => {
      const row = rows.find((one) => one.dataset.place === bar.dataset.place);
      if (row && !row.hidden) select(row, true);
    });
  }
  hide(); // a browser that goes back keeps what was unchecked
  markAgain();
  filter();
  document.documentElement.dataset.ready = "";
})();
