// Reading and editing captions by keyboard. Whatever users wrote is put into the page as text, never as markup.

const at = (id) => document.getElementById(id);
const list = at("list"), editor = at("editor"), text = at("text"), search = at("search"), filter = at("filter");

const FILTERS = [
  ["all", "all pictures", () => true],
  ["problems", "problems", (row) => row.problem],
  ["caption", "without a caption", (row) => has(row, "caption")],
  ["changed", "picture changed", (row) => has(row, "changed")],
  ["long", "too long", (row) => has(row, "long")],
  ["duplicate", "same caption", (row) => has(row, "duplicate")],
  ["alike", "look alike", (row) => has(row, "alike")],
  ["trigger", "gets the trigger in front", (row) => has(row, "trigger")],
  ["hand", "written by hand", (row) => row.hand],
  ["other", "not written by hand", (row) => !row.hand],
];
const BADGES = {
  caption: "no caption", changed: "picture changed", long: "too long", duplicate: "same caption", alike: "looks alike",
};

let rows = [];            // all pictures
let shown = [];           // those that filter and search let through
let chosen = null;        // key of the picture in front
let editing = false;
let limit = null;         // tokens that the text encoder takes
const drafts = new Map(); // key -> text that was typed and not saved
const discarded = new Map();
const items = new Map();  // key -> the line of a row, and what it was made of

const has = (row, kind) => row.findings.some((finding) => finding.kind === kind);
const current = () => rows.find((row) => row.key === chosen);
const nameOf = (path) => path.slice(path.lastIndexOf("/") + 1);
const pictureOf = (row, size) => `picture/${encodeURIComponent(row.key)}?size=${size}`;

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(words, bad = false) {
  at("status").textContent = words;
  at("status").classList.toggle("bad", bad);
}

async function ask(path, content) {
  const request = content === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  };
  let answer;
  try {
    answer = await fetch(path, request);
  } catch {
    throw new Error("sdbuild does not answer any more; start it again, and copy what you have not saved");
  }
  const kind = answer.headers.get("Content-Type") ?? "";
  const found = kind.startsWith("application/json") ? await answer.json() : { error: await answer.text() };
  if (!answer.ok && !found.conflict) throw new Error(found.error ?? answer.statusText);
  return found;
}

// ---- what is shown

async function load() {
  const found = await ask("api/captions");
  rows = found.rows;
  items.clear();
  limit = found.limit;
  at("recipe").textContent = found.recipe;
  document.title = `Captions of ${found.recipe}`;
  const notes = [found.note, ...found.troubles].filter(Boolean);
  at("notes").replaceChildren(...notes.map((note) => make("p", { textContent: note })));
  at("notes").hidden = notes.length === 0;
  render();
}

function render() {
  renderFilters();
  const wanted = search.value.trim().toLowerCase();
  const lets = FILTERS.find(([name]) => name === filter.value)[2];
  shown = rows.filter((row) => lets(row) || (editing && row.key === chosen))
    .filter((row) => !wanted || `${row.path}\n${row.text}`.toLowerCase().includes(wanted));
  list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
  put(shown.map(item));
  at("nothing").hidden = shown.length > 0;
  if (!shown.some((row) => row.key === chosen)) choose(shown[0]?.key ?? null);
  else choose(chosen);
  const problems = rows.filter((row) => row.problem).length;
  const hands = rows.filter((row) => row.hand).length;
  at("summary").textContent = `${rows.length} pictures · ${hands} by hand · ${problems} with a problem`;
}

function renderFilters() {
  const before = filter.value || "all";
  filter.replaceChildren(...FILTERS.flatMap(([name, words, lets]) => {
    const count = rows.filter(lets).length;
    const option = make("option", { value: name, textContent: `${words} (${count})` });
    return count || name === before || name === "all" || name === "problems" ? [option] : [];
  }));
  filter.value = before;
}

// Of thousands of lines only those that changed are made and put in anew.
function put(lines) {
  const there = [...list.children];
  if (there.length !== lines.length || there.some((line, index) => line.id !== lines[index].id)) {
    list.replaceChildren(...lines);
    return;
  }
  there.forEach((line, index) => { if (line !== lines[index]) line.replaceWith(lines[index]); });
}

function item(row) {
  const kept = items.get(row.key), draft = drafts.has(row.key);
  if (kept?.row === row && kept.draft === draft) return kept.line;
  const line = lineOf(row);
  items.set(row.key, { row, draft, line });
  return line;
}

