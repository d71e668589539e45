// The page: photos in, faces and the decision out. The files that it loads are made by `python -m bench.browser_page`.

import { alignedPoints, apply, cut, decide, detect, invert, percent, similarityTransform, usualRate } from "./faces.js";

const POINTS = ["left eye", "right eye", "nose", "left corner of the mouth", "right corner of the mouth"];
const LONGEST_SIDE = 2000; // pixels; larger photos are made smaller
const RIVAL = 0.5; // share of the first face's prominence from which another face makes the choice unclear
const $ = (id) => document.getElementById(id);

let model, sessions, working = Promise.resolve();

async function load() {
  const ort = await import("./ort.wasm.bundle.min.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
  model = await (await fetchFile("model.json")).json();
  sessions = {};
  for (const name of ["model", "proposal", "refinement", "output"]) {
    const content = new Uint8Array(await (await fetchFile(`${name}.onnx`)).arrayBuffer());
    sessions[name] = await ort.InferenceSession.create(content, { logSeverityLevel: 3 });
  }
  return async (name, images, dims) => {
    const session = sessions[name];
    const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", images, dims) });
    return name === "model" ? outputs : outputs[session.outputNames[0]];
  };
}

async function fetchFile(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

export const cards = ["A", "B"].map((letter) => {
  const root = $("card").content.cloneNode(true).firstElementChild;
  const find = (selector) => root.querySelector(selector);
  const card = { letter, root, find, photo: null, faces: [], index: 0, points: [], view: null, result: null };
  find("h2").textContent = `Photo ${letter}`;
  $("photos").append(root);
  find("input").addEventListener("change", (event) => {
    choose(card, event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  find("select").addEventListener("change", () => card.photo && enqueue(card, () => locate(card)));
  find(".next").addEventListener("click", () => enqueue(card, () => takeFace(card, (card.index + 1) % card.faces.length)));
  const drop = find(".drop");
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    choose(card, event.dataTransfer.files[0]);
  });
  card.marks = POINTS.map((name, index) => addMark(card, name, index));
  return card;
});

const ready = load();
ready.then(
  () => { $("loading").textContent = "The model is loaded. It runs in one thread of this browser."; },
  (error) => {
    $("loading").classList.add("error");
    $("loading").textContent = `The model could not be loaded (${error.message}). Its files are made by "make docs", which ` +
      "needs npm, and the page works from a web server only, such as python -m http.server.";
    for (const input of document.querySelectorAll("input, select")) input.disabled = true;
  },
);

/** Do one thing after the other: the page has one thread. */
function enqueue(card, task) {
  working = working.then(async () => {
    card.find(".status").classList.remove("error");
    try {
      await ready;
      await task();
    } catch (error) {
      card.result = null;
      card.find(".panels").hidden = true;
      card.find(".time").textContent = "";
      card.find(".status").classList.add("error");
      card.find(".status").textContent = error.message;
    }
    showDecision();
  });
}

/** Let the browser draw before a long calculation. */
const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

function choose(card, file) {
  if (!file) return;
  card.find(".drop span").textContent = file.name;
  card.find(".status").textContent = card.find(".time").textContent = "";
  enqueue(card, async () => {
    card.photo = card.result = null;
    for (const part of [".photo", ".next", ".panels"]) card.find(part).hidden = true;
    card.photo = await read(file);
    await locate(card);
  });
}

/** Return the upright photo in sRGB on white. */
async function read(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no image that this browser reads: choose a JPEG, PNG or WebP file`);
  }
  const shrink = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * shrink));
  canvas.height = Math.max(1, Math.round(bitmap.height * shrink));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return { canvas, pixels: context.getImageData(0, 0, canvas.width, canvas.height) };
}

/** Find the five points of the face and process it. */
async function locate(card) {
  const { width, height } = card.photo.pixels, kind = card.find("select").value;
  card.find(".next").hidden = true;
  card.seconds = 0;
  if (kind) {
    const alignment = kind === "canonical" ? model.face : model.alignments[kind];
    card.faces = [{ points: alignedPoints(alignment, width, height) }];
    return takeFace(card, 0);
  }
  card.find(".status").textContent = "Looking for the face …";
  await painted();
  const start = performance.now();
  card.faces = await detect(await ready, card.photo.pixels, model.face);
  card.seconds = (performance.now() - start) / 1000;
  if (card.faces.length) return takeFace(card, 0);
  // The points of a face that fills most of the photo, as a start.
  const side = Math.min(width, height), scale = side / model.face.size;
  const points = model.face.template.map(([x, y]) => [x * scale + (width - side) / 2, y * scale + (height - side) / 2]);
  showPoints(card, points, [0, 0, width, height]);
  throw new Error("No face was found: drag the five points to the eyes, the nose and the corners of the mouth.");
}

async function takeFace(card, index) {
  card.index = index;
  const { points } = card.faces[index], rivals = card.faces.filter((face) => face.prominence >= RIVAL * card.faces[0].prominence);
  // The part of the photo with the canonical crop, and as much again around it.
  const back = invert(similarityTransform(points, model.face.template)), size = model.face.size;
  const [x, y] = apply(back, [size / 2, size / 2]), half = Math.hypot(back.a, back.b) * size * 0.75;
  const { width, height } = card.photo.pixels;
  const view = [Math.max(0, x - half), Math.max(0, y - half), Math.min(width, x + half), Math.min(height, y + half)];
  showPoints(card, points, view.map(Math.round));
  card.find(".next").hidden = card.faces.length < 2;
  const count = card.faces.length > 1 ? `Face ${index + 1} of ${card.faces.length}.` : "";
  const choice = rivals.length > 1 ? "Several faces are of similar size: check that this is the one you mean." : "";
  await process(card, `${count} ${choice}`.trim());
}

function showPoints(card, points, view) {
  card.points = points.map((point) => [...point]);
  card.view = view;
  const [left, top, right, bottom] = view, canvas = card.find(".photo canvas");
  canvas.width = Math.max(1, right - left);
  canvas.height = Math.max(1, bottom - top);
  canvas.getContext("2d").drawImage(card.photo.canvas, -left, -top);
  card.find(".photo").hidden = false;
  card.marks.forEach((_, index) => placeMark(card, index));
}

function placeMark(card, index) {
  const [left, top, right, bottom] = card.view, [x, y] = card.points[index], mark = card.marks[index];
  mark.style.left = `${(100 * (x + 0.5 - left)) / (right - left)}%`;
  mark.style.top = `${(100 * (y + 0.5 - top)) / (bottom - top)}%`;
}

/** A point of the face that can be dragged, or moved by the arrow keys. */
function addMark(card, name, index) {
  const mark = document.createElement("button");
  mark.type = "button";
  mark.className = "mark";
  mark.title = name;
  mark.setAttribute("aria-label", `${name}, photo ${card.letter}; arrow keys move it`);
  const moved = () => enqueue(card, () => process(card, "Points set by hand."));
  mark.addEventListener("pointerdown", (event) => mark.setPointerCapture(event.pointerId));
  mark.addEventListener("pointermove", (event) => {
    if (!mark.hasPointerCapture(event.pointerId)) return;
    const box = card.find(".photo canvas").getBoundingClientRect(), [left, top, right, bottom] = card.view;
    const x = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const y = Math.min(Math.max((event.clientY - box.top) / box.height, 0), 1);
    card.points[index] = [left + x * (right - left) - 0.5, top + y * (bottom - top) - 0.5];
    placeMark(card, index);
  });
  mark.addEventListener("lostpointercapture", moved);
  mark.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [x, y] = card.points[index], pixel = Math.max(1, (card.view[2] - card.view[0]) / 200);
    card.points[index] = [x + step[0] * pixel, y + step[1] * pixel];
    placeMark(card, index);
  });
  mark.addEventListener("keyup", (event) => event.key.startsWith("Arrow") && moved());
  card.find(".photo").append(mark);
  return mark;
}

/** Complete and embed the face at the card's points. */
async function process(card, note) {
  card.find(".status").textContent = "Completing the face …";
  await painted();
  const size = model.face.size, start = performance.now();
  const crop = cut(card.photo.pixels, card.points, model.face);
  const outputs = await (await ready)("model", crop, [1, 3, size, size]);
  const seconds = (performance.now() - start) / 1000;
  card.result = { embedding: outputs.embedding.data, covered: outputs.covered.data[0], seconds };
  const [shown, outlined, completed] = ["crop", "outlined", "completed"].map((name) => card.find(`canvas.${name}`));
  draw(shown, crop, size);
  draw(outlined, crop, size, outputs.mask.data);
  draw(completed, outputs.completed_face.data, size);
  const masked = model.thresholds && card.result.covered >= model.thresholds.masked.limit;
  card.find(".outlined + figcaption").textContent =
    `${masked ? "Masked" : "Not masked"}, ${percent(1 - card.result.covered)} visible`;
  card.find(".panels").hidden = false;
  card.find(".status").textContent = note;
  const found = card.seconds ? `${card.seconds.toFixed(2)} s to find the face, ` : "";
  card.find(".time").textContent = `${found}${seconds.toFixed(2)} s to complete and embed it`;
}

/** Draw planar RGB in [-1, 1], with the outline of a mask. */
function draw(canvas, pixels, size, mask) {
  canvas.width = canvas.height = size;
  const context = canvas.getContext("2d"), image = context.createImageData(size, size), area = size * size;
  const inside = (x, y) => x >= 0 && y >= 0 && x < size && y < size && mask[y * size + x] >= 0.5;
  for (let index = 0; index < area; index++) {
    const x = index % size, y = Math.floor(index / size);
    const edge = mask && inside(x, y) && ![[1, 0], [-1, 0], [0, 1], [0, -1]].every(([u, v]) => inside(x + u, y + v));
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * index + channel] = edge ? [255, 204, 0][channel] : (pixels[channel * area + index] + 1) * 127.5;
    }
    image.data[4 * index + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function showDecision() {
  const results = cards.map((card) => card.result), box = $("result");
  box.hidden = !results.every(Boolean);
  if (box.hidden) return;
  if (!$("rate").options.length) {
    for (const { target } of model.thresholds.thresholds["clean-clean"]) $("rate").add(new Option(target, target));
    $("rate").value = usualRate(model.thresholds);
  }
  const [one, other] = results;
  const similarity = one.embedding.reduce((sum, value, index) => sum + value * other.embedding[index], 0);
  const verdict = decide(model.thresholds, similarity, [one.covered, other.covered], Number($("rate").value));
  box.dataset.decision = verdict.decision;
  $("decision").textContent = verdict.decision;
  $("reason").textContent = verdict.reason;
  $("similarity").textContent = similarity.toFixed(3);
  $("same-from").textContent = verdict.sameFrom.toFixed(3);
  $("different-below").textContent = verdict.differentBelow.toFixed(3);
  $("condition").textContent = verdict.condition;
  $("fill").style.width = `${100 * Math.min(Math.max(similarity, 0), 1)}%`;
  $("same").style.left = `${100 * verdict.sameFrom}%`;
  $("different").style.left = `${100 * verdict.differentBelow}%`;
}

$("rate").addEventListener("change", showDecision);
