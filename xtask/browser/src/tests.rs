//! The web example driven as a visitor would: its four parts, its API, a lost device, a phone, a browser without WebGPU.

use crate::page::Page;
use crate::{Result, of_file, serve};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// From the start of loading to the first weights on the screen, in ms, on the software adapter: 1,500 to 4,800 were seen on two cores,
/// by how busy the machine was.
const FIRST_RESULT: u64 = 6000;
/// How long a click may take to show what it does. A software adapter takes seconds to compile a shader.
const PATIENCE: Duration = Duration::from_secs(60);
const PARTS: [&str; 4] = ["see", "denoise", "race", "check"];

/// What the tests share.
struct Visit<'a> {
    page: Page,
    screenshots: &'a Path,
}

/// Drives the files of `folder`. `all`: every case of the catalogue instead of some of each family.
pub fn run(folder: &Path, chromium: &Path, screenshots: &Path, all: bool) -> Result<()> {
    std::fs::create_dir_all(screenshots).map_err(of_file(screenshots))?;
    serve::during(folder, |address| {
        visit(chromium, screenshots, address, all)?;
        without_webgpu(chromium, screenshots, address)
    })
}

fn visit(chromium: &Path, screenshots: &Path, address: &str, all: bool) -> Result<()> {
    let visit = Visit { page: Page::open(chromium, address, true)?, screenshots };
    visit.first_result()?;
    visit.who_sees_whom()?;
    visit.api()?;
    visit.denoise()?;
    visit.race()?;
    visit.lost_device()?;
    visit.check(all)?;
    visit.phone()?;
    let complaints = visit.page.complaints();
    ensure(complaints.is_empty(), &format!("the console complains: {complaints:#?}"))?;
    println!("the console has no errors; screenshots in {}", screenshots.display());
    Ok(())
}

fn ensure(holds: bool, complaint: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(complaint.into()) }
}

