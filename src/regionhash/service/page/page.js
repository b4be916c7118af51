"use strict";
const COLORS = ["#ffb000", "#38b6ff", "#ff5fd2", "#f5f02a", "#9b8cff", "#ffffff"];
const PAGE = 24, SHOWN_REGIONS = 12, LEAST_SHARE = 0.4, LEAST_SIDE = 6;
const $ = id => document.getElementById(id);
const make = (name, set = {}, ...children) => {
  const element = document.createElement(name);
  Object.assign(element, set);
  element.append(...children);
  return element;
};
const draw = (name, set) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(set)) element.setAttribute(key, value);
  return element;
};

let about = null, queries = [], hits = [], grouped = false, running = 0, offset = 0;
const past = [];

// -- talking to the service -----------------------------------------------------------------------

class Refused extends Error {}

async function call(path, options = {}) {
  let answer;
  try { answer = await fetch(path, options); }
  catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service is not responding. Is it still running?");
  }
  if (answer.status === 401 && await askToken()) return call(path, options);
  if (answer.ok) return answer.status === 204 ? null : answer.headers.get("content-type").startsWith("image/") ? answer.blob() : answer.json();
  let detail = `The service answered ${answer.status}.`;
  try { detail = (await answer.json()).detail || detail; } catch { /* no JSON */ }
  throw new Refused(detail);
}

async function askToken() {
  const fromAddress = new URLSearchParams(location.hash.slice(1)).get("token");
  if (fromAddress) history.replaceState(null, "", location.pathname);
  const token = fromAddress || await new Promise(resolve => {
    $("ask").onclose = () => resolve($("token").value);
    $("ask").showModal();
  });
  if (!token) return false;
  const answer = await fetch("/api/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  $("token").value = "";
  return answer.ok || askToken();
}

const picture = (row, size) => `/api/images/${row}/picture?size=${size}`;

// -- query pictures -------------------------------------------------------------------------------

async function takeFile(file, another) {
  if (!file) return;
  if (file.size > about.max_upload_bytes)
    return showState("This file is too large", `The limit is ${Math.round(about.max_upload_bytes / 1e6)} MB.`, true);
  const query = { name: file.name || "pasted picture", url: URL.createObjectURL(file), busy: true, regions: [], chosen: new Set(), boxes: [] };
  begin(query, another);
  const form = new FormData();
  form.append("file", file);
  try {
    Object.assign(query, await call("/api/uploads", { method: "POST", body: form }));
    // Boxes refer to the picture as the service decoded it; a browser may turn the file otherwise, or not know its format.
    const decoded = await call(`/api/uploads/${query.upload}/picture?size=1024`);
    query.url = URL.createObjectURL(decoded);
  }
  catch (error) {
    queries = queries.filter(other => other !== query);
    showQueries();
    return showState("Cannot search by this picture", error.message, true);
  }
  query.busy = false;
  showQueries();
  search();
}

async function takeImage(row, name, another) {
  const query = { name, url: picture(row, 1024), image: row, busy: true, regions: [], chosen: new Set(), boxes: [] };
  begin(query, another);
  try { Object.assign(query, await call(`/api/images/${row}`), { name, busy: false }); }
  catch (error) { return showState("Cannot search by this picture", error.message, true); }
  showQueries();
  search();
}

/** Words for one object, alone or beside the pictures. */
function takeWords(text) {
  begin({ name: `\u201c${text}\u201d`, text, regions: [], chosen: new Set(), boxes: [] }, queries.length > 0);
  search();
}

function begin(query, another) {
  if (queries.length) past.push(queries.map(before => ({ ...before, chosen: new Set(before.chosen), boxes: [...before.boxes] })));
  queries = another ? [...queries, query] : [query];
  showQueries();
  if (!another) scrollTo({ top: 0, behavior: "smooth" });
}

/** The detections to outline: the best that have a class; windows of a grid are not shown. */
function outlined(query) {
  const least = LEAST_SHARE * Math.max(0, ...query.regions.map(region => region.score));
  return query.regions.map((region, n) => ({ ...region, n }))
    .filter(region => region.label !== null && region.score >= least).slice(0, SHOWN_REGIONS);
}

const objectsOf = query => [...query.chosen].map(n => ({ box: query.regions[n].box, n })).concat(query.boxes.map((box, at) => ({ box, at })));

const wanted = () => queries.filter(query => !query.unwanted);

/** Whether the query is one whole picture, with nothing left out. */
const isWhole = () => queries.length === 1 && !queries[0].text && !objectsOf(queries[0]).length;

function boxAttributes([x0, y0, x1, y1]) { return { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) }; }

