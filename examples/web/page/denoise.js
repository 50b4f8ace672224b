// A picture or the camera's, denoised by neighborhood attention (non-local means, Buades et al., 2005). A pixel's query is the patch P
// around it and a 1, its key the patch P' and −‖P'‖²/2: scale · (P·P' − ‖P'‖²/2) is less by the distance of the two patches, but
// for a part that all keys share. Values are colors.

import { NeighborhoodAttention } from "./wgpu_attention.js";
import { busy, byId, chance, controls, count, element, isSoftware, latest, milliseconds } from "./ui.js";
import { landscape } from "./picture.js";

const PATCH = 3;
const NUMBERS = 3 * PATCH * PATCH; // of a patch; with the 1 it is 28, a multiple of 4

let gpu = null;
let source = null; // a canvas or a video
let camera = null; // its stream
let settings = { size: 0, window: 9, noise: 20, strength: 1 };
let kept = null; // the kernel for a size and settings
let frames = [];

export async function enter(device) {
  gpu = device;
  kept = null;
  settings.size ||= isSoftware(gpu.device) ? 192 : 384;
  source ??= landscape(480, 320);
  build();
  await refresh();
}

export function leave() {
  gpu = null;
  stopCamera();
}

function build() {
  const sizes = [128, 192, 256, 384, 512, 768].map((n) => [String(n), `${n} pixels wide`]);
  const form = byId("denoise-controls");
  controls(form, [
    { name: "size", label: "Size", kind: "select", options: sizes, value: String(settings.size) },
    { name: "window", label: "window", min: 3, max: 21, step: 2, value: settings.window, show: (n) => `${n} × ${n}` },
    { name: "noise", label: "noise added", min: 0, max: 60, step: 1, value: settings.noise },
    { name: "strength", label: "strength", min: 0.2, max: 3, step: 0.1, value: settings.strength, show: (x) => x.toFixed(1) },
  ], (now) => {
    settings = { ...now, size: Number(now.size) };
    refresh();
  });
  const file = element("input", { type: "file", accept: "image/*", id: "file" });
  file.onchange = () => file.files[0] && open(file.files[0]);
  const pick = element("label", { className: "file", textContent: "Your picture" });
  pick.append(file);
  const live = element("button", { type: "button", id: "camera", textContent: camera ? "Stop the camera" : "Camera" });
  live.onclick = () => (camera ? stopCamera() : startCamera());
  form.prepend(pick, live);
}

const say = (text) => {
  byId("denoise-said").textContent = text;
};

async function open(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const canvas = element("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    stopCamera();
    source = canvas;
    await refresh();
  } catch {
    say(`${file.name} is not a picture that this browser can open.`);
  }
}

async function startCamera() {
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { width: 640 } });
  } catch (e) {
    camera = null;
    say(`No camera: ${e.message}.`);
    return;
  }
  const video = element("video", { srcObject: camera, muted: true, playsInline: true });
  await video.play();
  source = video;
  frames = [];
  byId("camera").textContent = "Stop the camera";
  while (camera && gpu) {
    await refresh();
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  if (!camera) return;
  // The last frame stays.
  const still = element("canvas", { width: source.videoWidth, height: source.videoHeight });
  still.getContext("2d").drawImage(source, 0, 0);
  source = still;
  camera.getTracks().forEach((track) => track.stop());
  camera = null;
  if (byId("camera")) byId("camera").textContent = "Camera";
}

const refresh = latest(async () => {
  if (!gpu) return;
  const start = performance.now();
  const before = noisy(shrunk());
  // A film goes on with its last frame; else what was computed for other choices goes.
  busy("denoise", !camera);
  if (!camera) paint("before", before);
  if (!kept) say("Compiling …");
  const { colors, seconds, fresh } = await denoise(gpu, before).finally(() => busy("denoise", false));
  paint("before", before);
  paint("after", { ...before, colors });
  const took = performance.now() - start;
  const what = `${before.width} × ${before.height} pixels, ${count(settings.window ** 2)} neighbors each`;
  if (fresh) {
    say(`${what}: ${milliseconds(took)} including compilation …`);
    refresh(); // and once more to see how long it takes without
    return;
  }
  frames = [...frames.slice(-9), performance.now()];
  const rate = frames.length > 1 ? (1000 * (frames.length - 1)) / (frames.at(-1) - frames[0]) : 1000 / took;
  const speed = camera ? `, ${rate.toFixed(1)} frames a second` : `, ${(1000 / took).toFixed(1)} frames a second if it were a video`;
  say(`${what}: ${milliseconds(1000 * seconds)} on the GPU, ${milliseconds(took)} in all${speed}.`);
  byId("denoise").dataset.computed = 1 + Number(byId("denoise").dataset.computed ?? 0);
});

