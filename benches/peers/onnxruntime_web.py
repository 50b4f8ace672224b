#!/usr/bin/env python3
"""Flash attention beside onnxruntime-web's MultiHeadAttention (WebGPU), in the same page of headless Chromium.

    python3 benches/peers/onnxruntime_web.py [--chromium PATH] [--version 1.30.0] [--runs 9]

Batch 1, 8 heads, 1024 tokens, head dim 64, f32; inputs and outputs stay on the GPU. Each run is timed from the call to the end of the
GPU's work, the two in turns. Needs Python 3.9, npm (for the package onnxruntime-web), Chromium, and what `cargo xtask web` needs.
"""

import argparse
import http.server
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--version", default="1.30.0", help="of onnxruntime-web")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run(["cargo", "xtask", "web", "--out", folder], cwd=ROOT, check=True)
        package = f"onnxruntime-web@{options.version}"
        packed = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
            archive.extractall(folder)
        for file in (folder / "package" / "dist").glob("ort*"):
            if file.suffix in (".mjs", ".wasm"):
                file.rename(folder / file.name)
        shutil.copy(pathlib.Path(__file__).with_name("onnxruntime_web.html"), folder / "peer.html")
        sys.exit(drive(folder, options))


def drive(folder, options):
    """Opens the page, prints what it says, and gives the exit status."""
    ended = threading.Event()
    failed = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            file = folder / pathlib.Path(self.path.split("?")[0]).name
            if not file.is_file():
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", TYPES.get(file.suffix, "text/plain"))
            self.end_headers()
            self.wfile.write(file.read_bytes())

        def do_POST(self):
            print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
            self.send_response(200)
            self.end_headers()
            if self.path != "/say":
                failed.extend(["failed"] * (self.path == "/failed"))
                ended.set()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    profile = tempfile.mkdtemp()
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--disable-gpu-watchdog", "--enable-unsafe-webgpu"]
    page = f"http://localhost:{server.server_port}/peer.html?runs={options.runs}"
    flags += ["--use-webgpu-adapter=swiftshader", f"--user-data-dir={profile}", page]
    browser = subprocess.Popen([options.chromium, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = ended.wait(600)
    browser.kill()
    browser.wait()
    shutil.rmtree(profile, ignore_errors=True)
    if not done:
        print("the page did not end within 600 s", file=sys.stderr)
    return 0 if done and not failed else 1


if __name__ == "__main__":
    main()