function showQueries() {
  document.body.classList.toggle("asked", queries.length > 0);
  $("invite").hidden = queries.length > 0;
  $("pick").textContent = queries.length ? "Another picture" : "Choose a picture";
  $("pick").className = queries.length ? "button small" : "button main";
  $("clear").hidden = !queries.length;
  $("back").hidden = !past.length;
  let color = 0;
  $("queries").replaceChildren(...queries.map(query => {
    if (query.text) {
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = COLORS[color++ % COLORS.length];
      const remove = make("button", { className: "button small", textContent: "Remove", ariaLabel: `Remove ${query.name}`, onclick: () => { queries = queries.filter(other => other !== query); changed(); } });
      return make("figure", { className: "card query" }, make("figcaption", {}, swatch, make("span", { textContent: query.name, title: query.name }), remove));
    }
    const image = make("img", { src: query.url, alt: query.name, draggable: false });
    const canvas = make("div", { className: query.busy ? "canvas busy" : "canvas" }, image);
    const caption = make("figcaption", {}, make("span", { textContent: query.name, title: query.name }));
    const note = query.note ? [make("p", { className: "hint", textContent: `Note: ${query.note}.` })] : [];
    const figure = make("figure", { className: query.unwanted && !objectsOf(query).length ? "card query unwanted" : "card query" }, canvas, caption, ...note);
    if (!query.busy) {
      const svg = draw("svg", { viewBox: `0 0 ${query.width} ${query.height}`, role: "group", "aria-label": "Objects in the picture" });
      for (const region of outlined(query)) if (!query.chosen.has(region.n)) {
        svg.append(draw("rect", { ...boxAttributes(region.box), class: "back", "stroke-opacity": .35 }));
        svg.append(outline(region.box, "found", `search for this ${region.label}`, () => { query.chosen.add(region.n); changed(); }, region));
      }
      for (const { box, n, at } of objectsOf(query)) {
        svg.append(draw("rect", { ...boxAttributes(box), class: "back" }));
        const rect = outline(box, query.unwanted ? "chosen unwanted" : "chosen", "remove this object from the query", () => { n === undefined ? query.boxes.splice(at, 1) : query.chosen.delete(n); changed(); });
        if (!query.unwanted) rect.setAttribute("stroke", COLORS[color++ % COLORS.length]);
        svg.append(rect);
      }
      canvas.append(svg);
      drawBoxes(canvas, svg, query);
      const count = objectsOf(query).length;
      if (count) caption.append(make("button", { className: "button small", textContent: "Whole picture", onclick: () => { query.chosen.clear(); query.boxes = []; changed(); } }));
      if (queries.length > 1) caption.append(
        make("button", { className: "button small", textContent: "Not this", ariaPressed: !!query.unwanted, disabled: !query.unwanted && wanted().length < 2, title: "Leave out pictures that show this", ariaLabel: `Leave out pictures that show what ${query.name} shows`, onclick: () => { query.unwanted = !query.unwanted; changed(); } }),
        make("button", { className: "button small", textContent: "Remove", ariaLabel: `Remove ${query.name}`, onclick: () => { queries = queries.filter(other => other !== query); changed(); } }));
      else figure.append(make("p", { className: "hint", textContent: count ? "Add more objects: results must show all of them." : outlined(query).length ? "Click an outlined object, or draw a box around one." : "Draw a box around an object to search for it." }));
    }
    return figure;
  }));
}

