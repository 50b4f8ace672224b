// Who sees whom. The weights of all queries at once are attention's output where the values are one-hot: v[j] is 1 at j. A head
// takes 64 of those columns, and queries and keys are repeated for each.

import { BlockSparseAttention, FlashAttention, LinearAttention, NeighborhoodAttention, SeerGate } from "./wgpu_attention.js";
import { busy, byId, controls, count, element, latest, milliseconds, stepped } from "./ui.js";
import { landscape } from "./picture.js";

const TEXT = `the cat sat on the mat and the dog sat by the door while the rain ran down the window pane and the cat
looked at the dog and the dog looked at the rain and nobody said a word about the fish that was missing from the dish`;
const COLUMNS = 64;
const WIDTH = 32;
const GRID = { columns: 24, rows: 18 };
const BLOCK = 8;

const KERNELS = [["flash", "flash"], ["neighborhood", "neighborhood"], ["blockSparse", "block-sparse, gated"], ["linear", "linear"]];
const OWN = {
  flash: (n) => [
    { name: "causal", label: "causal", kind: "check", value: false },
    { name: "window", label: "window, each side", min: 0, max: Math.min(n, 32), value: 0, show: (x) => (x ? x : "all") },
  ],
  neighborhood: () => [
    { name: "neighbors", label: "window", min: 2, max: 15, value: 7 },
    { name: "stride", label: "stride", min: 1, max: 15, value: 1 },
    { name: "dilation", label: "dilation", min: 1, max: 6, value: 1 },
    { name: "causal", label: "causal", kind: "check", value: false },
  ],
  blockSparse: () => [
    { name: "density", label: "share of blocks", min: 0.05, max: 1, step: 0.05, value: 0.3, show: (x) => `${Math.round(100 * x)} %` },
    { name: "causal", label: "causal", kind: "check", value: false },
  ],
  linear: () => [
    { name: "decay", label: "kept from token to token", min: 0.5, max: 1, step: 0.01, value: 0.9, show: (x) => x.toFixed(2) },
  ],
};

const state = { kernel: "flash", view: "picture", query: 6 * 24 + 17, own: {}, sharpness: 14 };
let gpu = null;
let weights = null; // [tokens][tokens]
let tokens = [];
let mask = null; // blocks that the gate has chosen
let last = null; // the device that has compiled them
let compiled = new Set();

// What a kernel is compiled for.
const shape = () => JSON.stringify([state.kernel, state.view, tokens.length, state.own]);

export async function enter(device) {
  if (device !== last) compiled = new Set();
  last = gpu = device;
  if (!byId("text").value) byId("text").value = TEXT.replace(/\s+/g, " ");
  build();
  await refresh();
}

export function leave() {
  gpu = null;
}

function build() {
  const views = [["picture", "a picture's cells"], ["strip", "words"]];
  const list = [
    { name: "kernel", label: "Kernel", kind: "select", options: KERNELS, value: state.kernel },
    { name: "view", label: "Tokens", kind: "select", options: views, value: state.view },
    ...OWN[state.kernel](tokens.length || 64).map((c) => ({ ...c, value: state.own[c.name] ?? c.value })),
  ];
  if (state.kernel !== "linear") {
    list.push({ name: "sharpness", label: "sharpness", min: 0, max: 20, step: 0.5, value: state.sharpness });
  }
  const values = controls(byId("see-controls"), list, (now, name) => {
    take(now);
    if (name === "kernel") {
      state.own = {};
      build();
      byId("see-controls").elements.kernel.focus();
    }
    refresh();
  });
  take(values);
}

function take({ kernel, view, sharpness = state.sharpness, ...own }) {
  Object.assign(state, { kernel, view, sharpness, own });
}

const refresh = latest(async () => {
  const picture = state.view === "picture";
  byId("map").hidden = !picture;
  byId("strip").hidden = byId("text-label").hidden = picture;
  tokens = picture ? cells() : words(byId("text").value);
  state.query = Math.min(state.query, tokens.length - 1);
  if (!gpu) {
    draw();
    return;
  }
  // What was computed for other choices goes, unless this takes no longer than a blink.
  const wait = setTimeout(() => {
    weights = null;
    draw();
    byId("see-said").textContent = compiled.has(shape()) ? "Computing …" : "Compiling and computing …";
  }, weights ? 120 : 0);
  busy("see", true);
  try {
    const start = performance.now();
    const found = await compute(gpu, picture);
    clearTimeout(wait);
    weights = found;
    const took = milliseconds(performance.now() - start) + (compiled.has(shape()) ? "" : ", including compilation");
    compiled.add(shape());
    document.body.dataset.firstResult ??= Math.round(performance.now());
    byId("see").dataset.computed = 1 + Number(byId("see").dataset.computed ?? 0);
    draw();
    said(took);
  } catch (e) {
    if (e.name !== "Argument") throw e;
    weights = null;
    draw();
    byId("see-said").textContent = e.message;
  } finally {
    clearTimeout(wait);
    busy("see", false);
  }
});

