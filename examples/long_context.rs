//! One long causal context, too long for one device, sharded over several: each shard of keys and values lives on a device
//! of its own and gives a partial result, and the partial results are merged by their log-sum-exp. Here all
//! devices are of one adapter, and the partial results travel through the host, as they would between machines.
//!
//! `cargo run --release --example long_context [TOKENS] [SHARDS]`

use std::time::Instant;
use wgpu_attention::{
    AttentionInputs, AttentionOutputs, DType, Error, FlashAttention, FlashParams, Gpu, Merge, Tensor, Window,
};

const HEADS: usize = 4;
const HEAD_DIM: usize = 64;
/// The newest tokens, whose queries look at the whole context.
const QUERIES: usize = 256;

/// Values that look random, the same every time.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mix = |i: u64| {
        let x = (i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count as u64).map(mix).collect()
}

/// Keys [start, end) of each head.
fn shard(values: &[f32], tokens: usize, start: usize, end: usize) -> Vec<f32> {
    values.chunks(tokens * HEAD_DIM).flat_map(|head| head[start * HEAD_DIM..end * HEAD_DIM].to_vec()).collect()
}

async fn run(tokens: usize, shards: usize) -> Result<(), Error> {
    let q = noise(1 << 40, HEADS * QUERIES * HEAD_DIM);
    let [k, v] = [2u64, 3].map(|seed| noise(seed << 40, HEADS * tokens * HEAD_DIM));
    let upload = async |gpu: &Gpu, rows: usize, values: &[f32]| {
        Tensor::upload(gpu, [1, HEADS, rows, HEAD_DIM], DType::F32, values).await
    };

    let home = Gpu::request().await?;
    println!("{}", home.caps());
    println!("{QUERIES} queries, {tokens} keys, {HEADS} heads of {HEAD_DIM}; {shards} shards");
    let mut partials = Vec::new();
    for i in 0..shards {
        let start = Instant::now();
        let gpu = Gpu::request().await?; // another device
        let (from, to) = (i * tokens / shards, (i + 1) * tokens / shards);
        let queries = upload(&gpu, QUERIES, &q).await?;
        let keys = upload(&gpu, to - from, &shard(&k, tokens, from, to)).await?;
        let values = upload(&gpu, to - from, &shard(&v, tokens, from, to)).await?;
        // Query i sees key j of the whole when j ≤ i + tokens − QUERIES. Within the shard that is a window, which reaches as
        // far beyond the shard's own diagonal as there are keys after the shard.
        let window = Window { left: None, right: Some(tokens - to) };
        let attention = FlashAttention::new(&gpu, FlashParams { window, ..Default::default() })?;
        let (out, lse) = attention.forward_with_lse(&AttentionInputs::new(&queries, &keys, &values)).await?;
        let (out, lse) = (out.read().await?, lse.read().await?);
        println!("shard {i}: keys {from}..{to}, {:.0} ms", 1e3 * start.elapsed().as_secs_f64());
        let lse = Tensor::upload(&home, [1, HEADS, QUERIES, 1], DType::F32, &lse).await?;
        partials.push((upload(&home, QUERIES, &out).await?, lse));
    }
    let parts: Vec<AttentionOutputs> = partials.iter().map(|(out, lse)| AttentionOutputs::new(out, lse)).collect();
    let (out, lse) = Merge::new(&home).forward(&parts).await?;

    let params = FlashParams::causal();
    let (queries, keys, values) =
        (upload(&home, QUERIES, &q).await?, upload(&home, tokens, &k).await?, upload(&home, tokens, &v).await?);
    let whole =
        FlashAttention::new(&home, params)?.forward_with_lse(&AttentionInputs::new(&queries, &keys, &values)).await?;
    for (name, merged, whole) in [("output", &out, &whole.0), ("log-sum-exp", &lse, &whole.1)] {
        let (merged, whole) = (merged.read().await?, whole.read().await?);
        let worst = merged.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{name}: the merged result and that of one call differ by at most {worst:.1e}");
        assert!(worst < 1e-5, "the merged result is not the whole one");
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let number = |i: usize, default: usize| match std::env::args().nth(i) {
        None => Ok(default),
        Some(text) => text.parse().ok().filter(|&n| n > 0).ok_or_else(|| Error::Argument {
            argument: ["", "TOKENS", "SHARDS"][i].into(),
            value: text,
            bound: "a number above 0".into(),
        }),
    };
    let (tokens, shards) = (number(1, 16384)?, number(2, 4)?);
    pollster::block_on(run(tokens, shards))
}
