//! Block masks, and the gate that makes them.

use crate::error::{Failure, Result};
use crate::gpu::{Gpu, Tensor};
use crate::params::{SeerGateParams, params};
use crate::promise;
use js_sys::{Promise, Uint8Array};
use std::rc::Rc;
use tsify::Ts;
use wasm_bindgen::prelude::*;
use wgpu_attention::BlockGrid;
use wgpu_attention::gate::SeerGateInputs;

/// Selects the blocks of queries and keys to compute, for each batch entry and head.
#[wasm_bindgen]
pub struct BlockMask(pub(crate) wgpu_attention::BlockMask);

#[wasm_bindgen]
impl BlockMask {
    /// A mask of `chosen` (not zero: computed), [batch, heads, blocks of queries, blocks of keys], the last index fastest.
    #[wasm_bindgen(js_name = fromArray)]
    #[wasm_bindgen(unchecked_return_type = "Promise<BlockMask>")]
    pub fn from_array(
        gpu: &Gpu,
        batch: usize,
        heads: usize,
        queries: usize,
        keys: usize,
        block: usize,
        chosen: Vec<u8>,
    ) -> Promise {
        let gpu = gpu.0.clone();
        promise(async move {
            let grid = BlockGrid { batch, heads, queries, keys, block: [block, block] };
            grid.check()?;
            let [rows, cols] = grid.blocks();
            let count = [batch, heads, rows, cols].into_iter().fold(1, usize::saturating_mul);
            if chosen.len() != count {
                return Err(Failure::argument(
                    "chosen.length",
                    chosen.len().to_string(),
                    &format!("{count}, one for each block"),
                ));
            }
            let at = |b: usize, h: usize, i: usize, j: usize| chosen[((b * heads + h) * rows + i) * cols + j] != 0;
            Ok(Self(wgpu_attention::BlockMask::from_fn(&gpu, grid, at).await?).into())
        })
    }

    /// 1 for each block that is computed, [batch, heads, blocks of queries, blocks of keys].
    #[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array>")]
    pub fn read(&self) -> Promise {
        let mask = self.0.clone();
        promise(async move {
            let chosen: Vec<u8> = mask.read().await?.into_iter().map(u8::from).collect();
            Ok(Uint8Array::from(chosen.as_slice()).into())
        })
    }
}

/// SeerAttention's gate: it chooses the blocks that attention should compute.
#[wasm_bindgen]
pub struct SeerGate(Rc<wgpu_attention::gate::SeerGate>);

#[wasm_bindgen]
impl SeerGate {
    /// Checks the params; nothing is compiled yet.
    #[wasm_bindgen(constructor)]
    pub fn new(gpu: &Gpu, params: Option<Ts<SeerGateParams>>) -> Result<SeerGate> {
        Ok(Self(Rc::new(wgpu_attention::gate::SeerGate::new(&gpu.0, self::params(params)?)?)))
    }

    /// The mask that the gate chooses. q [batch, heads, tokens, width] and k [batch, key heads, tokens, width] are those before their
    /// rotary embedding; `wk` [1, key heads, kinds of pooling · width, gate width] maps pooled keys, and pooled queries are left as
    /// they are.
    #[wasm_bindgen(unchecked_return_type = "Promise<BlockMask>")]
    pub fn forward(&self, q: &Tensor, k: &Tensor, wk: &Tensor) -> Promise {
        let (gate, q, k, wk) = (self.0.clone(), q.get(), k.get(), wk.get());
        promise(async move { Ok(BlockMask(gate.forward(&SeerGateInputs::new(&q?, &k?, &wk?)).await?).into()) })
    }
}