function lineOf(row) {
  const badges = make("span", { className: "badges" });
  const badge = (words, kind) => badges.append(make("span", { className: `badge ${kind}`, textContent: words }));
  if (drafts.has(row.key)) badge("not saved", "problem");
  if (row.origin) badge(row.hand ? "by hand" : row.origin, row.hand ? "hand" : "");
  for (const { kind } of row.findings) if (BADGES[kind]) badge(BADGES[kind], "problem");
  const line = make("li", { id: `row-${row.key}` },
    make("img", { src: pictureOf(row, "small"), alt: "", loading: "lazy", decoding: "async" }),
    make("span", { className: "name", textContent: nameOf(row.path) }),
    make("span", { className: "snippet", textContent: row.text.replaceAll("\n", " | ") || "no caption yet" }),
    badges);
  line.setAttribute("role", "option");
  line.setAttribute("aria-selected", "false");
  line.addEventListener("click", () => { leave(); choose(row.key); list.focus(); });
  return line;
}

function choose(key) {
  chosen = key;
  list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
  at(`row-${key}`)?.setAttribute("aria-selected", "true");
  const row = current();
  at("detail").hidden = !row;
  at("position").textContent = row ? `${shown.indexOf(row) + 1} of ${shown.length}` : "";
  if (!row) { list.removeAttribute("aria-activedescendant"); return; }
  list.setAttribute("aria-activedescendant", `row-${key}`);
  at(`row-${key}`)?.scrollIntoView({ block: "nearest" });
  detail(row);
}

function detail(row) {
  const picture = at("picture"), source = pictureOf(row, "large");
  if (!picture.src.endsWith(source)) picture.src = source;
  picture.alt = row.text || nameOf(row.path);
  picture.classList.toggle("tiny", Math.max(row.width, row.height) < 200);
  at("path").textContent = row.path;
  const facts = [`${row.width} × ${row.height} pixels`];
  if (row.split === "holdout") facts.push("held out for validation");
  if (row.duplicates.length) facts.push(`also ${row.duplicates.join(", ")}`);
  at("facts").textContent = facts.join(" · ");
  at("origin").textContent = row.hand ? "by hand" : row.origin ?? "none yet";
  at("origin").className = row.hand ? "badge hand" : "badge";
  if (!editing) text.value = drafts.get(row.key) ?? row.text;
  text.readOnly = !editing;
  at("edit").hidden = editing;
  at("fits").hidden = editing || !has(row, "changed");
  at("cancel").hidden = at("save").hidden = !editing;
  at("conflict").hidden = true;
  at("findings").replaceChildren(...row.findings.map((finding) => {
    const line = make("li", { className: BADGES[finding.kind] ? "problem" : "", textContent: finding.words });
    for (const other of finding.others.slice(0, 5)) {
      const go = make("button", { type: "button", className: "link", textContent: `look at ${nameOf(other)}` });
      go.addEventListener("click", () => { leave(); visit(other); });
      line.append(go);
    }
    return line;
  }));
  count();
}

function visit(path) {
  const row = rows.find((each) => each.path === path);
  if (!row) return;
  if (!shown.includes(row)) { filter.value = "all"; search.value = ""; chosen = row.key; render(); }
  choose(row.key);
  list.focus();
}

let counting = 0;
async function count() {
  const row = current(), turn = ++counting;
  let tokens = row.tokens;
  if (text.value !== row.text) {
    await new Promise((done) => setTimeout(done, 150));
    if (turn !== counting) return;
    tokens = (await ask("api/count", { key: row.key, text: text.value }).catch(() => ({ tokens: null }))).tokens;
    if (turn !== counting) return;
  }
  const over = tokens !== null && limit !== null && tokens > limit;
  const most = limit === null ? "" : ` of ${limit}`;
  at("tokens").textContent = tokens === null ? "" : `${tokens}${most} tokens${over ? ": the rest is cut off" : ""}`;
  at("tokens").classList.toggle("over", over);
  const bare = text.value === row.text && row.captions.join("\n") !== row.text;
  at("learned").textContent = bare ? `learned as: ${row.captions.join(" | ")}` : "";
}

// ---- editing

function edit() {
  const row = current();
  if (!row || editing) return;
  if (row.blocked) { say(`mend its file first: ${row.findings[0].words}`, true); return; }
  editing = true;
  detail(row);
  text.value = drafts.get(row.key) ?? row.text;
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
  say("");
}

// Stop editing; what was typed stays a draft.
function leave() {
  if (!editing) return;
  editing = false;
  const row = current();
  render();
  if (row && drafts.has(row.key)) say(`${nameOf(row.path)} is not saved`, true);
}

