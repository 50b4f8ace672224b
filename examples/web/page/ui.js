// Small things that the parts share.

export const byId = (id) => document.getElementById(id);

// A form's controls from a list of descriptions; `changed` is called with their values, by name.
// { name, label, kind: "range" | "check" | "select", ... }
export function controls(form, list, changed) {
  const values = Object.fromEntries(list.map((c) => [c.name, c.value]));
  form.replaceChildren(...list.map((c) => control(c, (value) => {
    values[c.name] = value;
    changed({ ...values }, c.name);
  })));
  form.onsubmit = (event) => event.preventDefault();
  return values;
}

function control(c, set) {
  const label = document.createElement("label");
  if (c.kind === "select") {
    const select = element("select", { name: c.name });
    select.append(...c.options.map(([value, text]) => new Option(text, value, false, value === c.value)));
    select.onchange = () => set(select.value);
    label.append(c.label, select);
  } else if (c.kind === "check") {
    const box = element("input", { type: "checkbox", name: c.name, checked: c.value });
    box.onchange = () => set(box.checked);
    label.className = "check";
    label.append(box, c.label);
  } else {
    const { min, max, step = 1, value } = c;
    const range = element("input", { type: "range", name: c.name, min, max, step, value });
    const shown = element("output", { textContent: c.show ? c.show(value) : value });
    range.oninput = () => {
      shown.textContent = c.show ? c.show(+range.value) : range.value;
      set(+range.value);
    };
    label.append(c.label, range, shown);
  }
  return label;
}

export const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);

// A time as people write it: 0.42 ms, 42 ms, 4.2 s.
export const milliseconds = (ms) =>
  ms >= 1000 ? `${(ms / 1000).toPrecision(2)} s` : `${ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;

// A number as people write it: 65,536.
export const count = (n) => n.toLocaleString("en");

// Says, to eyes and to screen readers, that a part is at work.
export function busy(part, is) {
  byId(part).classList.toggle("busy", is);
  byId(part).setAttribute("aria-busy", is);
}

// Whether the processor does the GPU's work.
export const isSoftware = (device) => Boolean(device.adapterInfo?.isFallbackAdapter);

// Vendor, architecture and description, as far as the browser tells them.
export function adapterName(device) {
  const { vendor, architecture, description } = device.adapterInfo ?? {};
  const name = [vendor, architecture, description].filter(Boolean).join(" ") || "an adapter that does not give its name";
  return isSoftware(device) ? `${name} (software)` : name;
}

// Numbers above 0 and at most 1 by chance, always the same.
export function chance(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 1) / 4294967296;
  };
}

// One after another: while one runs, only the last of those that were asked for waits.
export function latest(work) {
  let running = null;
  let waiting = null;
  const run = (argument) => {
    running = work(argument).finally(() => {
      running = null;
      if (waiting) {
        const next = waiting;
        waiting = null;
        run(next.argument);
      }
    });
    return running;
  };
  return (argument) => {
    if (!running) return run(argument);
    waiting = { argument };
    return running;
  };
}

// Arrow keys, Home and End as steps in a grid of `columns`; null for any other key.
export function stepped(event, at, columns, count) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: count - 1 - at };
  const step = steps[event.key];
  if (step === undefined) return null;
  event.preventDefault();
  const next = at + step;
  return next < 0 || next >= count ? at : next;
}
