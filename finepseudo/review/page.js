// Texts of other people are only ever set as textContent; nothing is fetched.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const key = "finepseudo-review-" + data.queue;
const KEPT_STRIPS = 12;
const strips = new Map();
const pair = new Pair(at("mine"), at("theirs"), at("scrub"), at("where"), at("play"));
let answers = Object.create(null), clip = 0, near = 0, asked = null;

// Without a prototype, so that no id of a clip is found in it before it is answered.
try { Object.assign(answers, JSON.parse(localStorage.getItem(key))); } catch (error) { /* nothing was kept */ }

function keep() {
  try { localStorage.setItem(key, JSON.stringify(answers)); } catch (error) { /* the page still works, until it is closed */ }
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function button(text, hint, pressed, act) {
  const made = element("button");
  made.type = "button";
  made.append(element("span", text));
  if (hint) made.append(" ", element("kbd", hint));
  if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
  made.addEventListener("click", act);
  return made;
}

const share = (value) => value.toFixed(2);

function strip(row) {
  let image = strips.get(row);
  if (!image) {
    image = new Image();
    image.src = "data:image/jpeg;base64," + data.strips[row];
  }
  strips.delete(row);
  strips.set(row, image);
  if (strips.size > KEPT_STRIPS) strips.delete(strips.keys().next().value);
  return image;
}

function told(answer) {
  if (!answer) return "not answered yet";
  if (answer.answer === "skip") return "skipped: no answer";
  if (answer.answer === "reject") return "rejected: wrong, the right class is not known";
  return `${answer.label}${answer.new ? ", a new class" : answer.answer === "accept" ? ", accepted" : ""}`;
}

function mark(answer) {
  if (!answer) return ["", ""];
  if (answer.answer === "skip") return ["skipped", ""];
  return answer.answer === "reject" ? ["✗ rejected", "no"] : [answer.answer === "accept" ? "✓" : `→ ${answer.label}`, "yes"];
}

function showList() {
  data.clips.forEach((one, place) => {
    const made = at("list").children[place].firstChild, [text, className] = mark(answers[one.clip]);
    made.setAttribute("aria-current", String(place === clip));
    made.querySelector(".mark").textContent = text;
    made.querySelector(".mark").className = "mark " + className;
  });
  const count = data.clips.filter((one) => answers[one.clip]).length;
  at("progress").value = count;
  at("done").textContent = `${count} of ${data.clips.length} looked at`;
}

function show(frame) {
  const one = data.clips[clip], other = one.near[near], answer = answers[one.clip];
  at("mine-name").textContent = one.clip;
  at("theirs-label").textContent = other ? other.label : "";
  at("theirs-name").textContent = other ? `${other.clip}, alignability ${share(other.S)}` : "no labelled clip is near";
  at("near").replaceChildren(element("span", "beside:", "muted"), ...one.near.map((each, place) =>
    button(`${each.label} ${share(each.S)}`, place === near ? "b" : "", place === near, () => { near = place; show(pair.frame); })));
  const facts = [
    ["label now", `${one.label}, confidence ${share(one.confidence)}${one.accepted ? "" : ", not accepted"}`],
    ["p_A says", `${one.p_A.label}, ${share(one.p_A.confidence)}`],
    ["p_E says", `${one.p_E.label}, ${share(one.p_E.confidence)}`],
    ["file", one.file],
  ];
  at("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  at("answered").textContent = told(answer);
  at("top").replaceChildren(...one.top.slice(0, 5).map((each, place) =>
    button(`${each.label} ${share(each.p)}`, String(place + 1), Boolean(answer) && answer.label === each.label, () => choose(each.label))));
  const parts = Object.entries(one.parts).map(([name, value]) => `${name} ${share(value)}`);
  at("why").textContent = parts.length ? `why this clip: ${parts.join(", ")}` : "";
  showList();
  pair.show({
    frames: one.frames,
    seconds: one.seconds,
    path: other ? other.path : [],
    mine: { image: strip(one.row), name: `clip ${one.clip}` },
    theirs: other ? { image: strip(other.row), name: `labelled clip ${other.clip}` } : null,
  }, frame);
}

function go(place) {
  clip = Math.min(Math.max(place, 0), data.clips.length - 1);
  near = 0;
  show(0);
  at("list").children[clip].scrollIntoView({ block: "nearest" });
}

function answer(kind, more) {
  const one = data.clips[clip];
  answers[one.clip] = { clip: one.clip, answer: kind, ...more };
  keep();
  if (clip + 1 < data.clips.length) go(clip + 1); else show(pair.frame);
}

function choose(label) {
  answer(label === data.clips[clip].label ? "accept" : "rename", { label });
}

function undo() {
  delete answers[data.clips[clip].clip];
  keep();
  show(pair.frame);
}

function download() {
  const given = data.clips.map((one) => answers[one.clip]).filter(Boolean);
  const body = { form: data.form, queue: data.queue, recipe: data.recipe, answers: given };
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(body, null, 1)], { type: "application/json" }));
  link.download = "answers.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function fill() {
  const wanted = at("filter").value.toLowerCase();
  const found = data.classes.filter((name) => name.toLowerCase().includes(wanted));
  at("classes").replaceChildren(...found.map((name) => { const made = element("option", name); made.value = name; return made; }));
  at("classes").selectedIndex = found.length ? 0 : -1;
}

