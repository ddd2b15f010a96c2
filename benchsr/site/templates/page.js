"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Light or dark: the system's choice until the button is pressed.
const theme = document.getElementById("theme");
const darkNow = () => (document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
theme.hidden = false;
theme.addEventListener("click", () => { document.documentElement.style.colorScheme = darkNow() ? "light" : "dark"; });

// The table: everything is in the HTML; what is chosen in the form is shown, and kept in the address.
const controls = document.getElementById("controls");
if (controls) {
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    for (const field of [...controls.elements].filter((field) => field.name === name)) {
      if (field.type === "radio") field.checked ||= field.value === value;
      else if (field.type === "checkbox") field.checked = value === "on";
      else field.value = value;
    }
  }
  const chosen = () => Object.fromEntries(new FormData(controls));
  const sheetFor = ({ protocol, family }) => {
    const sheets = all(".sheet").filter((s) => s.dataset.protocol === protocol);
    return sheets.find((s) => s.dataset.family === family) ?? sheets[0];
  };

  const show = () => {
    const { protocol, family } = chosen();
    const sheet = sheetFor({ protocol, family });
    const heads = all("[scope=colgroup]", sheet);
    const known = new Set(heads.flatMap((th) => [th.dataset.c, "@" + th.dataset.layout]));
    for (const option of controls.elements.threats.options) option.disabled = option.value !== "" && !known.has(option.value);
    if (controls.elements.threats.selectedOptions[0]?.disabled ?? true) controls.elements.threats.value = "";
    const metrics = new Set(all("thead [data-m]", sheet).map((th) => th.dataset.m));
    for (const radio of controls.elements.metric) radio.disabled = radio.value !== "" && !metrics.has(radio.value);
    if ([...controls.elements.metric].some((radio) => radio.checked && radio.disabled)) controls.elements.metric.value = "";
    const { threats, metric, find } = chosen();
    for (const part of all("main [data-protocol]")) {
      part.hidden = part.dataset.protocol !== protocol || (part.dataset.family !== undefined && part.dataset.family !== sheet.dataset.family);
    }
    const columns = new Set(heads.filter((th) => ["", th.dataset.c, "@" + th.dataset.layout].includes(threats) && (controls.elements.missing.checked || !th.classList.contains("absent"))).map((th) => th.dataset.c));
    const first = metric || [...metrics][0];
    for (const cell of all("[data-c]", sheet)) {
      cell.hidden = !columns.has(cell.dataset.c) || Boolean(metric && cell.dataset.m && cell.dataset.m !== metric);
      if (cell.scope === "colgroup") cell.colSpan = metric ? 1 : metrics.size;
      else cell.classList.toggle("first", cell.dataset.m === first);
    }
    const form = controls.elements;
    sheet.classList.toggle("shaded", form.shade.checked);
    sheet.classList.toggle("plain-figures", !form.intervals.checked);
    const rows = all("tbody tr", sheet);
    for (const row of rows) {
      const found = row.dataset.name.toLowerCase().includes(find.trim().toLowerCase());
      row.hidden = !found || (row.classList.contains("absent") && !form.missing.checked);
    }
    const sorted = sheet.querySelector("thead [aria-sort]:not([aria-sort=none])");
    const by = sorted && (sorted.dataset.c ? `${sorted.textContent} under ${heads.find((th) => th.dataset.c === sorted.dataset.c).textContent}` : "name");
    document.getElementById("status").textContent =
      `${rows.filter((row) => !row.hidden).length} of ${rows.length} models, ${columns.size} columns of threats` + (sorted ? `, sorted by ${by}, ${sorted.ariaSort}` : ", in the paper's order");
  };

  const sort = (th) => {
    const better = Number(th.dataset.better ?? -1);
    const first = better > 0 ? "descending" : "ascending"; // the best first
    const second = better > 0 ? "ascending" : "descending";
    const direction = th.ariaSort === first ? second : first;
    for (const other of all("[aria-sort]", th.closest("thead"))) other.ariaSort = "none";
    th.ariaSort = direction;
    const sign = direction === "ascending" ? 1 : -1;
    const cell = (row) => row.querySelector(`td[data-c="${th.dataset.c}"][data-m="${th.dataset.m}"]`);
    const value = (row) => (th.dataset.c ? (cell(row).dataset.v === "" ? null : Number(cell(row).dataset.v.replace("inf", "Infinity"))) : row.dataset.name);
    const body = th.closest("table").tBodies[0];
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    const keyed = all("tr", body).map((row) => [value(row), row]);
    keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * (a === b ? 0 : order(a, b))));
    body.append(...keyed.map(([, row]) => row));
    show();
  };

  for (const button of all(".board thead button")) button.addEventListener("click", () => sort(button.closest("th")));
  controls.addEventListener("submit", (event) => event.preventDefault());
  // Leaderboard and networks are chosen at the top of the page, outside the form that they belong to.
  document.addEventListener("input", ({ target }) => {
    if (target.form !== controls) return;
    const off = Object.fromEntries(all("[type=checkbox]", controls).map((box) => [box.name, "off"]));
    history.replaceState(null, "", "#" + new URLSearchParams({ ...off, ...chosen() }));
    show();
  });
  show();
}

