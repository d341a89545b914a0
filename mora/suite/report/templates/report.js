// Tables sort by a press on a head and filter as one types; learning curves show the runs that are ticked; run.html shows the
// run that its address names.
"use strict";

function order(cell) {
  const text = (cell.dataset.order ?? cell.textContent).trim();
  const number = Number.parseFloat(text.replaceAll(",", ""));
  return [text, /^[-+>~]?[\d.]/.test(text) && !Number.isNaN(number) ? number : null];
}

function compare(a, b, up) {
  const [textA, numberA] = order(a), [textB, numberB] = order(b);
  if (numberA !== null && numberB !== null) return up * (numberA - numberB);
  if (numberA !== null || numberB !== null) return numberA !== null ? -1 : 1; // what has no number stays below
  return up * textA.localeCompare(textB);
}

function sortable(within) {
  for (const table of within.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.ariaSort === "ascending" ? -1 : 1;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.ariaSort = up === 1 ? "ascending" : "descending";
        const rows = [...table.tBodies[0].rows].sort((a, b) => compare(a.cells[i], b.cells[i], up));
        table.tBodies[0].append(...rows);
      });
    });
  }
}
sortable(document);

for (const field of document.querySelectorAll("input.filter")) {
  const rows = document.getElementById(field.dataset.table).tBodies[0].rows;
  const none = document.createElement("p");
  none.setAttribute("role", "status");
  field.closest("p").after(none);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    none.textContent = [...rows].every((row) => row.hidden) ? "No row has all of these words." : "";
  });
}

for (const figure of document.querySelectorAll(".curves")) {
  const boxes = [...figure.querySelectorAll("input[data-run]")];
  const show = (box) => {
    const training = document.getElementById(`run-${box.dataset.run}`);
    for (const curve of [training, document.getElementById(`${training.id}-held-out`)]) {
      if (curve) curve.style.display = box.checked ? "" : "none";
    }
    box.parentElement.style.setProperty("--curve", training.querySelector("path").style.stroke);
  };
  boxes.forEach((box) => { show(box); box.addEventListener("change", () => show(box)); });
  for (const button of figure.querySelectorAll("button[data-all]")) {
    button.addEventListener("click", () => boxes.forEach((box) => {
      box.checked = button.dataset.all === "true";
      show(box);
    }));
  }
}

// Called by runs.js with the texts of all runs by name, deflated.
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const runs = JSON.parse(await new Response(stream).text());
  const name = decodeURIComponent(location.search.slice(1)), main = document.getElementById("main");
  if (!Object.hasOwn(runs, name)) {
    main.querySelector("[role=status]").prepend(`This report has no run ${name || "without a name"}. `);
    return;
  }
  main.innerHTML = runs[name];
  document.title = document.title.replace("A run", name);
  sortable(main);
}
