// The page: its tabs, and the device that they share.

import init, { Gpu } from "./wgpu_attention.js";
import { adapterName, byId } from "./ui.js";
import * as see from "./see.js";
import * as denoise from "./denoise.js";
import * as race from "./race.js";
import * as check from "./check.js";

// For the console.
globalThis.attention = {
  get gpu() {
    return gpu;
  },
};

const parts = { see, denoise, race, check };
const names = Object.keys(parts);
let gpu = null;
let shown = null;

const WITHOUT = `This page needs WebGPU, which this browser does not offer here.
WebGPU is in Chrome and Edge from 113, in Safari from 26, and in Firefox from 141 (Windows) or 145 (macOS).
On Linux, start Chrome with --enable-unsafe-webgpu --enable-features=Vulkan, or use Firefox Nightly.
If your browser has it, open this page by https or from localhost, and look in chrome://gpu or about:support for why the \
graphics driver is blocked.`;

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

// The device, and a new one whenever it is lost.
async function start() {
  gpu = await Gpu.request();
  const { device } = gpu;
  byId("adapter").textContent = adapterName(device);
  device.lost.then(async ({ message }) => {
    notice(`The GPU was lost (${message || "no reason given"}). Starting again …`);
    parts[shown]?.leave();
    gpu = null;
    try {
      await start();
      notice("");
      enter();
    } catch (e) {
      notice(`The GPU was lost, and there is no other: ${e.message}. Reload the page to try again.`);
    }
  });
}

// What a part throws is told, unless it comes of a device that is gone: then all starts again anyway.
function failed(e) {
  if (e?.name === "DeviceLost") return;
  notice(`${e?.name}: ${e?.message}`);
  console.error(e);
}
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  failed(event.reason);
});

function enter() {
  parts[shown].enter(gpu).catch(failed);
}

function show(name) {
  if (shown === name) return;
  if (gpu) parts[shown]?.leave();
  shown = name;
  for (const other of names) {
    const tab = byId(`tab-${other}`);
    tab.setAttribute("aria-selected", other === name);
    tab.tabIndex = other === name ? 0 : -1;
    byId(other).hidden = other !== name;
  }
  if (gpu) enter();
}

for (const name of names) {
  byId(`tab-${name}`).onclick = () => {
    history.replaceState(null, "", `#${name}`);
    show(name);
  };
}
document.querySelector("[role=tablist]").onkeydown = (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const next = names[(names.indexOf(shown) + step + names.length) % names.length];
  byId(`tab-${next}`).focus();
  byId(`tab-${next}`).click();
};
// A part by its name, and what it is to show: #race, #race=….
const hashed = () => {
  const [name, shared] = location.hash.slice(1).split("=");
  if (shared) parts[name]?.share?.(shared);
  return names.includes(name) ? name : "see";
};
addEventListener("hashchange", () => show(hashed()));

try {
  if (!navigator.gpu) throw Object.assign(new Error("navigator.gpu is missing"), { name: "NoAdapter" });
  show(hashed());
  await init();
  await start();
  enter();
} catch (e) {
  byId("adapter").textContent = "No GPU";
  document.querySelector("[role=tablist]").hidden = true;
  names.forEach((name) => (byId(name).hidden = true));
  notice(e.name === "NoAdapter" || e.name === "NoDevice" ? `${WITHOUT}\n(${e.message.split(";")[0]})` : `${e.name}: ${e.message}`);
}