function ask(name, field) {
  pair.play(false);
  asked = at(name);
  at(field).value = "";
  fill();
  asked.showModal();
  at(field).focus();
}

function taken(label) {
  asked.close();
  if (data.classes.includes(label)) choose(label); else answer("new", { label, new: true });
}

const ACTIONS = {
  a: () => choose(data.clips[clip].label),
  r: () => answer("reject"),
  s: () => answer("skip"),
  u: undo,
  e: () => ask("rename-dialog", "filter"),
  n: () => ask("new-dialog", "name"),
  d: download,
  j: () => go(clip + 1),
  k: () => go(clip - 1),
  b: () => { near = (near + 1) % Math.max(1, data.clips[clip].near.length); show(pair.frame); },
  p: () => pair.play(!pair.timer),
  " ": () => pair.play(!pair.timer),
  ArrowLeft: () => pair.step(-1),
  ArrowRight: () => pair.step(1),
};
for (const number of [1, 2, 3, 4, 5]) ACTIONS[number] = () => { const one = data.clips[clip].top[number - 1]; if (one) choose(one.label); };
const BUTTONS = { accept: "a", reject: "r", skip: "s", undo: "u", rename: "e", new: "n", download: "d" };

if (data.clips.length) {
  at("list").replaceChildren(...data.clips.map((one, place) => {
    const item = element("li"), made = button(`${place + 1}. ${one.label}`, "", null, () => go(place));
    made.append(element("span", "", "mark"));
    item.append(made);
    return item;
  }));
  for (const [id, name] of Object.entries(BUTTONS)) at(id).addEventListener("click", () => ACTIONS[name]());
  at("filter").addEventListener("input", fill);
  at("filter").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], select = at("classes");
    if (!step) return;
    event.preventDefault();
    select.selectedIndex = Math.min(Math.max(select.selectedIndex + step, 0), select.length - 1);
  });
  at("classes").addEventListener("dblclick", () => at("rename-dialog").querySelector("form").requestSubmit());
  at("rename-dialog").addEventListener("submit", (event) => { event.preventDefault(); if (at("classes").value) taken(at("classes").value); });
  at("new-dialog").addEventListener("submit", (event) => { event.preventDefault(); const name = at("name").value.trim(); if (name) taken(name); });
  for (const made of document.querySelectorAll(".close")) made.addEventListener("click", () => made.closest("dialog").close());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const own = event.target.closest("button, input");
    if (own && (event.key === " " || (own.id === "scrub" && event.key.startsWith("Arrow")))) return; // the element's own
    const act = ACTIONS[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  const open = data.clips.findIndex((one) => !answers[one.clip]);
  go(open < 0 ? 0 : open);
} else {
  at("answered").textContent = "no clip is in this queue";
}
