//! Causal attention in one call: `cargo run --example quickstart`.

use wgpu_attention::{AttentionInputs, DType, Error, FlashAttention, FlashParams, Gpu, Tensor};

fn main() -> Result<(), Error> {
    pollster::block_on(async {
        let gpu = Gpu::request().await?;
        println!("{}", gpu.caps());

        // One sequence of 6 tokens, one head of width 2. Token i points in the direction i · 60°; scores favour tokens
        // that point the same way, and each token's value is its own number.
        let (n, d) = (6, 2);
        let direction = |i: usize| (i as f32 * 60f32.to_radians()).sin_cos();
        let q: Vec<f32> = (0..n).flat_map(|i| [1.5 * direction(i).1, 1.5 * direction(i).0]).collect();
        let v: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let q = Tensor::upload(&gpu, [1, 1, n, d], DType::F32, &q).await?;
        let v = Tensor::upload(&gpu, [1, 1, n, 1], DType::F32, &v).await?;

        let params = FlashParams::causal();
        let attention = FlashAttention::new(&gpu, params)?;
        let (out, lse) = attention.forward_with_lse(&AttentionInputs::new(&q, &q, &v)).await?;

        println!("token  attends on average to  log-sum-exp");
        for (i, (out, lse)) in out.read().await?.iter().zip(lse.read().await?).enumerate() {
            println!("{i:>5}  {out:>22.3}  {lse:>11.3}");
        }
        Ok(())
    })
}
