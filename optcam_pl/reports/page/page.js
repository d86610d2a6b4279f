"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const make = (tag, words, name) => {
  const element = document.createElement(tag);
  if (words !== undefined) element.textContent = words;
  if (name) element.className = name;
  return element;
};

// Theme: the system's, until the button is used. -----------------------------------------------------------------------
const root = document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
const isDark = () => (chosen ?? (system.matches ? "dark" : "light")) === "dark";
function setTheme() {
  root.dataset.theme = isDark() ? "dark" : "light";
  by("theme").textContent = isDark() ? "Light" : "Dark";
  drawCharts();
}
by("theme").addEventListener("click", () => { chosen = isDark() ? "light" : "dark"; setTheme(); });
system.addEventListener("change", setTheme);

// Charts, drawn by Vega-Embed when they come into view. ----------------------------------------------------------------
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
}, { rootMargin: "400px" });
function drawCharts() {
  for (const place of document.querySelectorAll("[data-chart]")) { seen.unobserve(place); seen.observe(place); }
}
function draw(place) {
  const style = getComputedStyle(root), color = (name) => style.getPropertyValue(name).trim();
  const words = { labelColor: color("--fore"), titleColor: color("--fore"), labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: "normal", gridColor: color("--line"), domainColor: color("--line"), tickColor: color("--line") };
  const config = { background: "transparent", font: "system-ui, sans-serif", view: { stroke: null }, axis: words,
    legend: { labelColor: color("--fore"), labelFontSize: 12 }, rule: { color: color("--quiet") } };
  const bind = place.previousElementSibling;
  bind.replaceChildren();
  vegaEmbed(place, data.charts[place.dataset.chart],
    { actions: false, renderer: "svg", bind, config, tooltip: { theme: isDark() ? "dark" : "light" } });
}
setTheme();

// The table: a heading sorts it, again the other way; rows without a value stay last. ----------------------------------
const table = by("table");
table.tHead.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const head = button.parentElement, column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.sort;
  const order = (a, b) => (column ? Number(a) - Number(b) : a.localeCompare(b)) * (down ? -1 : 1);
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => (value(a) === "") - (value(b) === "") || order(value(a), value(b)));
  table.tBodies[0].append(...rows);
});

// The gallery. ---------------------------------------------------------------------------------------------------------
if (by("images")) gallery();