// The source at the chosen width, colors 0 to 1.
function shrunk() {
  const [from, to] = [source.videoWidth ?? source.width, source.videoHeight ?? source.height];
  const least = settings.window;
  const width = Math.max(least, Math.min(settings.size, from));
  const height = Math.max(least, Math.round((width * to) / from));
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const colors = new Float32Array(3 * width * height);
  for (let i = 0; i < colors.length; i++) colors[i] = data[4 * Math.floor(i / 3) + (i % 3)] / 255;
  return { width, height, colors };
}

// With noise of that standard deviation (of 255), always the same.
function noisy(picture) {
  if (!settings.noise) return picture;
  const random = chance(1);
  const colors = picture.colors.map((x) =>
    x + (settings.noise / 255) * Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random()));
  return { ...picture, colors };
}

function paint(id, { width, height, colors }) {
  const canvas = byId(id);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  for (let i = 0; i < colors.length; i++) image.data[4 * Math.floor(i / 3) + (i % 3)] = 255 * colors[i];
  for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

async function denoise(gpu, { width, height, colors }) {
  const n = width * height;
  const queries = new Float32Array(n * (NUMBERS + 1));
  const keys = new Float32Array(n * (NUMBERS + 1));
  const mirror = (i, length) => (i < 0 ? -i : i >= length ? 2 * length - 2 - i : i);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += NUMBERS + 1) {
      let place = at;
      let squares = 0;
      for (let dy = -1; dy <= 1; dy++) {
        const row = mirror(y + dy, height) * width;
        for (let dx = -1; dx <= 1; dx++) {
          const from = 3 * (row + mirror(x + dx, width));
          for (let c = 0; c < 3; c++, place++) {
            const value = colors[from + c];
            queries[place] = keys[place] = value;
            squares += value * value;
          }
        }
      }
      queries[place] = 1;
      keys[place] = -squares / 2;
    }
  }
  const { attention, fresh } = kernel(gpu, width, height);
  const tensors = await Promise.all([
    gpu.tensor([1, 1, n, NUMBERS + 1], queries),
    gpu.tensor([1, 1, n, NUMBERS + 1], keys),
    gpu.tensor([1, 1, n, 3], colors),
  ]);
  const start = performance.now();
  const out = await attention.forward(...tensors);
  await gpu.device.queue.onSubmittedWorkDone();
  const seconds = (performance.now() - start) / 1000;
  const result = await out.read();
  [...tensors, out].forEach((tensor) => tensor.destroy());
  return { colors: result, seconds, fresh };
}

// Patches that differ by noise of σ alone are 2 σ² · NUMBERS apart, a score of −2.5 at strength 1: a pixel counts itself as one of
// those, or little would change. (A number in the text: another would be another shader.)
const ITSELF = {
  entry: "itself",
  source: "fn itself(score: f32, at: Position) -> f32 { return score - select(0.0, 2.5, at.query == at.key); }",
};

function kernel(gpu, width, height) {
  const { window, noise, strength } = settings;
  const name = [width, height, window, noise, strength].join();
  if (kept?.name === name) return { attention: kept.attention, fresh: false };
  const sigma = Math.max(noise, 8) / 255;
  const h2 = (strength * 2 * sigma * sigma * NUMBERS) / 2.5;
  const axis = (length) => ({ length, window });
  const attention = new NeighborhoodAttention(gpu, { axes: [axis(height), axis(width)], scale: 2 / h2, scoreMod: [ITSELF] });
  kept = { name, attention };
  return { attention, fresh: true };
}

byId("divide").oninput = (event) => byId("pair").style.setProperty("--divide", `${event.target.value}%`);
byId("pair").style.setProperty("--divide", "50%");
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (!file) return;
  byId("tab-denoise").click();
  open(file);
});
