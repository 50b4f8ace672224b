// The race: time over the number of tokens, longer ones until a kernel takes too long.

import { BlockMask, BlockSparseAttention, FlashAttention, LinearAttention, NeighborhoodAttention } from "./wgpu_attention.js";
import { UnfusedAttention } from "./unfused.js";
import { adapterName, byId, chance, isSoftware, milliseconds } from "./ui.js";

const HEADS = 4;
const WIDTH = 64;
const FROM = 256;
const UP_TO = 65536;
const BLOCK = 64;
const WINDOW = 128;
const KEPT = 0.1; // of the blocks

// A runner makes its kernel for a length and gives a function from tensors and repeats to seconds a run.
const RUNNERS = [
  { name: "three kernels, unfused", color: "#d1495b", dash: "6 4", make: (gpu) => {
    const kernel = new UnfusedAttention(gpu);
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: "flash", color: "#2274c8", make: (gpu) => {
    const kernel = new FlashAttention(gpu);
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: "flash, causal", color: "#56a3f0", make: (gpu) => {
    const kernel = new FlashAttention(gpu, { causal: "bottomRight" });
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: `block-sparse, ${100 * KEPT} % of blocks`, color: "#2a9d6f", make: async (gpu, n) => {
    const kernel = new BlockSparseAttention(gpu);
    const mask = await sparse(gpu, n);
    return (tensors, repeat) => kernel.time(...tensors, mask, repeat);
  } },
  { name: `neighborhood, window ${WINDOW}`, color: "#e9a03b", make: (gpu, length) => {
    const kernel = new NeighborhoodAttention(gpu, { axes: [{ length, window: WINDOW }] });
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: "linear", color: "#8e5bd0", make: (gpu) => {
    const kernel = new LinearAttention(gpu);
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
];

let gpu = null;
let results = []; // { name, color, dash, points: [{ n, ms }], why }
let running = false;

export async function enter(device) {
  gpu = device;
  if (!results.length) byId("race-said").textContent = "Takes some seconds on a GPU, about a minute on a processor.";
  draw();
}

export function leave() {
  gpu = null;
}

// Blocks by chance, and always a row's own.
function sparse(gpu, n) {
  const blocks = Math.ceil(n / BLOCK);
  const random = chance(7);
  const chosen = Uint8Array.from({ length: HEADS * blocks * blocks }, (_, at) => {
    const own = at % blocks === Math.floor(at / blocks) % blocks;
    return random() <= KEPT || own ? 1 : 0;
  });
  return BlockMask.fromArray(gpu, 1, HEADS, n, n, BLOCK, chosen);
}

async function run() {
  const device = gpu;
  // How long one run may take, and how long a measurement should at least.
  const [most, least] = isSoftware(device.device) ? [0.4, 0.02] : [0.25, 0.03];
  results = RUNNERS.map(({ name, color, dash }) => ({ name, color, dash, points: [], why: "" }));
  const going = () => running && gpu === device;
  for (let n = FROM; n <= UP_TO && going() && results.some((result) => !result.why); n *= 2) {
    const values = () => Float32Array.from({ length: HEADS * n * WIDTH }, () => 2 * Math.random() - 1);
    const tensors = [];
    for (let i = 0; i < 3; i++) tensors.push(await device.tensor([1, HEADS, n, WIDTH], values()));
    for (const [i, result] of results.entries()) {
      if (result.why || !going()) continue;
      byId("race-said").textContent = `${result.name}, ${n} tokens …`;
      try {
        const time = await RUNNERS[i].make(device, n);
        const seconds = await measure((repeat) => time(tensors, repeat), least);
        result.points.push({ n, ms: 1000 * seconds });
        // A line has two ends, on the slowest machine too.
        if (seconds > most && result.points.length > 1) result.why = "too slow to go on";
      } catch (e) {
        if (e.name === "DeviceLost") throw e;
        result.why = e.name === "Argument" || e.name === "Limit" || e.name === "OutOfMemory" ? "does not fit" : e.message;
      }
      draw();
      byId("race").dataset.computed = results.reduce((sum, { points }) => sum + points.length, 0);
    }
    tensors.forEach((tensor) => tensor.destroy());
  }
  if (gpu === device) finish();
}

// The median of three after a warm-up, each of as many runs as take long enough for the GPU's clock.
async function measure(time, least) {
  const first = await time(1);
  const repeat = Math.min(200, Math.max(1, Math.ceil(least / Math.max(first, 1e-5))));
  const all = [];
  for (let i = 0; i < (first > 0.2 ? 1 : 3); i++) all.push(await time(repeat));
  return all.sort((a, b) => a - b)[all.length >> 1];
}

// How many times as fast as the baseline each is at its longest.
function finish() {
  const base = results[0].points;
  const said = results.slice(1).flatMap(({ name, points }) => {
    const shared = base.filter(({ n }) => points.some((point) => point.n === n)).at(-1);
    return shared ? [`${name} ${(shared.ms / points.find(({ n }) => n === shared.n).ms).toFixed(1)} ×`] : [];
  });
  const longest = base.at(-1)?.n;
  byId("race-said").textContent = longest ? `Against three kernels, at ${longest} tokens: ${said.join(", ")}.` : "Nothing was measured.";
  byId("race").dataset.finished = "yes";
}

function text() {
  const { limits, features } = gpu.device;
  const lengths = [...new Set(results.flatMap(({ points }) => points.map(({ n }) => n)))].sort((a, b) => a - b);
  const cell = (result, n) => result.points.find((point) => point.n === n)?.ms.toPrecision(3) ?? (n > FROM ? "–" : "");
  return [
    `wgpu-attention, milliseconds, 1 × ${HEADS} heads × tokens × ${WIDTH}, f32`,
    `adapter: ${adapterName(gpu.device)}`,
    `limits: workgroup memory ${limits.maxComputeWorkgroupStorageSize}, invocations ${limits.maxComputeInvocationsPerWorkgroup}, ` +
      `storage buffers ${limits.maxStorageBuffersPerShaderStage}, binding ${limits.maxStorageBufferBindingSize}`,
    `clock: ${features.has("timestamp-query") ? "the GPU's timestamps" : "submit to done"}`,
    `browser: ${navigator.userAgent}`,
    "",
    `| tokens | ${results.map(({ name }) => name).join(" | ")} |`,
    `|---|${results.map(() => "---").join("|")}|`,
    ...lengths.map((n) => `| ${n} | ${results.map((result) => cell(result, n)).join(" | ")} |`),
  ].join("\n");
}

function draw() {
  const some = results.some(({ points }) => points.length);
  byId("race-copy").disabled = byId("race-text").hidden = !some;
  if (some && gpu) byId("race-text").textContent = text();
  byId("plot").innerHTML = some ? plot() : "";
}

const axis = (ms) => (ms >= 1000 ? `${Math.round(ms / 1000)} s` : `${ms >= 1 ? Math.round(ms) : ms.toPrecision(1)} ms`);

// As wide as there is room for, so that letters keep their size.
function plot() {
  const width = Math.max(320, byId("plot").clientWidth || 720);
  const narrow = width < 560;
  const legend = 20 * results.length + 10;
  const height = (narrow ? 300 : 380) + (narrow ? legend : 0);
  const [left, right, top, bottom] = [58, 16, 16, 40 + (narrow ? legend : 0)];
  const all = results.flatMap(({ points }) => points);
  const [n0, n1] = [FROM, Math.max(2 * FROM, ...all.map(({ n }) => n))];
  const low = 10 ** Math.floor(Math.log10(Math.min(...all.map(({ ms }) => ms))));
  const high = 10 ** Math.ceil(Math.log10(Math.max(...all.map(({ ms }) => ms), 2 * low)));
  const x = (n) => left + ((width - left - right) * Math.log(n / n0)) / Math.log(n1 / n0);
  const y = (ms) => height - bottom - ((height - top - bottom) * Math.log(ms / low)) / Math.log(high / low);
  const parts = [];
  for (let ms = low; ms <= high * 1.01; ms *= 10) {
    parts.push(`<line class="grid" x1="${left}" x2="${width - right}" y1="${y(ms)}" y2="${y(ms)}"/>`);
    parts.push(`<text x="${left - 6}" y="${y(ms) + 4}" text-anchor="end">${axis(ms)}</text>`);
  }
  const every = narrow && n1 / n0 > 16 ? 4 : 2;
  for (let n = n0; n <= n1; n *= every) {
    parts.push(`<line class="grid" x1="${x(n)}" x2="${x(n)}" y1="${top}" y2="${height - bottom}"/>`);
    parts.push(`<text x="${x(n)}" y="${height - bottom + 18}" text-anchor="middle">${n < 1024 ? n : `${n / 1024}k`}</text>`);
  }
  results.forEach(({ name, color, dash, points, why }, i) => {
    const line = points.map(({ n, ms }) => `${x(n).toFixed(1)},${y(ms).toFixed(1)}`).join(" ");
    parts.push(`<polyline points="${line}" fill="none" stroke="${color}" stroke-width="2.5" stroke-dasharray="${dash ?? ""}"/>`);
    points.forEach(({ n, ms }) => parts.push(`<circle cx="${x(n)}" cy="${y(ms)}" r="3.5" fill="${color}"><title>${name}, ${n} tokens: ${milliseconds(ms)}</title></circle>`));
    const at = narrow ? height - legend + 20 * i : top + 14 + 20 * i;
    const ended = why && why !== "too slow to go on" ? ` (${why})` : "";
    parts.push(`<line x1="${left + 10}" x2="${left + 34}" y1="${at}" y2="${at}" stroke="${color}" stroke-width="2.5" stroke-dasharray="${dash ?? ""}"/>`);
    parts.push(`<text x="${left + 42}" y="${at + 4}">${name}${ended}</text>`);
  });
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Milliseconds over tokens">${parts.join("")}</svg>`;
}

byId("race-go").onclick = async () => {
  if (running) {
    running = false;
    return;
  }
  running = true;
  byId("race").dataset.finished = "";
  byId("race-go").textContent = "Stop";
  try {
    await run();
  } catch (e) {
    byId("race-said").textContent = e.name === "DeviceLost" ? "The GPU was lost in the middle: start again." : e.message;
  } finally {
    running = false;
    byId("race-go").textContent = "Start again";
  }
};
byId("race-copy").onclick = async () => {
  try {
    await navigator.clipboard.writeText(byId("race-text").textContent);
    byId("race-copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("race-text"));
    byId("race-copy").textContent = "Selected: copy it with the keyboard";
  }
  setTimeout(() => (byId("race-copy").textContent = "Copy as text"), 2000);
};
addEventListener("resize", () => {
  if (!byId("race").hidden) draw();
});