function outline(box, kind, label, act, region) {
  const rect = draw("rect", { ...boxAttributes(box), class: kind, tabindex: 0, role: "button", "aria-label": label });
  const title = draw("title", {});
  title.textContent = region ? `${region.label} ${region.score.toFixed(2)}` : label;
  rect.append(title);
  rect.addEventListener("keydown", event => { if ([" ", "Enter", "Delete"].includes(event.key)) { event.preventDefault(); act(); } });
  rect.act = act;
  return rect;
}

/** A press that moves draws a box; one that does not is a click on the outline below. */
function drawBoxes(canvas, svg, query) {
  let start = null, rect = null;
  const at = event => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [Math.min(query.width, Math.max(0, point.x)), Math.min(query.height, Math.max(0, point.y))];
  };
  const box = end => [Math.min(start.at[0], end[0]), Math.min(start.at[1], end[1]), Math.max(start.at[0], end[0]), Math.max(start.at[1], end[1])];
  canvas.addEventListener("pointerdown", event => {
    if (event.button) return;
    start = { at: at(event), x: event.clientX, y: event.clientY, target: event.target };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", event => {
    if (!start) return;
    if (!rect && Math.hypot(event.clientX - start.x, event.clientY - start.y) > LEAST_SIDE) {
      rect = draw("rect", { class: "chosen", stroke: COLORS[wanted().flatMap(objectsOf).length % COLORS.length] });
      svg.append(rect);
    }
    if (rect) for (const [key, value] of Object.entries(boxAttributes(box(at(event))))) rect.setAttribute(key, value);
  });
  const stop = event => {
    const begun = start, drawn = rect;
    if (!begun) return;
    const found = box(at(event));
    start = rect = null;
    if (drawn) {
      drawn.remove();
      if (event.type === "pointerup" && found[2] - found[0] >= 1 && found[3] - found[1] >= 1) { query.boxes.push(found.map(edge => Math.round(edge * 10) / 10)); changed(); }
    } else if (event.type === "pointerup" && begun.target.act) begun.target.act();
  };
  canvas.addEventListener("pointerup", stop);
  canvas.addEventListener("pointercancel", stop);
}

function changed() {
  if (queries.length && !wanted().length) queries[0].unwanted = false;
  showQueries();
  search();
}

// -- searching ------------------------------------------------------------------------------------

function request() {
  const ofObjects = !isWhole() && wanted().some(query => !query.text); // what weighs the rest of a picture needs both
  const day = (id, add) => $(id).value ? Date.parse(`${$(id).value}T00:00:00Z`) / 1000 + add : null;
  const asked = query => {
    if (query.text) return { text: query.text };
    const source = query.upload ? { upload: query.upload } : { image: query.image };
    // Drawn objects are sent as boxes, and clicked ones with them; clicked ones alone by their codes.
    if (query.boxes.length) return { ...source, boxes: objectsOf(query).map(object => object.box) };
    return query.chosen.size ? { ...source, regions: [...query.chosen] } : source;
  };
  return {
    queries: wanted().map(asked),
    without: queries.filter(query => query.unwanted).map(asked),
    mode: !isWhole() ? null : grouped && about.by_category ? "category" : about.bits ? "image" : "region",
    filter: { labels: $("label").value ? [$("label").value] : [], min_score: about.has_scores ? +$("score").value || 0 : 0, folder: $("folder").value.trim() || null, after: day("after", 0), before: day("before", 86400) },
    context: ofObjects && about.bits ? +$("context").value || 0 : 0,
    other_class: ofObjects && about.has_scores ? +$("other-class").value || 0 : 0,
    near: $("near").value && /^\d+$/.test($("near").value) ? +$("near").value : null,
    limit: PAGE,
  };
}

