//! Draws who sees whom in six kinds of attention: `cargo run --release --example who_sees_whom [FOLDER]`.
//!
//! Every weight is the kernels' own: with the identity as values, row i of the output has the weights of query i. The example writes
//! `who_sees_whom_light.svg` and `who_sees_whom_dark.svg` to the folder, by default `examples/pictures`.

mod common;

use common::{DARK, LIGHT, Svg, Theme};
use std::path::Path;
use wgpu_attention::{
    BlockGrid, BlockMask, BlockSparseAttention, BlockSparseParams, DType, FlashAttention, FlashParams, Gpu, Hook,
    LinearAttention, LinearInputs, LinearParams, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams, Tensor,
};

/// Tokens: those of a text, or 8 × 8 pixels.
const N: usize = 64;
const SIDE: usize = 8;
const WIDTH: usize = 16;

/// Weights of one pattern, [queries, keys].
struct Panel {
    title: &'static str,
    note: &'static str,
    weights: Vec<f32>,
}

/// Numbers that change smoothly from token to token, in several rhythms.
fn tokens(phase: f32) -> Vec<f32> {
    let number = |i: usize, c: usize| {
        let rhythm = 0.07 + 0.11 * (c / 2) as f32;
        let turn = std::f32::consts::FRAC_PI_2 * (c % 2) as f32;
        1.25 * (rhythm * i as f32 + turn + phase * (c as f32 * 2.4).sin()).sin()
    };
    (0..N * WIDTH).map(|at| number(at / WIDTH, at % WIDTH)).collect()
}

async fn panels(gpu: &Gpu) -> wgpu_attention::Result<Vec<Panel>> {
    let q = Tensor::upload(gpu, [1, 1, N, WIDTH], DType::F32, &tokens(0.0)).await?;
    let k = Tensor::upload(gpu, [1, 1, N, WIDTH], DType::F32, &tokens(0.6)).await?;
    let identity: Vec<f32> = (0..N * N).map(|at| f32::from(at / N == at % N)).collect();
    let v = Tensor::upload(gpu, [1, 1, N, N], DType::F32, &identity).await?;

    let causal = FlashAttention::new(gpu, FlashParams::causal())?.forward(&q, &k, &v).await?;
    let window = FlashParams::causal().with_window(15, None);
    let window = FlashAttention::new(gpu, window)?.forward(&q, &k, &v).await?;
    let axes = [NeighborhoodAxis::new(SIDE, 3), NeighborhoodAxis::new(SIDE, 5)];
    let neighborhood = NeighborhoodAttention::new(gpu, NeighborhoodParams::new(axes))?.forward(&q, &k, &v).await?;
    let mask = BlockMask::big_bird(gpu, BlockGrid::of(&q, &k, [4, 4]), 1, 1, 2, 7).await?;
    let blocks = BlockSparseAttention::new(gpu, BlockSparseParams::causal())?.forward(&q, &k, &v, &mask).await?;
    let document = Tensor::upload_u32(
        gpu,
        &(0..N).map(|i| [0, 20, 29, 50].partition_point(|&s| s <= i) as u32).collect::<Vec<_>>(),
    )
    .await?;
    let same = "fn same(at: Position) -> bool { return document[at.query] == document[at.key]; }";
    let params = FlashParams::causal().with_mask_mod(Hook::new("same", same).with_buffer("document", &document));
    let documents = FlashAttention::new(gpu, params)?.forward(&q, &k, &v).await?;
    let params = LinearParams { slopes: Some(vec![0.08]), ..LinearParams::default() };
    let linear = LinearAttention::new(gpu, params)?.forward(&LinearInputs::new(&q, &k, &v)).await?;

    let mut panels = vec![];
    for (title, note, out) in [
        ("Flash, causal", "all keys up to the query's own", causal),
        ("Flash, sliding window", "the last 16 of them", window),
        ("Neighborhood, 2-D", "3 × 5 pixels of 8 × 8", neighborhood),
        ("Block-sparse", "BigBird's blocks of 4 × 4", blocks),
        ("Flash, mask_mod in WGSL", "keys of the same document", documents),
        ("Linear, with decay", "a state that forgets", linear),
    ] {
        panels.push(Panel { title, note, weights: out.read().await? });
    }
    Ok(panels)
}

fn draw(theme: &Theme, panels: &[Panel]) -> String {
    let (cell, gap, top) = (4, 28, 50);
    let side = N * cell;
    let mut svg = Svg::new(gap + 3 * (side + gap), 2 * (side + top + gap) + 34);
    for (i, panel) in panels.iter().enumerate() {
        let (x, y) = (gap + i % 3 * (side + gap), top + i / 3 * (side + top + gap));
        svg.line([x, y - 28], "title", "start", panel.title);
        svg.line([x, y - 10], "note", "start", panel.note);
        svg.add(&format!(r#"<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{}"/>"#, theme.panel));
        // Each row is scaled by its own largest weight; what is not seen is exactly 0.
        let shade = |row: &[f32]| {
            let most = row.iter().fold(f32::MIN_POSITIVE, |most, w| most.max(w.abs()));
            row.iter().map(|w| (*w != 0.0).then(|| (w.abs() / most).sqrt())).collect::<Vec<_>>()
        };
        let cells: Vec<Option<f32>> = panel.weights.chunks(N).flat_map(shade).collect();
        svg.cells(theme, [x, y], cell, N, &cells);
    }
    let bottom = 2 * (side + top + gap);
    svg.line([gap, bottom + 19], "note", "start", "A row is a query, a column a key: 64 tokens. Empty: never seen.");
    svg.legend(theme, [3 * (side + gap) - 330, bottom + 8], ["small", "the row's largest weight"]);
    svg.finish(theme, None)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).unwrap_or("examples/pictures".into());
    let panels = pollster::block_on(async { panels(&Gpu::request().await?).await })?;
    std::fs::create_dir_all(&folder)?;
    for theme in [LIGHT, DARK] {
        let path = Path::new(&folder).join(format!("who_sees_whom_{}.svg", theme.name));
        std::fs::write(&path, draw(&theme, &panels))?;
        println!("{}", path.display());
    }
    Ok(())
}
