#!/usr/bin/env bash
# Flash attention beside onnxruntime-web's MultiHeadAttention (WebGPU), in one page of headless Chromium:
#   benches/peers/onnxruntime_web.sh [VERSION OF onnxruntime-web]
# Batch 1, 8 heads, 1024 tokens, head dim 64, f32; inputs and outputs stay on the GPU. Each run is timed from the call to the end of
# the GPU's work, the two in turns. Needs npm for the package.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cargo xtask web --out "$folder"
(
    cd "$folder"
    npm pack --silent "onnxruntime-web@${1:-1.30.0}"
    tar xzf onnxruntime-web-*.tgz
    mv package/dist/ort*.mjs package/dist/ort*.wasm .
)
cp benches/peers/onnxruntime_web.html "$folder"
cargo xtask page "$folder" onnxruntime_web.html