// Weights of every query over every key, row by row.
async function compute(gpu, picture) {
  const n = tokens.length;
  const heads = Math.ceil(n / COLUMNS);
  const scale = state.kernel === "linear" ? 1 : state.sharpness;
  const repeat = (row) => {
    const all = new Float32Array(heads * n * WIDTH);
    for (let i = 0; i < heads * n; i++) all.set(row(tokens[i % n]), i * WIDTH);
    return all;
  };
  const ones = new Float32Array(heads * n * COLUMNS);
  for (let j = 0; j < n; j++) ones[(Math.floor(j / COLUMNS) * n + j) * COLUMNS + (j % COLUMNS)] = 1;
  const made = await Promise.all([
    gpu.tensor([1, heads, n, WIDTH], repeat((token) => token.query)),
    gpu.tensor([1, heads, n, WIDTH], repeat((token) => token.key)),
    gpu.tensor([1, heads, n, COLUMNS], ones),
  ]);
  const out = await attend(gpu, made, scale, picture);
  const read = await out.read();
  [...made, out].forEach((tensor) => tensor.destroy());
  return Array.from({ length: n }, (_, i) =>
    Float32Array.from({ length: n }, (_, j) => read[(Math.floor(j / COLUMNS) * n + i) * COLUMNS + (j % COLUMNS)]));
}

async function attend(gpu, [q, k, v], scale, picture) {
  const { causal, window, neighbors, stride, dilation, density, decay } = state.own;
  const diagonal = causal ? "bottomRight" : undefined;
  mask = null;
  switch (state.kernel) {
    case "flash": {
      const sides = window ? { left: window, right: window } : {};
      return new FlashAttention(gpu, { scale, causal: diagonal, window: sides }).forward(q, k, v);
    }
    case "neighborhood": {
      const axis = (length) => ({ length, window: neighbors, stride, dilation, causal });
      const axes = picture ? [axis(GRID.rows), axis(GRID.columns)] : [axis(tokens.length)];
      return new NeighborhoodAttention(gpu, { axes, scale }).forward(q, k, v);
    }
    case "blockSparse": {
      const gate = new SeerGate(gpu, {
        block: [BLOCK, BLOCK],
        poolK: ["avg"],
        ropeTheta: 0,
        causal,
        selector: { density: causal ? 1 - (1 - density) ** 2 : density },
        diagonal: true,
        lastRowsDense: false,
      });
      const heads = q.shape[1];
      const same = Float32Array.from({ length: heads * WIDTH * WIDTH }, (_, i) => (Math.floor(i / WIDTH) % WIDTH === i % WIDTH ? 1 : 0));
      const wk = await gpu.tensor([1, heads, WIDTH, WIDTH], same);
      const chosen = await gate.forward(q, k, wk);
      wk.destroy();
      mask = await chosen.read();
      return new BlockSparseAttention(gpu, { scale, causal: diagonal }).forward(q, k, v, chosen);
    }
    default: {
      const slopes = new Array(q.shape[1]).fill(-Math.log(decay));
      return new LinearAttention(gpu, { scale, slopes }).forward(q, k, v);
    }
  }
}

// A word's vector: its letters and pairs of letters, each in a place of its own, of length 1.
function words(text) {
  const all = text.toLowerCase().split(/\s+/).filter(Boolean).slice(0, 256);
  while (all.length < 16) all.push("·");
  return all.map((word) => {
    const vector = new Float32Array(WIDTH);
    const spelled = `^${word}$`;
    for (let i = 0; i < spelled.length; i++) {
      for (const part of [spelled[i], spelled.slice(i, i + 2)]) {
        let hash = 2166136261;
        for (const letter of part) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
        vector[(hash >>> 8) % WIDTH] += part.length;
      }
    }
    const length = Math.hypot(...vector);
    const unit = vector.map((x) => x / length);
    return { name: word, query: unit, key: unit };
  });
}

// A cell's vector c: its color. The query is (2c, 1) and the key (c, −|c|²), so that a score is less by the square of what lies
// between two colors, but for a part that all keys share.
let picture = null;
function cells() {
  picture ??= landscape(GRID.columns * 16, GRID.rows * 16);
  const small = element("canvas", { width: GRID.columns, height: GRID.rows });
  const context = small.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, GRID.columns, GRID.rows);
  const { data } = context.getImageData(0, 0, GRID.columns, GRID.rows);
  return Array.from({ length: GRID.columns * GRID.rows }, (_, i) => {
    const color = Array.from(data.slice(4 * i, 4 * i + 3), (x) => x / 100);
    const query = new Float32Array(WIDTH);
    const key = new Float32Array(WIDTH);
    query.set([...color.map((x) => 2 * x), 1]);
    key.set([...color, -color.reduce((sum, x) => sum + x * x, 0)]);
    return { name: `row ${Math.floor(i / GRID.columns) + 1}, column ${(i % GRID.columns) + 1}`, query, key };
  });
}

