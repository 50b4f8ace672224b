// A picture to begin with, drawn here: a lake below hills at dusk.

import { element } from "./ui.js";

export function landscape(width, height) {
  const canvas = element("canvas", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const shore = 0.66 * height;
  const down = (from, to, ...colors) => {
    const gradient = context.createLinearGradient(0, from, 0, to);
    colors.forEach((color, i) => gradient.addColorStop(i / (colors.length - 1), color));
    return gradient;
  };
  context.fillStyle = down(0, shore, "#2b3a6b", "#8a5a83", "#f4a261", "#ffd9a0");
  context.fillRect(0, 0, width, shore);
  const sun = context.createRadialGradient(0.68 * width, 0.42 * height, 0, 0.68 * width, 0.42 * height, 0.3 * height);
  sun.addColorStop(0, "#fff6dc");
  sun.addColorStop(0.22, "#ffe9b0");
  sun.addColorStop(0.26, "rgba(255, 214, 140, 0.45)");
  sun.addColorStop(1, "rgba(255, 214, 140, 0)");
  context.fillStyle = sun;
  context.fillRect(0, 0, width, shore);
  const ridges = [["#8d6a86", 0.42, 0.09, 5], ["#5c4f74", 0.5, 0.07, 8], ["#2f4858", 0.58, 0.05, 13]];
  for (const [color, base, swing, waves] of ridges) {
    context.fillStyle = color;
    context.beginPath();
    context.moveTo(0, shore);
    for (let x = 0; x <= width; x++) {
      const t = x / width;
      context.lineTo(x, height * (base - swing * (0.6 * Math.sin(waves * t + waves) + 0.4 * Math.sin(2.7 * waves * t))));
    }
    context.lineTo(width, shore);
    context.fill();
  }
  context.strokeStyle = "#1c3240";
  context.lineWidth = Math.max(1, width / 300);
  for (let i = 0; i < 60; i++) {
    const x = ((i * 61) % 97) / 97 * width;
    const tall = height * (0.03 + 0.03 * ((i * 37) % 11) / 11);
    context.beginPath();
    context.moveTo(x, shore);
    context.lineTo(x, shore - tall);
    context.stroke();
  }
  context.save();
  context.translate(0, 2 * shore);
  context.scale(1, -1);
  context.drawImage(canvas, 0, 2 * shore - height, width, height - shore, 0, 2 * shore - height, width, height - shore);
  context.restore();
  context.fillStyle = down(shore, height, "rgba(20, 30, 60, 0.25)", "rgba(10, 18, 40, 0.75)");
  context.fillRect(0, shore, width, height - shore);
  context.fillStyle = "rgba(255, 226, 170, 0.5)";
  for (let i = 0; i < 24; i++) {
    const y = shore + (height - shore) * (i + 0.5) / 24;
    const wide = width * (0.03 + 0.05 * ((i * 29) % 7) / 7);
    context.fillRect(0.68 * width - wide / 2 + 4 * Math.sin(i * 2.1), y, wide, Math.max(1, height / 160));
  }
  return canvas;
}