async function search(more = false) {
  if (!queries.length) return browse();
  if (queries.some(query => query.busy)) return;
  const turn = ++running;
  offset = more ? offset + PAGE : 0;
  $("results").classList.toggle("waiting", true);
  try {
    const answer = await call("/api/search", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...request(), offset }) });
    if (turn !== running) return;
    const found = answer.mode === "category" ? answer.groups.flatMap(group => group.hits.map(hit => ({ ...hit, group: group.prob === null ? group.category : `${group.category}, probability ${group.prob.toFixed(2)}` }))) : answer.hits;
    hits = more ? [...hits, ...found] : found;
    const what = { image: "like this", region: "with this object", objects: answer.boxes.flat().length + wanted().filter(query => query.text).length > 1 ? "with all of these objects" : "with this object", category: "like this in each of its categories" }[answer.mode];
    $("title").textContent = `Pictures ${what}${answer.without.length ? ", but not that" : ""}`;
    $("title").title = `${answer.searched.toLocaleString("en")} pictures searched in ${Math.max(1, Math.round(answer.seconds * 1000))} ms`;
    $("more").hidden = !answer.more;
    showHits();
    if (!hits.length) showState("Nothing found", "No picture passes the filter, or none has a region to compare.");
    else if (answer.notes.length) showState("Note", answer.notes.join("; "), false, true);
  } catch (error) {
    if (turn !== running) return;
    hits = [];
    showHits();
    $("more").hidden = true;
    showState("Search failed", error.message, true);
  }
}

async function browse(more = false) {
  const turn = ++running;
  if (!more) offset = 0;
  try {
    const answer = await call(`/api/images?limit=${PAGE}&after=${offset}`);
    if (turn !== running) return;
    const lines = answer.images.map(image => ({ ...image, matches: [], classes: [], duplicates: [], distance: null }));
    hits = more ? [...hits, ...lines] : lines;
    offset = answer.next || 0;
    $("title").textContent = "Start from a picture in the collection";
    $("more").hidden = !answer.next;
    showHits();
    if (!hits.length) showState("This collection is empty", "To add pictures, run: regionhash add COLLECTION PICTURES");
  } catch (error) { showState("Cannot show the collection", error.message, true); }
}

function showState(title, text, bad = false, note = false) {
  $("state").replaceChildren(make("strong", { textContent: title }), text);
  $("state").className = bad ? "state bad" : note ? "state note" : "state";
  $("state").hidden = false;
}

function categoryOf(hit) {
  return hit.group || hit.matches.find(match => match.label)?.label || hit.classes.join(", ") || "no class";
}

function showHits() {
  $("state").hidden = true;
  $("group").hidden = !queries.length || !about.classes.length;
  if (!grouped || !queries.length) return $("results").replaceChildren(make("div", { className: "grid" }, ...hits.map(tile)));
  const groups = Map.groupBy ? Map.groupBy(hits, categoryOf) : hits.reduce((all, hit) => all.set(categoryOf(hit), [...all.get(categoryOf(hit)) || [], hit]), new Map());
  $("results").replaceChildren(...[...groups].flatMap(([name, members]) => [make("h3", { textContent: `${name} (${members.length})` }), make("div", { className: "grid" }, ...members.map(tile))]));
}

