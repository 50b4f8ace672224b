//! Denoises a picture by neighborhood attention: `cargo run --release --example denoise [PICTURE.png|.jpg [OUTPUT.png]]`.
//!
//! Non-local means (Buades et al., 2005) is attention: a pixel becomes the mean of its 21 × 21 neighbors' colors, weighted by
//! exp(−‖P − P'‖² / h²) of the 5 × 5 patches around both. ‖P − P'‖² = ‖P‖² − 2 P·P' + ‖P'‖², where ‖P‖² is the same for all
//! neighbors and drops out: so queries are (P, 1), keys (P', −‖P'‖²/2), the scale is 2/h², and the values are colors.
//!
//! Noise of σ = 25/255 from a fixed seed is added first. Writes the clean, the noisy and the denoised picture side by side.

use image::{Rgb, RgbImage};
use rand::SeedableRng;
use rand_distr::{Distribution, Normal};
use std::time::Instant;
use wgpu_attention::{DType, Gpu, Hook, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams, Tensor};

const SIGMA: f32 = 25.0 / 255.0;
const WINDOW: usize = 21;
const PATCH: usize = 5;
/// Numbers of a patch.
const SIZE: usize = 3 * PATCH * PATCH;
/// Pixels that are denoised at a time in each direction; those around them are seen.
const BLOCK: usize = 192;

type Failure = Box<dyn std::error::Error>;

/// Colors from 0 to 1, row by row.
struct Picture {
    height: usize,
    width: usize,
    colors: Vec<[f32; 3]>,
}

impl Picture {
    fn open(path: &str) -> Result<Self, Failure> {
        let image = image::open(path).map_err(|e| format!("{path}: {e}"))?.to_rgb8();
        let (width, height) = (image.width() as usize, image.height() as usize);
        if width < WINDOW || height < WINDOW {
            return Err(format!("{path}: {width} × {height} pixels, expected {WINDOW} or more each way").into());
        }
        let colors = image.pixels().map(|pixel| pixel.0.map(|x| f32::from(x) / 255.0)).collect();
        Ok(Self { height, width, colors })
    }

    /// Hills by a lake at sunset: smooth gradients, sharp edges, fine stripes.
    fn landscape() -> Self {
        let (height, width) = (256, 384);
        let mut colors = Vec::with_capacity(height * width);
        for y in 0..height {
            for x in 0..width {
                colors.push(scene(x as f32 / width as f32, y as f32 / height as f32));
            }
        }
        Self { height, width, colors }
    }

    /// The color at a place, mirrored at the borders.
    fn at(&self, y: isize, x: isize) -> [f32; 3] {
        let mirror = |i: isize, n: usize| {
            let n = n as isize;
            let i = if i < 0 { -i } else { i };
            (if i >= n { 2 * n - 2 - i } else { i }) as usize
        };
        self.colors[mirror(y, self.height) * self.width + mirror(x, self.width)]
    }

    /// All colors around a place.
    fn patch(&self, y: usize, x: usize) -> impl Iterator<Item = f32> + '_ {
        let around = move |i: usize, d: usize| i as isize + d as isize - PATCH as isize / 2;
        (0..PATCH * PATCH).flat_map(move |i| self.at(around(y, i / PATCH), around(x, i % PATCH)))
    }

    /// The same with noise, as a camera would store it: 8 bits a color.
    fn with_noise(&self) -> Self {
        let mut random = rand::rngs::SmallRng::seed_from_u64(1);
        let normal = Normal::new(0.0, SIGMA).expect("a standard deviation above 0");
        let mut noisy = |x: f32| ((x + normal.sample(&mut random)).clamp(0.0, 1.0) * 255.0).round() / 255.0;
        let colors = self.colors.iter().map(|color| color.map(&mut noisy)).collect();
        Self { colors, ..*self }
    }

    /// Peak signal-to-noise ratio in decibels.
    fn psnr(&self, clean: &Self) -> f64 {
        let both = self.colors.iter().flatten().zip(clean.colors.iter().flatten());
        let squares: f64 = both.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        10.0 * ((3 * self.colors.len()) as f64 / squares).log10()
    }
}

