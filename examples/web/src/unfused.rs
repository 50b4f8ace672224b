//! The baseline of the crate's flash bench, to race against.

#[path = "../../../benches/flash/unfused.rs"]
mod kernels;

use crate::error::{Failure, Result};
use crate::gpu::{Gpu, Tensor, times};
use crate::promise;
use js_sys::Promise;
use kernels::Unfused;
use wasm_bindgen::prelude::*;
use wgpu_attention::DType;

/// Attention as three kernels, each well tiled, with the scores in memory: what flash attention is measured against.
#[wasm_bindgen]
pub struct UnfusedAttention(wgpu_attention::Gpu);

#[wasm_bindgen]
impl UnfusedAttention {
    /// Nothing is compiled yet.
    #[wasm_bindgen(constructor)]
    pub fn new(gpu: &Gpu) -> UnfusedAttention {
        Self(gpu.0.clone())
    }

    /// The output for f32 tensors [1, heads, tokens, width].
    #[wasm_bindgen(unchecked_return_type = "Promise<Tensor>")]
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Promise {
        let (gpu, tensors) = (self.0.clone(), [q, k, v].map(|tensor| tensor.0.clone()));
        promise(async move {
            let kernels = prepared(&gpu, &tensors).await?;
            kernels.time(1).await?;
            Ok(Tensor(kernels.out().clone()).into())
        })
    }

    /// Seconds that the GPU takes for it: the mean of `repeat` runs (default: 1), one after another in one go.
    #[wasm_bindgen(unchecked_return_type = "Promise<number>")]
    pub fn time(&self, q: &Tensor, k: &Tensor, v: &Tensor, repeat: Option<u32>) -> Promise {
        let (gpu, tensors) = (self.0.clone(), [q, k, v].map(|tensor| tensor.0.clone()));
        promise(async move {
            let repeat = times(repeat)?;
            Ok((prepared(&gpu, &tensors).await?.time(repeat).await?.seconds / f64::from(repeat)).into())
        })
    }
}

async fn prepared(gpu: &wgpu_attention::Gpu, tensors: &[wgpu_attention::Tensor; 3]) -> Result<Unfused> {
    let [q, k, v] = tensors;
    let [batch, heads, n, d] = q.shape();
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        let (shape, dtype) = (tensor.shape(), tensor.layout().dtype);
        if shape != [1, heads, n, d] || batch != 1 || dtype != DType::F32 {
            return Err(Failure::argument(name, format!("{dtype} {shape:?}"), &format!("f32 [1, {heads}, {n}, {d}]")));
        }
    }
    Unfused::new(gpu, [q, k, v], false).await?.ok_or_else(|| {
        let bytes = 4 * heads * n * n;
        Failure::argument("tokens", n, &format!("fewer: the scores of {bytes} bytes must fit a binding"))
    })
}