function draw() {
  if (state.view === "picture") drawMap();
  else drawStrip();
}

// How bright key j is for the query, −1 to 1, and whether it is seen at all.
function light(j) {
  const row = weights?.[state.query];
  if (!row) return { strength: 0, seen: true };
  const most = row.reduce((top, x) => Math.max(top, Math.abs(x)), 1e-12);
  const seen = row[j] !== 0;
  return { strength: Math.sign(row[j]) * Math.sqrt(Math.abs(row[j]) / most), seen };
}

function drawStrip() {
  const strip = byId("strip");
  if (strip.children.length !== tokens.length || tokens.some((token, j) => strip.children[j].textContent !== token.name)) {
    strip.replaceChildren(...tokens.map((token, j) => {
      const span = element("span", { textContent: token.name, id: `token-${j}` });
      span.setAttribute("role", "option");
      span.onpointerenter = span.onclick = () => ask(j);
      return span;
    }));
  }
  strip.setAttribute("aria-activedescendant", `token-${state.query}`);
  [...strip.children].forEach((span, j) => {
    const { strength, seen } = light(j);
    const color = strength < 0 ? "--cool" : "--glow";
    span.style.background = seen ? `rgba(var(${color}), ${Math.abs(strength).toFixed(3)})` : "none";
    span.className = seen ? "" : "hidden";
    span.title = weights ? `${(100 * weights[state.query][j]).toFixed(2)} %` : "";
    span.setAttribute("aria-selected", j === state.query);
  });
}

function drawMap() {
  const canvas = byId("map-canvas");
  [canvas.width, canvas.height] = [picture.width, picture.height];
  const size = picture.width / GRID.columns;
  const context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  for (let j = 0; j < tokens.length; j++) {
    const [x, y] = [(j % GRID.columns) * size, Math.floor(j / GRID.columns) * size];
    const { strength, seen } = light(j);
    context.fillStyle = `rgba(8, 10, 18, ${!weights ? 0.35 : seen ? 0.62 * (1 - Math.abs(strength)) : 0.8})`;
    context.fillRect(x, y, size, size);
    if (seen && Math.abs(strength) > 0.02) {
      context.strokeStyle = strength < 0 ? `rgba(80, 150, 255, ${-strength})` : `rgba(255, 170, 40, ${strength})`;
      context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    }
  }
  const [x, y] = [(state.query % GRID.columns) * size, Math.floor(state.query / GRID.columns) * size];
  context.lineWidth = 3;
  context.strokeStyle = "#fff";
  context.strokeRect(x, y, size, size);
}

let lastTook = "";
function said(took = lastTook) {
  lastTook = took;
  if (!weights) return;
  const row = weights[state.query];
  const seen = row.filter((x) => x !== 0).length;
  const best = row.reduce((best, x, j) => (x > row[best] ? j : best), 0);
  const sum = row.reduce((sum, x) => sum + x, 0);
  const whole = state.kernel === "linear" ? `the row adds up to ${sum.toFixed(2)}` : `${(100 * row[best]).toFixed(1)} %`;
  const blocks = mask ? `; the gate chose ${count(mask.filter(Boolean).length)} of ${count(mask.length)} blocks of ${BLOCK} × ${BLOCK}` : "";
  byId("see-said").textContent = `“${tokens[state.query].name}” sees ${count(seen)} of ${count(tokens.length)} tokens, most of all ` +
    `“${tokens[best].name}” (${whole})${blocks}. All weights took ${took}.`;
}

function ask(query) {
  if (query === state.query || !weights) return;
  state.query = query;
  draw();
  said();
}

byId("strip").onkeydown = (event) => {
  const next = stepped(event, state.query, 1, tokens.length);
  if (next !== null) ask(next);
};
byId("map-canvas").onkeydown = (event) => {
  const next = stepped(event, state.query, GRID.columns, tokens.length);
  if (next !== null) ask(next);
};
byId("map-canvas").onpointermove = byId("map-canvas").onpointerdown = (event) => {
  const { left, top, width, height } = event.target.getBoundingClientRect();
  const place = (at, from, length, count) => Math.min(count - 1, Math.max(0, Math.floor(((at - from) / length) * count)));
  ask(place(event.clientY, top, height, GRID.rows) * GRID.columns + place(event.clientX, left, width, GRID.columns));
};
byId("text").oninput = () => {
  refresh();
};