function cancel() {
  if (drafts.has(chosen)) discarded.set(chosen, drafts.get(chosen));
  const lost = drafts.delete(chosen);
  leave();
  list.focus();
  say(lost ? "not saved; u brings your text back" : "");
}

function bringBack() {
  if (!discarded.has(chosen)) return;
  drafts.set(chosen, discarded.get(chosen));
  discarded.delete(chosen);
  edit();
}

async function save(then = () => list.focus()) {
  const row = current();
  if (!row || !editing) return;
  const typed = text.value;
  if (!typed.trim()) { say("an empty caption is not saved; write what the picture shows", true); return; }
  try {
    const found = await ask("api/save", { key: row.key, text: typed, stamp: row.stamp });
    if (found.conflict) { conflict(row, found); return; }
    drafts.delete(row.key);
    replaceRows(found.rows);
    editing = false;
    render();
    say(`saved: ${nameOf(row.path)}`);
    then();
  } catch (error) {
    say(error.message, true);
  }
}

function conflict(row, found) {
  replaceRows(found.rows);
  at("meanwhile").textContent = "Somebody changed this caption meanwhile. It says now:";
  at("theirs").textContent = found.rows[0]?.text || "(there is none any more)";
  at("conflict").hidden = false;
  at("take").onclick = () => { cancel(); };
  at("keep").onclick = () => { at("conflict").hidden = true; text.focus(); };
  at("take").focus();
  say("not saved", true);
}

async function fits() {
  const row = current();
  if (!row || !has(row, "changed")) return;
  try {
    replaceRows((await ask("api/confirm", { key: row.key })).rows);
    render();
    list.focus();
    say(`confirmed: ${nameOf(row.path)}`);
  } catch (error) {
    say(error.message, true);
  }
}

function replaceRows(changed) {
  const fresh = new Map(changed.map((row) => [row.key, row]));
  rows = rows.map((row) => fresh.get(row.key) ?? row);
}

function move(by) {
  const index = shown.findIndex((row) => row.key === chosen);
  const next = shown[Math.min(shown.length - 1, Math.max(0, index + by))];
  if (next) choose(next.key);
}

// After a save the row in front may no longer pass the filter: the next one has moved to its place then.
function editNext(index) {
  const next = shown[shown[index]?.key === chosen ? index + 1 : index];
  if (!next) { list.focus(); return; }
  choose(next.key);
  edit();
}

// ---- keys

const KEYS = {
  j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
  g: () => move(-rows.length), Home: () => move(-rows.length), G: () => move(rows.length), End: () => move(rows.length),
  PageDown: () => move(10), PageUp: () => move(-10),
  Enter: edit, e: edit, c: fits, u: bringBack,
  p: () => { filter.value = filter.value === "problems" ? "all" : "problems"; render(); },
  r: () => load().then(() => say("read again"), (error) => say(error.message, true)),
  "/": () => { search.focus(); search.select(); },
  "?": () => at("keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (at("keys").open || event.isComposing) return;
  const command = event.ctrlKey || event.metaKey;
  if (command && event.key.toLowerCase() === "s") { event.preventDefault(); save(); return; }
  if (event.target === text && editing) {
    if (event.key === "Escape") cancel();
    else if (event.key === "Enter" && command) {
      const index = shown.findIndex((row) => row.key === chosen);
      save(() => editNext(index));
    } else if (event.key === "Enter" && !event.shiftKey && !current().lines) save();
    else return;
    event.preventDefault();
    return;
  }
  if (event.target === search) {
    if (event.key === "Escape") { search.value = ""; render(); }
    if (["Escape", "Enter", "ArrowDown"].includes(event.key)) { event.preventDefault(); list.focus(); }
    return;
  }
  const isControl = event.target.closest("button, select");
  if (command || event.altKey || !KEYS[event.key] || (isControl && event.key.length > 1)) return;
  event.preventDefault();
  KEYS[event.key]();
});

text.addEventListener("input", () => {
  const row = current();
  if (text.value === row.text) drafts.delete(row.key);
  else drafts.set(row.key, text.value);
  count();
});
editor.addEventListener("submit", (event) => { event.preventDefault(); save(); });
text.addEventListener("dblclick", edit);
at("edit").addEventListener("click", edit);
at("cancel").addEventListener("click", cancel);
at("fits").addEventListener("click", fits);
at("help").addEventListener("click", KEYS["?"]);
search.addEventListener("input", () => { leave(); render(); });
filter.addEventListener("change", () => { leave(); render(); });
window.addEventListener("beforeunload", (event) => { if (drafts.size) event.preventDefault(); });

filter.append(make("option", { value: "all", textContent: "all pictures" }));
load().then(() => list.focus(), (error) => say(error.message, true));
