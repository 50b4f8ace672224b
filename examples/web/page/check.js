// The check: the crate's catalogue against its float64 reference. Both are in a second, larger WebAssembly module with a device of its
// own, which is loaded when it is wanted.

import { byId, element } from "./ui.js";

const SOME = 12; // cases of each family

let loading = null;
let running = false;
let entered = false;

const load = () => (loading ??= (async () => {
  const api = await import("./wgpu_attention_check.js");
  await api.default();
  return { api, gpu: await api.Gpu.request(), catalogue: new api.Catalogue() };
})().catch((e) => {
  loading = null;
  throw e;
}));

export async function enter() {
  entered = true;
  if (!byId("check-table").rows.length) byId("check-said").textContent = "To check some of each family takes a few seconds on a GPU.";
}

export function leave() {
  entered = false;
  running = false;
}

// Evenly spread over each family's cases, which go from plain to special.
function chosen(kernels, all) {
  return [...new Set(kernels)].map((name) => {
    const cases = kernels.flatMap((kernel, i) => (kernel === name ? [i] : []));
    const count = all ? cases.length : Math.min(SOME, cases.length);
    const picked = Array.from({ length: count }, (_, n) => cases[Math.floor((n * cases.length) / count)]);
    return { name, cases: picked, of: cases.length, passed: 0, failed: 0, worst: 0, done: 0 };
  });
}

async function run(all) {
  byId("check-said").textContent = "Loading the cases and the reference …";
  const { gpu, catalogue } = await load();
  gpu.device.lost.then(() => (loading = null));
  const names = catalogue.names;
  const families = chosen(catalogue.kernels, all);
  const total = families.reduce((sum, { cases }) => sum + cases.length, 0);
  const progress = byId("check-progress");
  Object.assign(progress, { hidden: false, max: total, value: 0 });
  const failures = [];
  const start = performance.now();
  tell(failures);
  for (const family of families) {
    for (const i of family.cases) {
      if (!running || !entered) break;
      byId("check-said").textContent = `${family.name}: ${names[i]}`;
      try {
        const { passed, overTolerance } = await catalogue.run(gpu, i);
        family[passed ? "passed" : "failed"] += 1;
        family.worst = Math.max(family.worst, overTolerance);
        if (!passed) failures.push(`${family.name}: ${names[i]}: ${(100 * overTolerance).toFixed(0)} % of the tolerance`);
      } catch (e) {
        family.failed += 1;
        failures.push(`${family.name}: ${names[i]}: ${e.message}`);
      }
      family.done += 1;
      progress.value += 1;
      table(families);
      tell(failures);
      await new Promise((resolve) => setTimeout(resolve));
    }
  }
  const passed = families.reduce((sum, family) => sum + family.passed, 0);
  const stopped = progress.value < total ? `, stopped after ${progress.value} of ${total}` : "";
  byId("check-said").textContent =
    `${passed} of ${total} passed, ${failures.length} failed${stopped}, in ${((performance.now() - start) / 1000).toFixed(0)} s.`;
  progress.hidden = true;
  byId("check").dataset.result = JSON.stringify(families.map(({ name, passed, failed, of, worst }) => ({ name, passed, failed, of, worst })));
}

function table(families) {
  const head = element("tr");
  head.append(...["family", "passed", "failed", "worst"].map((text) => element("th", { textContent: text })));
  const rows = families.map(({ name, cases, passed, failed, of, worst, done }) => {
    const row = element("tr");
    const mark = failed ? "✗ " : done === cases.length ? "✓ " : "";
    const sampled = cases.length < of ? ` (sampled from ${of})` : "";
    const cells = [mark + name, `${passed} of ${cases.length}${sampled}`, failed || "", done ? `${(100 * worst).toFixed(0)} %` : ""];
    row.append(...cells.map((text) => element("td", { textContent: text })));
    row.className = failed ? "bad" : done === cases.length ? "good" : "";
    return row;
  });
  byId("check-table").replaceChildren(head, ...rows);
}

function tell(failures) {
  byId("check-failed").hidden = !failures.length;
  byId("check-failed").querySelector("pre").textContent = failures.join("\n");
}

async function go(all) {
  if (running) {
    running = false;
    return;
  }
  running = true;
  const [some, every] = [byId("check-some"), byId("check-all")];
  const texts = [some.textContent, every.textContent];
  some.textContent = "Stop";
  every.disabled = true;
  try {
    await run(all);
  } catch (e) {
    byId("check-said").textContent = `${e.name}: ${e.message}`;
  } finally {
    running = false;
    [some.textContent, every.textContent] = texts;
    every.disabled = false;
  }
}
byId("check-some").onclick = () => go(false);
byId("check-all").onclick = () => go(true);
