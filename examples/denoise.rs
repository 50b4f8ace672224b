//! Denoises a picture by neighborhood attention: `cargo run --release --example denoise [PICTURE.png|.jpg [OUTPUT.png]]`.
//!
//! Non-local means (Buades et al., 2005) is attention: a pixel becomes the mean of its 21 × 21 neighbors' colors, weighted by
//! exp(−‖P − P'‖² / h²), where P and P' are the 5 × 5 patches around the two. ‖P − P'‖² = ‖P‖² − 2 P·P' + ‖P'‖², where ‖P‖² is the
//! same for all neighbors and drops out. So queries are (P, 1), keys are (P', −‖P'‖²/2), the scale is 2/h², and the values are colors.
//!
//! Noise of σ = 25/255 from a fixed seed is added first. The example writes the denoised picture, and an SVG of the same name that shows
//! it beside the clean and the noisy one.

mod common;

use common::picture::Picture;
use common::{LIGHT, Svg};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};
use std::path::Path;
use std::time::Instant;
use wgpu_attention::{DType, Gpu, Hook, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams, Tensor};

const SIGMA: f32 = 25.0 / 255.0;
const WINDOW: usize = 21;
const PATCH: usize = 5;
/// How many numbers a patch has.
const SIZE: usize = 3 * PATCH * PATCH;
/// How many pixels are denoised at a time in each direction; they also see those around them.
const BLOCK: usize = 192;

type Failure = Box<dyn std::error::Error>;

/// All colors around a place.
fn patch(picture: &Picture, y: usize, x: usize) -> impl Iterator<Item = f32> + '_ {
    let around = move |i: usize, d: usize| i as isize + d as isize - PATCH as isize / 2;
    (0..PATCH * PATCH).flat_map(move |i| picture.at(around(y, i / PATCH), around(x, i % PATCH)))
}

/// The picture with noise, as a camera would store it: 8 bits a color.
fn with_noise(picture: &Picture) -> Picture {
    let mut random = rand::rngs::SmallRng::seed_from_u64(1);
    let normal = Normal::new(0.0, SIGMA).expect("a standard deviation above 0");
    let mut noisy = |x: f32| ((x + normal.sample(&mut random)).clamp(0.0, 1.0) * 255.0).round() / 255.0;
    Picture { colors: picture.colors.iter().map(|color| color.map(&mut noisy)).collect(), ..*picture }
}

/// Peak signal-to-noise ratio in decibels.
fn psnr(picture: &Picture, clean: &Picture) -> f64 {
    let both = picture.colors.iter().flatten().zip(clean.colors.iter().flatten());
    let squares: f64 = both.map(|(a, b)| f64::from(a - b).powi(2)).sum();
    10.0 * ((3 * picture.colors.len()) as f64 / squares).log10()
}

