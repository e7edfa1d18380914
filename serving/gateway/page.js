"use strict";
// Sends the image that is dropped, pasted or chosen, and shows the answer. Texts from the answer are
// set as text, never as markup.
const byId = (id) => document.getElementById(id);
const drop = byId("drop");
const file = byId("file");
const status = byId("status");
const preview = byId("preview");
const result = byId("result");
let latest = 0;
let shown = null; // the image, however it came

function say(text, kind = "") {
  status.textContent = text;
  status.className = kind;
}

function credentials() {
  const value = byId("credential").value.trim();
  if (!value) return {};
  const isToken = /^[\w-]+\.[\w-]+\.[\w-]*$/.test(value);
  return isToken ? { Authorization: `Bearer ${value}` } : { "X-API-Key": value };
}

function bar({ class: name, score }) {
  const item = document.createElement("li");
  const percent = `${(100 * (score ?? 0)).toFixed(1)}%`;
  for (const [kind, text] of [["name", name], ["score", percent]]) {
    const part = document.createElement("span");
    part.className = kind;
    part.textContent = text;
    item.append(part);
  }
  const track = document.createElement("div");
  track.className = "track";
  track.setAttribute("aria-hidden", "true");
  const filled = document.createElement("div");
  filled.className = "bar";
  filled.style.width = percent;
  track.append(filled);
  item.append(track);
  return item;
}

function show(answer, milliseconds) {
  byId("bars").replaceChildren(...answer.predictions.map(bar));
  const label = answer.label ? `, ${answer.label}` : "";
  byId("source").textContent =
    `${answer.model}, version ${answer.version}${label}, ${Math.round(milliseconds)} ms`;
  result.hidden = false;
  const best = answer.predictions[0];
  // The first bar shows it already.
  say(`${best.class}: ${(100 * (best.score ?? 0)).toFixed(1)}%`, "heard");
}

async function classify(image) {
  const mine = ++latest;
  shown = image;
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  preview.alt = image.name || "the image";
  preview.hidden = false;
  result.hidden = true;
  say("Asking…");
  const began = performance.now();
  try {
    const response = await fetch("v1/classify", {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream", ...credentials() },
      body: image,
      credentials: "omit",
    });
    const answer = await response.json();
    if (mine !== latest) return;
    if (response.ok) {
      show(answer, performance.now() - began);
      return;
    }
    if (response.status === 401) {
      byId("access").open = true;
      byId("credential").focus();
    }
    say(`No answer for ${image.name || "this image"}: ${answer.detail || response.statusText}`, "bad");
  } catch {
    if (mine === latest) say("The gateway cannot be reached.", "bad");
  }
}

function take(list) {
  const image = [...list].find((item) => item instanceof File);
  if (image) classify(image);
  return Boolean(image);
}

preview.addEventListener("error", () => { preview.hidden = true; });
byId("form").addEventListener("submit", (event) => event.preventDefault());
// Emptied, for a file that is chosen a second time would be no change.
file.addEventListener("click", () => { file.value = ""; });
file.addEventListener("change", () => take(file.files));
byId("credential").addEventListener("change", () => { if (shown) classify(shown); });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (!take(event.dataTransfer.files)) say("What was dropped is no file.", "bad");
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));