function tile(hit) {
  const image = make("img", { src: picture(hit.row, 320), alt: "", loading: "lazy" });
  const svg = draw("svg", { viewBox: `0 0 ${hit.width} ${hit.height}`, "aria-hidden": "true" });
  hit.matches.forEach((match, n) => match.box && svg.append(draw("rect", { ...boxAttributes(match.box), class: "back" }), draw("rect", { ...boxAttributes(match.box), stroke: COLORS[n % COLORS.length], "stroke-width": 2.6 })));
  const labels = hit.matches.map(match => match.label).filter(Boolean);
  const summary = hit.distance === null ? "search from here" : [`${hit.distance} bits`, labels.join(", ") || hit.classes.join(", ")].filter(Boolean).join(" · ");
  const view = make("span", { className: "view" }, image, svg, make("span", { className: "tip", textContent: summary }));
  if (hit.duplicates.length) view.append(make("span", { className: "more", textContent: `+${hit.duplicates.length}`, title: "near-duplicates" }));
  const button = make("button", { className: "hit", ariaLabel: `${hit.id}, ${summary}`, title: hit.id, onclick: () => takeImage(hit.row, hit.id) },
    view, make("span", { className: "name" }, make("b", { textContent: hit.id }), hit.distance === null ? "" : String(hit.distance)));
  image.onerror = () => button.classList.add("gone");
  button.dataset.row = hit.row;
  return button;
}

// -- the page -------------------------------------------------------------------------------------

const dark = matchMedia("(prefers-color-scheme: dark)");
let theme = null;
try { theme = localStorage.getItem("theme"); } catch { /* storage is not allowed */ }
function paint() { document.documentElement.dataset.theme = theme || (dark.matches ? "dark" : "light"); }
dark.addEventListener("change", paint);
$("theme").onclick = () => {
  theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", theme); } catch { /* as above */ }
  paint();
};
paint();

$("leave").onclick = async () => {
  try { await call("/api/session", { method: "DELETE" }); location.reload(); }
  catch (error) { showState("Could not log out", error.message, true); }
};
$("pick").onclick = () => $("file").click();
$("file").onchange = () => { takeFile($("file").files[0], queries.length > 0); $("file").value = ""; };
addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", event => {
  event.preventDefault();
  $("drop").classList.remove("over");
  takeFile(event.dataTransfer.files[0], queries.length > 0 && $("drop").contains(event.target));
});
addEventListener("paste", event => { const file = [...event.clipboardData.files][0]; if (file) takeFile(file, false); });
$("words").onsubmit = event => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) { takeWords(text); $("text").value = ""; }
};
$("clear").onclick = () => { queries = []; past.length = 0; changed(); };
$("back").onclick = () => { queries = past.pop() || []; changed(); };
$("group").onclick = () => { grouped = !grouped; $("group").setAttribute("aria-pressed", grouped); about.by_category && isWhole() ? search() : showHits(); };
$("more").onclick = () => queries.length ? search(true) : browse(true);
for (const id of ["label", "score", "folder", "after", "before", "near", "context", "other-class"]) $(id).addEventListener("change", () => { if (queries.length) search(); });
addEventListener("keydown", event => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" || event.key === "o") { event.preventDefault(); $("pick").click(); }
  if (event.key === "Escape" && queries.length) $("clear").click();
  const tiles = [...document.querySelectorAll(".hit")], n = tiles.indexOf(document.activeElement);
  const columns = n < 0 ? 1 : getComputedStyle(tiles[n].parentNode).gridTemplateColumns.split(" ").length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (step && n >= 0 && tiles[n + step]) { event.preventDefault(); tiles[n + step].focus(); }
});

(async () => {
  try { about = await call("/api/collection"); }
  catch (error) { return showState("Cannot open the collection", error.message, true); }
  $("about").textContent = `${about.pictures.toLocaleString("en")} pictures · ${about.model} · ${about.bits || about.region_bits} bits`;
  $("label").append(...about.classes.map(name => make("option", { value: name, textContent: name })));
  $("leave").hidden = !about.can_change; // the cookie holds the token
  $("label-field").hidden = !about.classes.length;
  $("words").hidden = !about.words;
  $("score-field").hidden = $("other-class-field").hidden = !about.has_scores;
  $("context-field").hidden = !about.bits || !about.region_bits;
  $("folder").parentNode.classList.toggle("wide", !about.has_scores); // so that both days are in one row
  browse();
})();