impl Visit<'_> {
    fn shot(&self, name: &str) -> Result<()> {
        self.page.screenshot(&self.screenshots.join(format!("{name}.png")))
    }

    fn number(&self, expression: &str) -> Result<f64> {
        self.page.value(expression)?.as_f64().ok_or_else(|| format!("{expression} is no number"))
    }

    /// Does something, and waits until a part has computed once more.
    fn computes(&self, part: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
        let count = format!("Number(document.querySelector('#{part}').dataset.computed ?? 0)");
        let before = self.number(&count)?;
        action()?;
        self.page.until(part, &format!("{count} > {before}"), PATIENCE)
    }

    fn first_result(&self) -> Result<()> {
        self.page.until("the first weights", "'firstResult' in document.body.dataset", PATIENCE)?;
        let took = self.number("Number(document.body.dataset.firstResult)")?;
        println!("first result {took} ms after the page began to load; on {}", self.page.text("#adapter")?);
        ensure(took <= FIRST_RESULT as f64, &format!("the first result took {took} ms, more than {FIRST_RESULT}"))
    }

    /// Percentages that the strip shows for the chosen query.
    fn shown_weights(&self) -> Result<Vec<f64>> {
        let found = self.page.value("[...document.querySelectorAll('#strip span')].map((s) => parseFloat(s.title))")?;
        let numbers = found.as_array().ok_or("no tokens")?.iter();
        Ok(numbers.filter_map(Value::as_f64).collect())
    }

    fn who_sees_whom(&self) -> Result<()> {
        let page = &self.page;
        self.shot("desktop-first")?;
        self.computes("see", || page.set("#see-controls [name=view]", "strip"))?;
        page.click("#token-12")?;
        page.press("ArrowRight")?;
        ensure(
            page.text("#strip [aria-selected=true]")? == page.text("#token-13")?,
            "the arrow key did not move the query",
        )?;
        self.shot("desktop-see-flash")?;
        let set = |name: &str, value: &str| page.set(&format!("#see-controls [name={name}]"), value);
        let sums_to_one = |what: &str| -> Result<usize> {
            let weights = self.shown_weights()?;
            let sum: f64 = weights.iter().sum();
            ensure((sum - 100.0).abs() < 0.5, &format!("{what}: the weights add up to {sum} %"))?;
            Ok(weights.iter().filter(|&&x| x > 0.0).count())
        };
        sums_to_one("flash")?;
        self.computes("see", || set("causal", "true"))?;
        let seen = sums_to_one("causal flash")?;
        ensure(seen <= 14, &format!("token 13 sees {seen} tokens, of which some follow it"))?;
        self.computes("see", || set("window", "2"))?;
        ensure(sums_to_one("window")? <= 3, "a causal window of 2 has more than 3 tokens")?;
        self.computes("see", || set("kernel", "neighborhood"))?;
        ensure(sums_to_one("neighborhood")? <= 7, "a window of 7 has more than 7 tokens")?;
        self.computes("see", || set("dilation", "3"))?;
        self.shot("desktop-see-neighborhood")?;
        self.computes("see", || set("kernel", "blockSparse"))?;
        sums_to_one("block-sparse")?;
        ensure(page.text("#see-said")?.contains("the gate chose"), "nothing is said of the gate")?;
        self.shot("desktop-see-block-sparse")?;
        self.computes("see", || set("kernel", "linear"))?;
        ensure(page.text("#see-said")?.contains("adds up to"), "nothing is said of the weights of linear attention")?;
        self.shot("desktop-see-linear")?;
        self.computes("see", || set("kernel", "neighborhood"))?;
        self.computes("see", || set("view", "picture"))?;
        page.click("#map-canvas")?;
        let before = page.text("#see-said")?;
        page.press("ArrowDown")?;
        ensure(page.text("#see-said")? != before, "the arrow key did not move the query on the picture")?;
        self.shot("desktop-see-picture")?;
        println!("who sees whom: flash, window, neighborhood, block-sparse, linear, picture");
        Ok(())
    }

    /// What the page itself does not use.
    fn api(&self) -> Result<()> {
        let script = r#"(async () => {
            const { FlashAttention, LinearAttention, NeighborhoodAttention } = await import("./wgpu_attention.js");
            const { gpu } = attention;
            const q = await gpu.tensor([1, 1, 4, 8], new Float32Array(32), "f16");
            const v = await gpu.tensor([1, 1, 4, 2], Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8]));
            const found = {};
            const { out, lse } = await new FlashAttention(gpu, { causal: "topLeft" }).forwardWithLse(q, q, v);
            found.causal = [...await out.read()];
            found.lse = [...await lse.read()];
            // The same bytes by the page's own commands.
            const { device } = gpu;
            const staging = device.createBuffer({ size: v.buffer.size, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
            const encoder = device.createCommandEncoder();
            encoder.copyBufferToBuffer(v.buffer, 0, staging, 0, 32);
            device.queue.submit([encoder.finish()]);
            await staging.mapAsync(GPUMapMode.READ);
            found.buffer = [...new Float32Array(staging.getMappedRange(), 0, 8)];
            found.shape = [...v.shape, q.dtype];
            // Decoding: a state that goes on in place, 0.5 a token kept.
            const one = await gpu.tensor([1, 1, 1, 1], Float32Array.of(1));
            const state = await gpu.tensor([1, 1, 1, 1], Float32Array.of(4));
            const linear = new LinearAttention(gpu, { slopes: [Math.LN2], scale: 1 });
            found.step = [...await (await linear.forwardInPlace(one, one, one, state)).read(), ...await state.read()];
            const gated = new LinearAttention(gpu);
            const g = await gpu.tensor([1, 1, 1, 1], Float32Array.of(-1));
            found.gated = [...await (await gated.forwardGated(one, one, one, g)).read()];
            const delta = new LinearAttention(gpu, { rule: "delta", scale: 1 });
            const beta = await gpu.tensor([1, 1, 1, 1], Float32Array.of(0.5));
            found.delta = [...await (await delta.forwardDelta(one, one, one, beta, g)).read()];
            await state.write(Float32Array.of(4));
            const still = await gpu.tensor([1, 1, 1, 1], Float32Array.of(0));
            found.deltaStep = [...await (await delta.forwardDeltaInPlace(one, one, one, beta, still, state)).read(), ...await state.read()];
            const refused = async (make) => { try { await make(); return "taken"; } catch (e) { return `${e.name}: ${e.message}`; } };
            found.taken = await refused(() => new FlashAttention(gpu, { alibiSlopes: Float32Array.of(0.5), window: { left: 3 } }));
            found.refused = [
                await refused(() => new FlashAttention(gpu, { causl: "topLeft" })),
                await refused(() => new FlashAttention(gpu, { scale: Infinity })),
                await refused(() => new FlashAttention(gpu, { scale: 0.5, causal: "middle" })),
                await refused(() => new LinearAttention(gpu, { slopes: 3 })),
                await refused(() => gpu.tensor([1, 1, 2, 2], new Float32Array(3))),
                await refused(() => gpu.tensor([1, 1, 1.5, 2], new Float32Array(3))),
                await refused(() => new NeighborhoodAttention(gpu, { axes: [{ length: 4, window: 9 }] })),
                await refused(() => new FlashAttention(gpu).forward(q, v, v)),
                await refused(() => new FlashAttention(gpu, { scoreMod: [{ entry: "f", source: "fn f(" }] }).forward(q, q, v)),
            ];
            return found;
        })()"#;
        let found = self.page.value(script)?;
        let numbers = |name: &str| -> Vec<f64> {
            found[name].as_array().map_or(vec![], |all| all.iter().filter_map(Value::as_f64).collect())
        };
        let near = |name: &str, expected: &[f64]| {
            let found = numbers(name);
            let same = found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-3);
            ensure(same, &format!("{name} is {found:?}; expected {expected:?}"))
        };
        near("causal", &[1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0])?;
        near("lse", &[0.0, 2f64.ln(), 3f64.ln(), 4f64.ln()])?;
        near("buffer", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])?;
        near("step", &[3.0, 3.0])?;
        near("gated", &[1.0])?;
        near("delta", &[0.5])?;
        near("deltaStep", &[2.5, 2.5])?;
        ensure(
            found["shape"] == serde_json::json!([1, 1, 4, 2, "f16"]),
            &format!("shape and type: {}", found["shape"]),
        )?;
        ensure(found["taken"] == "taken", &format!("slopes in a typed array: {}", found["taken"]))?;
        let words = [
            "causl",
            "scale is inf",
            "params.causal is \"middle\"; it must be \"bottomRight\" | \"topLeft\"",
            "params.slopes is 3; it must be number[]",
            "values.len() is 3",
            "1.5",
            "axes[0].window is 9",
            "k.shape",
            "score_mod[0]",
        ];
        for (i, word) in words.into_iter().enumerate() {
            let said = found["refused"][i].as_str().unwrap_or_default();
            let named = said.starts_with("Argument: ") || said.starts_with("Hook: ");
            ensure(named && said.contains(word), &format!("no error about {word}: {said}"))?;
        }
        println!("API: arrays, buffers, decoding in place, {} refusals by name", words.len());
        Ok(())
    }

    fn denoise(&self) -> Result<()> {
        let page = &self.page;
        self.computes("denoise", || page.click("#tab-denoise"))?;
        // How much neighboring pixels differ: noise, and what stays of the picture.
        let roughness = |id: &str| {
            self.number(&format!(
                "(() => {{ const c = document.querySelector('#{id}'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; \
                 let sum = 0; for (let i = 4; i < d.length; i += 4) sum += Math.abs(d[i] - d[i - 4]); return sum / (d.length / 4); }})()"
            ))
        };
        let (before, after) = (roughness("before")?, roughness("after")?);
        ensure(after < 0.6 * before, &format!("neighboring pixels differ by {before:.1} before and {after:.1} after"))?;
        page.set("#divide", "30")?;
        self.shot("desktop-denoise")?;
        page.set("#divide", "50")?;
        self.computes("denoise", || page.set("#denoise-controls [name=window]", "5"))?;
        let drop = "(async () => { const c = Object.assign(document.createElement('canvas'), { width: 90, height: 60 }); \
            c.getContext('2d').fillRect(0, 0, 40, 60); const blob = await new Promise((done) => c.toBlob(done)); \
            const data = new DataTransfer(); data.items.add(new File([blob], 'drawn.png')); \
            document.body.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true })); })()";
        self.computes("denoise", || page.value(drop).map(|_| ()))?;
        ensure(page.text("#denoise-said")?.starts_with("90 × 60 pixels"), "the dropped picture is not shown")?;
        let file = page.text("#denoise-said")?;
        page.click("#camera")?;
        let films = "document.querySelector('#denoise-said').textContent.includes('frames a second.')";
        page.until("the camera", films, PATIENCE)?;
        let said = page.text("#denoise-said")?;
        page.click("#camera")?;
        println!("denoise: roughness {before:.1} to {after:.1}; dropped file: {file}; camera: {said}");
        Ok(())
    }

    fn race(&self) -> Result<()> {
        let page = &self.page;
        page.click("#tab-race")?;
        self.computes("race", || page.click("#race-go"))?;
        page.until("the race", "document.querySelector('#race').dataset.finished === 'yes'", Duration::from_secs(300))?;
        let lines = self.number("[...document.querySelectorAll('#plot polyline')].filter((l) => l.getAttribute('points').includes(' ')).length")?;
        ensure(lines == 6.0, &format!("{lines} kernels have a line, not 6"))?;
        let figures = page.text("#race-text")?;
        let complete = ["adapter: ", "limits: ", "| 256 | ", "three kernels, unfused", "linear"];
        ensure(complete.iter().all(|word| figures.contains(word)), &format!("the figures lack something: {figures}"))?;
        page.click("#race-copy")?;
        page.until("the copy", "document.querySelector('#race-copy').textContent !== 'Copy as text'", PATIENCE)?;
        self.shot("desktop-race")?;
        println!("race: {}\n{figures}", page.text("#race-said")?);
        Ok(())
    }

    fn lost_device(&self) -> Result<()> {
        let page = &self.page;
        page.click("#tab-see")?;
        page.set("#see-controls [name=view]", "strip")?;
        page.until("another device", "attention.gpu.device.destroy(), true", PATIENCE)?;
        self.computes("see", || Ok(()))?;
        page.until("no notice", "document.querySelector('#notice').hidden", PATIENCE)?;
        println!("a lost device: started again");
        Ok(())
    }

    fn check(&self, all: bool) -> Result<()> {
        let page = &self.page;
        page.click("#tab-check")?;
        page.click(if all { "#check-all" } else { "#check-some" })?;
        let result = "document.querySelector('#check').dataset.result";
        page.until("the check", &format!("Boolean({result})"), Duration::from_secs(if all { 3600 } else { 900 }))?;
        self.shot("desktop-check")?;
        let families = page.value(&format!("JSON.parse({result})"))?;
        let mut bad = vec![];
        for family in families.as_array().into_iter().flatten() {
            let count = |name: &str| family[name].as_u64().unwrap_or_default();
            let (name, worst) =
                (family["name"].as_str().unwrap_or_default(), family["worst"].as_f64().unwrap_or(f64::NAN));
            println!(
                "check: {name}: {} passed of {}, worst {:.0} % of the tolerance",
                count("passed"),
                count("of"),
                100.0 * worst
            );
            if count("failed") > 0 || count("passed") == 0 {
                bad.push(name);
            }
        }
        println!("check: {}", page.text("#check-said")?);
        ensure(families.as_array().is_some_and(|all| all.len() >= 8), "there are not eight families")?;
        ensure(bad.is_empty(), &format!("{bad:?}: {}", page.text("#check-failed pre")?))
    }

    fn phone(&self) -> Result<()> {
        let page = &self.page;
        page.size(390, 844)?;
        for part in PARTS {
            page.click(&format!("#tab-{part}"))?;
            std::thread::sleep(Duration::from_millis(300));
            let width = self.number("document.documentElement.scrollWidth")?;
            ensure(width <= 390.0, &format!("{part} is {width} pixels wide on a phone of 390"))?;
            let cut = self.page.value("(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth)(document.querySelector('[role=tablist]'))")?;
            ensure(cut == Value::Bool(false), "a phone cuts off the tabs")?;
            let cut = self.page.value(
                "(({ scrollWidth, clientWidth }) => scrollWidth > clientWidth)(document.querySelector('.scroll'))",
            )?;
            ensure(cut == Value::Bool(false), "a phone cuts off the table")?;
            self.shot(&format!("phone-{part}"))?;
        }
        Ok(())
    }
}

fn without_webgpu(chromium: &Path, screenshots: &Path, address: &str) -> Result<()> {
    let page = Page::open(chromium, address, false)?;
    page.until(
        "what to do without WebGPU",
        "document.querySelector('#notice').textContent.includes('needs WebGPU')",
        PATIENCE,
    )?;
    page.screenshot(&screenshots.join("without-webgpu.png"))?;
    println!("without WebGPU: {}", page.text("#notice")?.lines().last().unwrap_or_default());
    Ok(())
}
