//! Linear attention.

use crate::error::Result;
use crate::gpu::{Gpu, Tensor, seconds, times};
use crate::params::{LinearParams, params};
use crate::promise;
use js_sys::Promise;
use tsify::Ts;
use wasm_bindgen::prelude::*;
use wgpu_attention::LinearInputs;
use wgpu_attention::plan::Shapes;

/// Linear attention: `S ← e^g · S + k vᵀ`, or by the delta rule `S ← S̃ + β k (v − S̃ᵀ k)ᵀ` with `S̃ = e^g · S`; `o = scale · Sᵀ q`.
#[wasm_bindgen]
pub struct LinearAttention {
    gpu: wgpu_attention::Gpu,
    attention: wgpu_attention::LinearAttention,
}

#[wasm_bindgen]
impl LinearAttention {
    /// Checks the params; nothing is compiled yet.
    #[wasm_bindgen(constructor)]
    pub fn new(gpu: &Gpu, params: Option<Ts<LinearParams>>) -> Result<LinearAttention> {
        let attention = wgpu_attention::LinearAttention::new(&gpu.0, self::params(params)?)?;
        Ok(Self { gpu: gpu.0.clone(), attention })
    }

    /// The output, [batch, heads, tokens, value width].
    #[wasm_bindgen(unchecked_return_type = "Promise<Tensor>")]
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Promise {
        promise(forward(self.call(q, k, v), [None, None], None))
    }

    /// The same with a gate g ≤ 0 for each head and token, f32 [batch, heads, tokens, 1], or for each channel of its key, [.., width].
    #[wasm_bindgen(js_name = forwardGated, unchecked_return_type = "Promise<Tensor>")]
    pub fn forward_gated(&self, q: &Tensor, k: &Tensor, v: &Tensor, g: &Tensor) -> Promise {
        promise(forward(self.call(q, k, v), [Some(g.get()), None], None))
    }

    /// By the rule "delta": with a beta within [0, 2] for each head (or one for all) and token, f32 [batch, heads, tokens, 1], and a gate
    /// g ≤ 0 for each token or each channel of its key, f32 [batch, heads, tokens, 1 or width]. Keys should have unit length.
    #[wasm_bindgen(js_name = forwardDelta, unchecked_return_type = "Promise<Tensor>")]
    pub fn forward_delta(&self, q: &Tensor, k: &Tensor, v: &Tensor, beta: &Tensor, g: &Tensor) -> Promise {
        promise(forward(self.call(q, k, v), [Some(g.get()), Some(beta.get())], None))
    }

    /// The same, going on from `state`, f32 [batch, heads, width, value width], with the state after these tokens left in it.
    #[wasm_bindgen(js_name = forwardDeltaInPlace, unchecked_return_type = "Promise<Tensor>")]
    pub fn forward_delta_in_place(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        beta: &Tensor,
        g: &Tensor,
        state: &Tensor,
    ) -> Promise {
        promise(forward(self.call(q, k, v), [Some(g.get()), Some(beta.get())], Some(state.get())))
    }

    /// Goes on from `state`, f32 [batch, heads, width, value width], and leaves the state after these tokens in it.
    #[wasm_bindgen(js_name = forwardInPlace, unchecked_return_type = "Promise<Tensor>")]
    pub fn forward_in_place(&self, q: &Tensor, k: &Tensor, v: &Tensor, state: &Tensor) -> Promise {
        promise(forward(self.call(q, k, v), [None, None], Some(state.get())))
    }

    /// Seconds that the GPU takes for `forward`: the mean of `repeat` runs (default: 1), one after another in one go.
    #[wasm_bindgen(unchecked_return_type = "Promise<number>")]
    pub fn time(&self, q: &Tensor, k: &Tensor, v: &Tensor, repeat: Option<u32>) -> Promise {
        let call = self.call(q, k, v);
        promise(async move { Ok(call?.time(repeat).await?.into()) })
    }

    /// What runs for these tensors, in words.
    pub fn plan(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<String> {
        let call = self.call(q, k, v)?;
        let inputs: &dyn wgpu_attention::Call = &call.inputs();
        Ok(self.attention.plan(&Shapes::of(inputs))?.to_string())
    }
}

impl LinearAttention {
    fn call(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Call> {
        let tensors = [q.get()?, k.get()?, v.get()?];
        Ok(Call { gpu: self.gpu.clone(), attention: self.attention.clone(), tensors })
    }
}

/// The kernel and what it is to read.
struct Call {
    gpu: wgpu_attention::Gpu,
    attention: wgpu_attention::LinearAttention,
    tensors: [wgpu_attention::Tensor; 3],
}

impl Call {
    fn inputs(&self) -> LinearInputs<'_> {
        let [q, k, v] = &self.tensors;
        LinearInputs::new(q, k, v)
    }

    async fn time(self, repeat: Option<u32>) -> Result<f64> {
        let repeat = times(repeat)?;
        let inputs: &dyn wgpu_attention::Call = &self.inputs();
        let prepared = self.attention.prepare(&Shapes::of(inputs)).await?;
        seconds(&self.gpu, &prepared, inputs, repeat).await
    }
}

/// The output, with gates, betas and a state where they are given.
async fn forward(
    call: Result<Call>,
    [g, beta]: [Option<Result<wgpu_attention::Tensor>>; 2],
    state: Option<Result<wgpu_attention::Tensor>>,
) -> Result<JsValue> {
    let (call, g, beta, state) = (call?, g.transpose()?, beta.transpose()?, state.transpose()?);
    let inputs = LinearInputs { g: g.as_ref(), beta: beta.as_ref(), ..call.inputs() };
    let out = match &state {
        Some(state) => call.attention.forward_in_place(&inputs, state).await?,
        None => call.attention.forward(&inputs).await?,
    };
    Ok(Tensor::new(out).into())
}
