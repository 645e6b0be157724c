"use strict";

const $ = (id) => document.getElementById(id);
const TITLES = { detection: "Detection", instance: "Instances", panoptic: "Panoptic", semantic: "Semantic" };
const COUNTED = { detection: "box", instance: "object", panoptic: "segment", semantic: "class" };
const PAUSE = 60; // milliseconds without a move of the slider before pictures are asked for

let model = { max_upload_mb: Infinity };
let shown = null; // key and styles of the image on the page
let latest = 0; // upload whose answer counts

function tell(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

/* The JSON of an answer; what went wrong becomes an Error with the server's words. */
async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error || `The server answered with status ${response.status}.`);
  return body;
}

async function upload(file) {
  const own = ++latest;
  try {
    if (file.size > model.max_upload_mb * 1e6) {
      throw new Error(`This file is too large: give one of at most ${model.max_upload_mb} MB.`);
    }
    tell(`${file.name}: looking … the first image of a size takes longer.`);
    const start = performance.now();
    const found = await answer(await fetch("images", { method: "POST", body: file }));
    if (own !== latest) return;
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    tell(`${file.name}: ${found.width} × ${found.height} pixels, ${seconds} s`);
    show(found);
  } catch (error) {
    if (own !== latest) return;
    const lost = error instanceof TypeError; // of fetch: no connection
    tell(lost ? "The server does not answer: is it still running?" : error.message, true);
  }
}

function plural(count, word) {
  if (count === 1) return `1 ${word}`;
  return `${count} ${/(s|x)$/.test(word) ? word + "es" : word + "s"}`;
}

function show(found) {
  shown = found;
  $("results").hidden = false;
  $("pictures").replaceChildren(...found.styles.map((style) => {
    const figure = document.createElement("figure");
    figure.id = style;
    const caption = document.createElement("figcaption");
    const title = document.createElement("h2");
    title.textContent = TITLES[style];
    caption.append(title, document.createElement("span"));
    const image = document.createElement("img");
    image.alt = `${TITLES[style]} of the image`;
    image.style.aspectRatio = `${found.width} / ${found.height}`;
    figure.append(caption, image);
    return figure;
  }));
  found.styles.forEach(draw);
}

/* Ask for the picture of a style, one at a time; the last position of the slider wins. */
const asking = new Set();
async function draw(style) {
  if (asking.has(style)) return;
  asking.add(style);
  const key = shown.key, threshold = $("threshold").value;
  try {
    const response = await fetch(`images/${key}/${style}?threshold=${threshold}`);
    if (!response.ok) await answer(response);
    const picture = await response.blob();
    const image = document.querySelector(`#${style} img`);
    if (image && key === shown.key) {
      const old = image.src;
      image.src = URL.createObjectURL(picture);
      if (old) URL.revokeObjectURL(old);
      const count = plural(Number(response.headers.get("X-Count")), COUNTED[style]);
      document.querySelector(`#${style} span`).textContent = style === "semantic" ? `${count}, not scored` : count;
      image.dataset.threshold = threshold;
    }
  } catch (error) {
    tell(error instanceof TypeError ? "The server does not answer: is it still running?" : error.message, true);
    asking.delete(style);
    return;
  }
  asking.delete(style);
  const moved = style !== "semantic" && threshold !== $("threshold").value;
  if (shown.styles.includes(style) && (moved || key !== shown.key)) draw(style);
}

let timer = 0;
function moved() {
  $("value").textContent = `${Math.round(100 * $("threshold").value)} %`;
  clearTimeout(timer);
  timer = setTimeout(() => shown && shown.styles.filter((style) => style !== "semantic").forEach(draw), PAUSE);
}

$("file").addEventListener("change", () => {
  if ($("file").files.length) upload($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
for (const name of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(name, (event) => {
    event.preventDefault(); // a file dropped beside the field must not replace the page
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
  });
}
$("threshold").addEventListener("input", moved);

async function start() {
  try {
    model = await answer(await fetch("model"));
    $("model").textContent = `${model.name} · files of at most ${model.max_upload_mb} MB`;
    $("threshold").value = model.threshold;
    moved();
  } catch (error) {
    tell(error.message, true);
  }
}
start();
