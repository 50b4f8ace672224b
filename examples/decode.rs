//! Decoding with a cache: `cargo run --release --example decode [TOKENS]`.
//!
//! A step is prepared once for the whole cache and recorded for every token: the number of filled rows lies on the GPU. Made-up numbers
//! stand in for a model's projections. The example draws milliseconds per token against the length of the cache, as `decode.svg`.

mod common;

use common::{LIGHT, Svg};
use std::time::Instant;
use wgpu_attention::{AttentionInputs, DType, FlashAttention, FlashParams, Gpu, Layout, Result, Tensor};

const HEADS: usize = 16;
const HEADS_KV: usize = 4;
const DIM: usize = 64;
/// How many tokens are timed together.
const SPAN: usize = 32;

fn numbers(token: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((token * 31 + i * 7) as f32 * 0.13).sin()).collect()
}

/// Decodes `tokens` tokens, and returns the seconds that each took.
async fn decode(gpu: &Gpu, tokens: usize) -> Result<Vec<f64>> {
    let cache = Layout::heads_first(DType::F16, [1, HEADS_KV, tokens, DIM]);
    let (k, v) = (Tensor::empty(gpu, cache.clone()).await?, Tensor::empty(gpu, cache.clone()).await?);
    let q = Tensor::empty(gpu, Layout::heads_first(DType::F32, [1, HEADS, 1, DIM])).await?;
    let length = Tensor::upload_u32(gpu, &[0]).await?;
    let attention = FlashAttention::new(gpu, FlashParams::default())?;
    let inputs = AttentionInputs::new(&q, &k, &v).with_key_lengths(&length);
    let outputs = attention.outputs_for(&inputs, Layout::heads_first).await?;
    let step = attention.prepare((&inputs, &outputs)).await?; // once
    println!("{}\n", step.plan());

    let mut seconds = vec![];
    for token in 0..tokens {
        let row = cache.clone().narrow(2, token..token + 1)?;
        k.view(row.clone())?.write(&numbers(token, HEADS_KV * DIM)).await?;
        v.view(row)?.write(&numbers(token + 1, HEADS_KV * DIM)).await?;
        q.write(&numbers(token + 2, HEADS * DIM)).await?;
        length.write(&[token as u32 + 1]).await?;
        let start = Instant::now();
        step.submit((&inputs, &outputs)).await?;
        let out = outputs.out.read().await?;
        seconds.push(start.elapsed().as_secs_f64());
        if token == 0 {
            // The first token is alone in the cache: the output is its value.
            assert!((out[0] - DType::F16.round(numbers(1, 1)[0])).abs() < 1e-3);
        }
        if (token + 1) % SPAN == 0 {
            let last: f64 = seconds[token + 1 - SPAN..].iter().sum();
            eprint!("\r{} of {tokens} tokens, {:.2} ms per token ", token + 1, 1e3 * last / SPAN as f64);
        }
    }
    eprintln!();
    Ok(seconds)
}

/// The median of every span.
fn draw(adapter: &str, seconds: &[f64]) -> String {
    let (width, height, left, bottom) = (640, 320, 64, 270);
    let medians: Vec<f64> = seconds
        .chunks(SPAN)
        .map(|span| {
            let mut span = span.to_vec();
            span.sort_by(f64::total_cmp);
            1e3 * span[span.len() / 2]
        })
        .collect();
    let most = medians.iter().fold(f64::MIN_POSITIVE, |most, &ms| most.max(ms));
    let mut svg = Svg::new(width, height);
    svg.line([left, 24], "title", "start", "Time of a decoding step against the length of the cache");
    let title = format!("{HEADS} query heads, {HEADS_KV} key heads, width {DIM}, cache in f16; {adapter}");
    svg.line([left, 42], "note", "start", &title);
    let place = |i: usize, ms: f64| {
        let x = left as f64 + (width - left - 24) as f64 * (i as f64 + 0.5) / medians.len() as f64;
        (x, bottom as f64 - (bottom - 64) as f64 * ms / most)
    };
    for part in [0.0, 0.5, 1.0] {
        let y = place(0, part * most).1;
        svg.add(&format!(r##"<path d="M{left} {y}H{}" stroke="#d1d9e0"/>"##, width - 24));
        svg.line([left - 8, y as usize + 4], "small", "end", &format!("{:.2} ms", part * most));
    }
    let points = medians.iter().enumerate().map(|(i, &ms)| place(i, ms));
    let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    svg.add(&format!(r##"<polyline points="{}" fill="none" stroke="#0969da" stroke-width="2"/>"##, points.join(" ")));
    svg.line([left, bottom + 20], "small", "start", "0");
    svg.line([width - 24, bottom + 20], "small", "end", &format!("{} keys", seconds.len()));
    svg.line(
        [left, bottom + 40],
        "small",
        "start",
        &format!("medians of {SPAN} tokens, from the submit until the output is read"),
    );
    svg.finish(&LIGHT, Some("#ffffff"))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let tokens = match std::env::args().nth(1) {
        None => 512,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=65536).contains(n))
            .ok_or(format!("TOKENS is {text}, expected 1 to 65536"))?,
    };
    let gpu = pollster::block_on(Gpu::request())?;
    let seconds = pollster::block_on(decode(&gpu, tokens))?;
    std::fs::write("decode.svg", draw(&gpu.caps().adapter, &seconds))?;
    println!("decode.svg");
    Ok(())
}