function gallery() {
  const STEP = 30;
  const name = (image, index) => data.classes[image.named][index] ?? `class ${index}`;  // of the image's own network
  const first = (image) => image.runs.find((run) => run);
  const images = data.images.map((image, place) => {
    const target = first(image).target, shown = name(image, target);
    return { ...image, place, target, name: shown, words: `${shown} ${image.id}`.toLowerCase() };
  });
  let shown = [], drawn = 0;

  const counts = new Map();
  for (const image of images) counts.set(image.name, (counts.get(image.name) ?? 0) + 1);
  for (const [words, count] of [...counts].sort((a, b) => a[0].localeCompare(b[0]))) {
    by("class").add(new Option(`${words} (${count})`, words));
  }
  data.runs.forEach((label, number) => by("by").add(new Option(label, number)));

  // How far p moves by masking, of the chosen method or of the one for which it moves furthest.
  function move(image, sign) {
    const chosen = by("by").value;
    const runs = chosen === "" ? image.runs : [image.runs[chosen]];
    return Math.max(...runs.map((run) => (run && run.p !== null && run.o !== null ? sign * (run.o - run.p) : -Infinity)));
  }
  const KEYS = {
    dataset: (image) => -image.place,
    drop: (image) => move(image, -1),
    gain: (image) => move(image, 1),
    disagreement: (image) => image.disagreement ?? -Infinity,
  };

  function filter() {
    const wanted = by("class").value, words = by("find").value.trim().toLowerCase(), wrong = by("wrong").checked;
    const key = KEYS[by("order").value];
    shown = images
      .filter((image) => (wanted === "" || image.name === wanted) && image.words.includes(words)
        && (!wrong || first(image).predicted !== image.target))
      .map((image) => ({ image, key: key(image) }))
      .sort((a, b) => b.key - a.key || a.image.place - b.image.place)
      .map(({ image }) => image);
    by("images").replaceChildren();
    drawn = 0;
    more();
    by("count").textContent = `${shown.length} of ${images.length} images`;
    by("none").hidden = shown.length > 0;
  }

  function more() {
    const next = shown.slice(drawn, drawn + STEP);
    by("images").append(...next.map(article));
    drawn += next.length;
  }
  new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) more(); },
    { rootMargin: "1500px" }).observe(by("end"));

  function title(image) {
    const heading = make("h3", image.name, "title");
    const predicted = first(image).predicted;
    if (predicted >= 0 && predicted !== image.target) heading.append(make("em", `predicted: ${name(image, predicted)}`));
    heading.append(make("span", image.id));
    return heading;
  }

  function article(image) {
    const place = make("article");
    place.tabIndex = 0;
    place.setAttribute("aria-label", `${image.name}, ${image.id}`);
    place.append(title(image), row(image));
    place.addEventListener("click", (event) => { if (event.target.tagName === "IMG") enlarge(image); });
    place.image = image;
    return place;
  }

  function row(image, all = false) {
    const list = make("div", undefined, "row");
    if (image.photo) list.append(picture(image.photo, "photograph", make("figcaption", "photograph")));
    image.runs.forEach((run, number) => {
      if (!run) return;
      const caption = make("figcaption", data.runs[number]);
      if (run.p !== null && run.o !== null) {
        const change = make("div", `${data.quantities[number]} ${run.p.toFixed(3)} \u2192 ${run.o.toFixed(3)} ${run.o >= run.p ? "\u25B2" : "\u25BC"}`);
        change.className = run.o >= run.p ? "good" : "bad";
        caption.append(change);
      }
      if (all) for (const [key, score] of Object.entries(run.scores)) {
        const metric = data.metrics[key] ?? { label: key, digits: 2 };
        caption.append(make("div", `${metric.label} ${score.toFixed(metric.digits)}`));
      }
      if (run.reason) caption.append(make("div", run.reason, "quiet"));
      list.append(run.map ? picture(run.map, `map by ${data.runs[number]}`, caption) : empty(caption));
    });
    return list;
  }

  function picture(file, words, caption) {
    const figure = make("figure"), image = make("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = words;
    image.addEventListener("load", () => figure.classList.toggle("wide", image.naturalWidth > 2.5 * image.naturalHeight));
    image.src = file;
    figure.append(image, caption);
    return figure;
  }

  function empty(caption) {
    const figure = make("figure");
    figure.append(make("div", "no picture stored", "nothing"), caption);
    return figure;
  }

  function enlarge(image) {
    by("content").replaceChildren(title(image), row(image, true));
    by("large").image = image;
    if (!by("large").open) by("large").showModal();
  }

  // Keys.
  function step(by_one) {
    const now = by("large").open ? by("large").image : document.activeElement?.image;
    let place = shown.indexOf(now) + by_one;
    place = Math.min(Math.max(place, 0), shown.length - 1);
    while (drawn <= place && drawn < shown.length) more();
    const article = by("images").children[place];
    if (!article) return;
    article.focus();
    article.scrollIntoView({ block: "nearest" });
    if (by("large").open) enlarge(shown[place]);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key === "/") { event.preventDefault(); by("find").focus(); }
    else if (event.key === "j" || (by("large").open && event.key === "ArrowRight")) step(1);
    else if (event.key === "k" || (by("large").open && event.key === "ArrowLeft")) step(-1);
    else if (event.key === "Enter" && event.target.image && !by("large").open) { event.preventDefault(); enlarge(event.target.image); }
  });
  by("filters").addEventListener("input", filter);
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  by("reset").addEventListener("click", () => { by("filters").reset(); filter(); });
  filter();
}
