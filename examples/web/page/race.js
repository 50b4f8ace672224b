// The race: time over the number of tokens, longer ones until a kernel takes too long.

import { BlockMask, BlockSparseAttention, FlashAttention, LinearAttention, NeighborhoodAttention } from "./wgpu_attention.js";
import { UnfusedAttention } from "./unfused.js";
import { adapterName, busy, byId, chance, count, element, isSoftware, milliseconds } from "./ui.js";

const HEADS = 4;
const WIDTH = 64;
const FROM = 256;
const UP_TO = 65536;
const BLOCK = 64;
const WINDOW = 128;
const KEPT = 0.1; // of the blocks

// A runner makes its kernel for a length and gives a function from tensors and repeats to seconds a run.
const RUNNERS = [
  { name: "three kernels, unfused", what: "scores, softmax and sum one after another, with all scores in memory", color: "#d1495b", dash: "6 4", make: (gpu) => {
    const kernel = new UnfusedAttention(gpu);
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: "flash", what: "the same result in one kernel that keeps no scores", color: "#2274c8", make: (gpu) => {
    const kernel = new FlashAttention(gpu);
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: "flash, causal", what: "each token sees itself and those before it: half the work", color: "#56a3f0", make: (gpu) => {
    const kernel = new FlashAttention(gpu, { causal: "bottomRight" });
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: `block-sparse, ${100 * KEPT} % of blocks`, what: `random blocks of ${BLOCK} × ${BLOCK}; the others are never computed`, color: "#2a9d6f", make: async (gpu, n) => {
    const kernel = new BlockSparseAttention(gpu);
    const mask = await sparse(gpu, n);
    return (tensors, repeat) => kernel.time(...tensors, mask, repeat);
  } },
  { name: `neighborhood, window ${WINDOW}`, what: `each token sees the ${WINDOW} nearest`, color: "#e9a03b", make: (gpu, length) => {
    const kernel = new NeighborhoodAttention(gpu, { axes: [{ length, window: WINDOW }] });
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
  { name: "linear", what: "a state instead of scores: work grows with the tokens, not with their square", color: "#8e5bd0", make: (gpu) => {
    const kernel = new LinearAttention(gpu);
    return (tensors, repeat) => kernel.time(...tensors, repeat);
  } },
];

let gpu = null;
let results = []; // { name, what, color, dash, points: [{ n, ms }], why }
let from = ""; // whose results they are, where they came by a link
let running = false;

export async function enter(device) {
  gpu = device;
  if (!results.length && !from) byId("race-said").textContent = "This takes a few seconds on a GPU, and about a minute on a processor.";
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
  results = RUNNERS.map(({ name, what, color, dash }) => ({ name, what, color, dash, points: [], why: "" }));
  from = "";
  draw();
  const going = () => running && gpu === device;
  for (let n = FROM; n <= UP_TO && going() && results.some((result) => !result.why); n *= 2) {
    const values = () => Float32Array.from({ length: HEADS * n * WIDTH }, () => 2 * Math.random() - 1);
    const tensors = [];
    for (let i = 0; i < 3; i++) tensors.push(await device.tensor([1, HEADS, n, WIDTH], values()));
    for (const [i, result] of results.entries()) {
      if (result.why || !going()) continue;
      byId("race-said").textContent = `${result.name}, ${count(n)} tokens …`;
      try {
        const time = await RUNNERS[i].make(device, n);
        const seconds = await measure((repeat) => time(tensors, repeat), least);
        result.points.push({ n, ms: 1000 * seconds });
        // A line has two ends, on the slowest machine too.
        if (seconds > most && result.points.length > 1) result.why = `takes more than ${milliseconds(1000 * most)}`;
      } catch (e) {
        if (e.name === "DeviceLost") throw e;
        result.why = e.name === "Argument" || e.name === "Limit" || e.name === "OutOfMemory" ? "does not fit the GPU's memory or limits" : e.message;
      }
      draw();
      byId("race").dataset.computed = results.reduce((sum, { points }) => sum + points.length, 0);
    }
    tensors.forEach((tensor) => tensor.destroy());
  }
  if (running) results.filter(({ why }) => !why).forEach((result) => (result.why = "the longest that was tried"));
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
  byId("race-said").textContent = longest ? `${from}Speed relative to three kernels, at ${count(longest)} tokens: ${said.join(", ")}.` : "Nothing was measured.";
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
  byId("race-copy").disabled = byId("race-link").disabled = !some || Boolean(from);
  byId("race-text").hidden = !some || Boolean(from);
  if (some && gpu && !from) byId("race-text").textContent = text();
  byId("plot").innerHTML = some ? plot() : "";
  lines();
}

// What each line is, and why it ends.
function lines() {
  const rows = results.map(({ name, what, color, points, why }) => {
    const row = element("tr");
    const ends = points.length ? `ends at ${count(points.at(-1).n)} tokens, ${milliseconds(points.at(-1).ms)}` : "nothing measured";
    const cells = [name, what, why ? `${ends}: ${why}` : points.length ? "…" : ""].map((text) => element("td", { textContent: text }));
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = color;
    cells[0].prepend(swatch);
    row.append(...cells);
    return row;
  });
  byId("race-lines").replaceChildren(...rows);
}

// Results as a link, and back: [adapter, a list of milliseconds from the shortest length on for each line, reasons].
function link() {
  const data = [adapterName(gpu.device), results.map(({ points }) => points.map(({ ms }) => +ms.toPrecision(3))), results.map(({ why }) => why)];
  const bytes = new TextEncoder().encode(JSON.stringify(data));
  const text = btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return `${location.href.split("#")[0]}#race=${text}`;
}

export function share(text) {
  try {
    const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const [adapter, times, reasons] = JSON.parse(new TextDecoder().decode(bytes));
    results = RUNNERS.map(({ name, what, color, dash }, i) => {
      const points = times[i].map((ms, at) => ({ n: FROM * 2 ** at, ms: Number(ms) })).filter(({ ms }) => ms > 0);
      return { name, what, color, dash, points, why: String(reasons[i]) };
    });
    from = `Measured on ${String(adapter)}, and shared by a link. `;
    draw();
    finish();
  } catch {
    results = [];
    byId("race-said").textContent = "The results in the link cannot be read. Perhaps it was cut off.";
  }
}

const axis = (ms) => (ms >= 1000 ? `${count(Math.round(ms / 1000))} s` : `${ms >= 1 ? Math.round(ms) : ms.toPrecision(1)} ms`);

// As wide as there is room for, so that letters keep their size.
function plot() {
  const width = Math.max(320, byId("plot").clientWidth || 720);
  const narrow = width < 560;
  const height = narrow ? 300 : 380;
  const [left, right, top, bottom] = [58, 30, 16, 40];
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
    parts.push(`<text x="${x(n)}" y="${height - bottom + 18}" text-anchor="middle">${count(n)}</text>`);
  }
  results.forEach(({ name, color, dash, points }) => {
    const line = points.map(({ n, ms }) => `${x(n).toFixed(1)},${y(ms).toFixed(1)}`).join(" ");
    parts.push(`<polyline points="${line}" fill="none" stroke="${color}" stroke-width="2.5" stroke-dasharray="${dash ?? ""}"/>`);
    points.forEach(({ n, ms }) => parts.push(`<circle cx="${x(n)}" cy="${y(ms)}" r="3.5" fill="${color}"><title>${name}, ${count(n)} tokens: ${milliseconds(ms)}</title></circle>`));
  });
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="Milliseconds against tokens">${parts.join("")}</svg>`;
}

byId("race-go").onclick = async () => {
  if (running) {
    running = false;
    return;
  }
  running = true;
  busy("race", true);
  byId("race").dataset.finished = "";
  byId("race-go").textContent = "Stop";
  try {
    await run();
  } catch (e) {
    byId("race-said").textContent = e.name === "DeviceLost" ? "The GPU was lost during the race: start again." : e.message;
  } finally {
    running = false;
    busy("race", false);
    byId("race-go").textContent = "Start again";
  }
};

// Puts a text on the clipboard, and says so on the button for a while.
async function copy(button, text, otherwise) {
  const label = byId(button).textContent;
  try {
    await navigator.clipboard.writeText(text);
    byId(button).textContent = "Copied";
  } catch {
    byId(button).textContent = otherwise();
  }
  setTimeout(() => (byId(button).textContent = label), 2000);
}
byId("race-copy").onclick = () => copy("race-copy", byId("race-text").textContent, () => {
  getSelection().selectAllChildren(byId("race-text"));
  return "Selected: copy it with the keyboard";
});
byId("race-link").onclick = () => {
  history.replaceState(null, "", link());
  copy("race-link", location.href, () => "The link is in the address bar");
};
addEventListener("resize", () => {
  if (!byId("race").hidden) draw();
});