/// The denoised picture, computed block by block.
async fn denoise(gpu: &Gpu, noisy: &Picture) -> Result<Picture, Failure> {
    // Patches that differ by noise alone are 2 σ² · SIZE apart: a pixel counts itself as one of those.
    let h2 = 0.16 * 2.0 * SIGMA * SIGMA * SIZE as f32;
    let itself = Hook::new(
        "itself",
        format!(
            "fn itself(score: f32, at: Position) -> f32 {{ return score - select(0.0, {:.6}, at.query == at.key); }}",
            2.0 * SIGMA * SIGMA * SIZE as f32 / h2
        ),
    );
    let mut colors = noisy.colors.clone();
    let halo = WINDOW / 2;
    let start = Instant::now();
    for y0 in (0..noisy.height).step_by(BLOCK) {
        for x0 in (0..noisy.width).step_by(BLOCK) {
            // A block, and what its windows need around it.
            let reach = |i: usize, n: usize| {
                let end = (i + BLOCK + halo).min(n);
                i.saturating_sub(halo).min(end.saturating_sub(WINDOW))..end
            };
            let (rows, cols) = (reach(y0, noisy.height), reach(x0, noisy.width));
            let mut queries = Vec::new();
            let mut keys = Vec::new();
            let mut values = Vec::new();
            for (y, x) in rows.clone().flat_map(|y| cols.clone().map(move |x| (y, x))) {
                let from = queries.len();
                queries.extend(patch(noisy, y, x));
                let length: f32 = queries[from..].iter().map(|x| x * x).sum();
                keys.extend_from_slice(&queries[from..]);
                queries.push(1.0);
                keys.push(-length / 2.0);
                values.extend(noisy.at(y as isize, x as isize));
            }
            let tokens = rows.len() * cols.len();
            let q = Tensor::upload(gpu, [1, 1, tokens, SIZE + 1], DType::F32, &queries).await?;
            let k = Tensor::upload(gpu, [1, 1, tokens, SIZE + 1], DType::F32, &keys).await?;
            let v = Tensor::upload(gpu, [1, 1, tokens, 3], DType::F32, &values).await?;
            let axes = [rows.len(), cols.len()].map(|n| NeighborhoodAxis::new(n, WINDOW));
            let params = NeighborhoodParams::new(axes).with_scale(2.0 / h2).with_score_mod(itself.clone());
            let out = NeighborhoodAttention::new(gpu, params)?.forward(&q, &k, &v).await?.read().await?;
            for (y, x) in
                (y0..noisy.height.min(y0 + BLOCK)).flat_map(|y| (x0..noisy.width.min(x0 + BLOCK)).map(move |x| (y, x)))
            {
                let token = (y - rows.start) * cols.len() + x - cols.start;
                colors[y * noisy.width + x] = std::array::from_fn(|c| out[3 * token + c]);
            }
        }
        let done = noisy.height.min(y0 + BLOCK);
        eprint!("\r{done} of {} rows, {:.1} s ", noisy.height, start.elapsed().as_secs_f64());
    }
    eprintln!();
    Ok(Picture { colors, ..*noisy })
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let clean = match arguments.next() {
        Some(path) => Picture::open(&path, WINDOW)?,
        None => Picture::landscape(),
    };
    let output = arguments.next().unwrap_or_else(|| "denoised.png".into());
    let noisy = with_noise(&clean);
    let gpu = pollster::block_on(Gpu::request())?;
    println!("{}", gpu.caps());
    let start = Instant::now();
    let denoised = pollster::block_on(denoise(&gpu, &noisy))?;
    let seconds = start.elapsed().as_secs_f64();

    denoised.image().save(&output).map_err(|e| format!("{output}: {e}"))?;
    let drawing = Path::new(&output).with_extension("svg");
    let [before, after] = [psnr(&noisy, &clean), psnr(&denoised, &clean)];
    let panels = [
        (&clean, "clean".to_string()),
        (&noisy, format!("with noise of σ = 25: {before:.1} dB")),
        (&denoised, format!("denoised: {after:.1} dB")),
    ];
    std::fs::write(&drawing, draw(&panels)).map_err(|e| format!("{}: {e}", drawing.display()))?;
    println!(
        "{} × {} pixels in {seconds:.2} s: noisy {before:.2} dB, denoised {after:.2} dB PSNR; in {output}, and beside clean and noisy in {}",
        clean.width,
        clean.height,
        drawing.display()
    );
    Ok(())
}

/// Pictures side by side, with titles.
fn draw(panels: &[(&Picture, String)]) -> String {
    let (gap, top) = (16, 32);
    let Picture { width, height, .. } = *panels[0].0;
    let mut svg = Svg::new(gap + panels.len() * (width + gap), top + height + gap);
    for (i, (picture, title)) in panels.iter().enumerate() {
        let x = gap + i * (width + gap);
        svg.line([x, 22], "title", "start", title);
        svg.picture([x, top], [width, height], &picture.image());
    }
    svg.finish(&LIGHT, Some("#ffffff"))
}