// Image by image: a line between two pictures, and all pictures of two models below each other.
const store = document.getElementById("pictures");
if (store) {
  const { kinds, boards } = JSON.parse(store.textContent);
  const { threat, first, second, image } = document.querySelector(".pick").elements;
  const section = document.getElementById("explorer");
  const frame = document.querySelector(".compare");
  const captions = all(".captions span");
  const shown = ["sr", "sr"]; // the kind of picture on each side of the line
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  // Options are [value, text]; what was chosen stays where it still can be.
  const fill = (select, options, wanted) => {
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    const values = options.map(([value]) => value);
    select.value = [before, wanted, values[0]].find((value) => values.includes(value));
  };
  const unique = (pairs) => [...new Map(pairs)];
  const board = () => boards[controls.elements.protocol.value];
  const family = () => document.querySelector(".sheet:not([hidden])")?.dataset.family;
  const scenes = () => (board()?.scenes ?? []).filter((scene) => scene.family === family());
  const scene = () => scenes().find((s) => s.threat === threat.value && s.image === image.value);

  const text = (view, kind) => [`${view.title}: ${kinds[kind]}`, view.captions[kind]].filter(Boolean).join(" · ");
  const draw = () => {
    const views = [first, second].map((select) => scene().views[select.value]);
    for (const [k, view] of views.entries()) {
      const picture = frame.querySelector(k ? ".right" : ".left");
      picture.src = `${board().folder}/${view.files[shown[k]]}`;
      picture.alt = captions[k].textContent = text(view, shown[k]);
    }
    const strip = (view, k) => make("div", { className: "strip" }, make("h3", { textContent: view.title }), ...Object.keys(kinds).map((kind) => {
      const picture = make("img", { src: `${board().folder}/${view.files[kind]}`, alt: "" });
      const button = make("button", { type: "button", ariaPressed: String(shown[k] === kind) }, picture, make("span", { textContent: kinds[kind] }), make("small", { textContent: view.captions[kind] ?? "" }));
      button.addEventListener("click", () => {
        shown[k] = kind;
        draw();
        all(".strip", section)[k].querySelector("[aria-pressed=true]").focus();
      });
      return button;
    }));
    section.querySelector(".strips").replaceChildren(...views.map(strip));
    const sheets = Object.entries(scene().sheets).flatMap(([name, file]) => [" ", make("a", { href: `${board().folder}/${file}`, textContent: name })]);
    section.querySelector(".files").replaceChildren(board().note, ...(sheets.length ? [" All models side by side:", ...sheets] : []));
  };
  const choose = () => {
    const here = scenes().filter((s) => s.threat === threat.value);
    const models = unique(here.flatMap((s) => Object.entries(s.views).map(([id, view]) => [id, view.title])));
    fill(first, models, models[0][0]);
    fill(second, models, (models[1] ?? models[0])[0]);
    const found = here.filter((s) => s.views[first.value] && s.views[second.value]);
    const drop = (s) => s.views[first.value].drop;
    found.sort((a, b) => (drop(a) === null) - (drop(b) === null) || drop(b) - drop(a));
    const before = image.value;
    fill(image, found.map((s) => [s.image, drop(s) === null ? s.image : `${s.image} (${drop(s) > 0 ? "−" : "+"}${Math.abs(drop(s)).toFixed(2)} dB)`]), before);
    if (found.length) draw();
  };
  const restart = () => {
    section.hidden = scenes().length === 0;
    if (section.hidden) return;
    fill(threat, unique(scenes().map((s) => [s.threat, s.title])), "pgd");
    choose();
  };
  frame.querySelector("input").addEventListener("input", (event) => frame.style.setProperty("--cut", `${event.target.value}%`));
  for (const select of [threat, first, second]) select.addEventListener("change", choose);
  image.addEventListener("change", draw);
  document.addEventListener("input", ({ target }) => { if (["protocol", "family"].includes(target.name)) restart(); });
  restart();
}