fn scene(x: f32, y: f32) -> [f32; 3] {
    let mix = |a: [f32; 3], b: [f32; 3], t: f32| std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t.clamp(0.0, 1.0));
    let water = 0.68;
    // The lake shows the land above it, darker and in ripples.
    let mirrored = y > water;
    let ripple = if mirrored { 0.004 * (700.0 * (y - water + 0.1).sqrt()).sin() } else { 0.0 };
    let (x, y) = if mirrored { (x + ripple * 4.0, 2.0 * water - y + ripple) } else { (x, y) };
    let mut color = mix([0.16, 0.22, 0.45], [0.98, 0.62, 0.35], y / water * 1.1);
    let (sun_x, sun_y) = ((x - 0.68) * 1.5, y - 0.3);
    let from_sun = (sun_x * sun_x + sun_y * sun_y).sqrt();
    color = mix([1.0, 0.93, 0.72], color, if from_sun < 0.07 { 0.0 } else { 0.55 + 1.2 * (from_sun - 0.07) });
    for (i, shade) in [[0.42, 0.33, 0.46], [0.27, 0.27, 0.38], [0.11, 0.2, 0.19]].into_iter().enumerate() {
        let step = i as f32;
        let ridge = 0.40 + 0.08 * step + 0.07 * (5.0 * x + 2.3 * step).sin() + 0.025 * (17.0 * x + 5.0 * step).sin();
        if y > ridge {
            color = mix(shade, [0.75, 0.5, 0.42], 0.5 - 0.15 * step - 1.2 * (y - ridge));
            // Rows of trees on the nearest hill.
            if i == 2 && (260.0 * (x + 0.3 * y)).sin() > 0.3 {
                color = mix(color, [0.03, 0.09, 0.06], 0.8);
            }
        }
    }
    if mirrored { mix(color, [0.08, 0.12, 0.25], 0.4) } else { color }
}

/// Where to compute, and what was computed so far.
async fn denoise(gpu: &Gpu, noisy: &Picture) -> Result<Picture, Failure> {
    // Patches that differ by noise alone are 2 σ² · SIZE apart: a pixel counts itself like one of those.
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
            // A block, and around it what its windows need.
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
                queries.extend(noisy.patch(y, x));
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
            let params = NeighborhoodParams {
                axes: [rows.len(), cols.len()].map(|n| NeighborhoodAxis::new(n, WINDOW)).into(),
                scale: Some(2.0 / h2),
                score_mod: vec![itself.clone()],
                ..Default::default()
            };
            let out = NeighborhoodAttention::new(gpu, params)?.forward(&q, &k, &v).await?.read().await?;
            for (y, x) in
                (y0..noisy.height.min(y0 + BLOCK)).flat_map(|y| (x0..noisy.width.min(x0 + BLOCK)).map(move |x| (y, x)))
            {
                let token = (y - rows.start) * cols.len() + x - cols.start;
                colors[y * noisy.width + x] = std::array::from_fn(|c| out[3 * token + c]);
            }
        }
        let done = noisy.height.min(y0 + BLOCK);
        eprintln!("{done} of {} rows, {:.1} s", noisy.height, start.elapsed().as_secs_f64());
    }
    Ok(Picture { colors, ..*noisy })
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let clean = match arguments.next() {
        Some(path) => Picture::open(&path)?,
        None => Picture::landscape(),
    };
    let output = arguments.next().unwrap_or_else(|| "denoised.png".into());
    let noisy = clean.with_noise();
    let gpu = pollster::block_on(Gpu::request())?;
    println!("{}", gpu.caps());
    let start = Instant::now();
    let denoised = pollster::block_on(denoise(&gpu, &noisy))?;
    let seconds = start.elapsed().as_secs_f64();

    let width = clean.width as u32;
    let mut all = RgbImage::new(3 * width, clean.height as u32);
    for (i, picture) in (0..).zip([&clean, &noisy, &denoised]) {
        for (n, color) in (0..).zip(&picture.colors) {
            let color = Rgb(color.map(|x| (x.clamp(0.0, 1.0) * 255.0).round() as u8));
            all.put_pixel(i * width + n % width, n / width, color);
        }
    }
    all.save(&output).map_err(|e| format!("{output}: {e}"))?;
    println!(
        "{} × {} pixels in {seconds:.2} s: noisy {:.2} dB, denoised {:.2} dB PSNR; clean, noisy and denoised in {output}",
        clean.width,
        clean.height,
        noisy.psnr(&clean),
        denoised.psnr(&clean)
    );
    Ok(())
}
