//! Softmax attention: three classes with the same methods.

use crate::error::Result;
use crate::gate::BlockMask;
use crate::gpu::{Gpu, Tensor, seconds, times};
use crate::params::{BlockSparseParams, FlashParams, NeighborhoodParams, params};
use crate::promise;
use js_sys::Promise;
use std::rc::Rc;
use tsify::Ts;
use wasm_bindgen::prelude::*;
use wgpu_attention::plan::Shapes;
use wgpu_attention::{AttentionInputs, Prepared};

/// Output and log-sum-exp.
#[wasm_bindgen]
pub struct AttentionResult {
    out: wgpu_attention::Tensor,
    lse: wgpu_attention::Tensor,
}

#[wasm_bindgen]
impl AttentionResult {
    /// [batch, heads, queries, value width].
    #[wasm_bindgen(getter)]
    pub fn out(&self) -> Tensor {
        Tensor::new(self.out.clone())
    }

    /// Natural log-sum-exp of each row's scores, f32 [batch, heads, queries, 1].
    #[wasm_bindgen(getter)]
    pub fn lse(&self) -> Tensor {
        Tensor::new(self.lse.clone())
    }
}

enum Kernel {
    Flash(wgpu_attention::FlashAttention),
    Neighborhood(wgpu_attention::NeighborhoodAttention),
    BlockSparse(wgpu_attention::BlockSparseAttention),
}

/// A kernel and what it is to read.
struct Call {
    gpu: wgpu_attention::Gpu,
    kernel: Rc<Kernel>,
    tensors: [wgpu_attention::Tensor; 3],
    mask: Option<wgpu_attention::BlockMask>,
}

impl Call {
    fn inputs(&self) -> AttentionInputs<'_> {
        let [q, k, v] = &self.tensors;
        AttentionInputs { block_mask: self.mask.as_ref(), ..AttentionInputs::new(q, k, v) }
    }

    async fn forward(self) -> Result<AttentionResult> {
        let inputs = self.inputs();
        let (out, lse) = match &*self.kernel {
            Kernel::Flash(attention) => attention.forward_with_lse(&inputs).await?,
            Kernel::Neighborhood(attention) => attention.forward_with_lse(&inputs).await?,
            Kernel::BlockSparse(attention) => attention.forward_with_lse(&inputs).await?,
        };
        Ok(AttentionResult { out, lse })
    }

    async fn prepare(&self, shapes: &Shapes) -> Result<Prepared> {
        Ok(match &*self.kernel {
            Kernel::Flash(attention) => attention.prepare(shapes).await?,
            Kernel::Neighborhood(attention) => attention.prepare(shapes).await?,
            Kernel::BlockSparse(attention) => attention.prepare(shapes).await?,
        })
    }

    async fn time(self, repeat: Option<u32>) -> Result<f64> {
        let repeat = times(repeat)?;
        let inputs: &dyn wgpu_attention::Call = &self.inputs();
        let prepared = self.prepare(&Shapes::of(inputs)).await?;
        seconds(&self.gpu, &prepared, inputs, repeat).await
    }

    fn plan(&self) -> Result<String> {
        let inputs: &dyn wgpu_attention::Call = &self.inputs();
        let shapes = Shapes::of(inputs);
        let plan = match &*self.kernel {
            Kernel::Flash(attention) => attention.plan(&shapes)?,
            Kernel::Neighborhood(attention) => attention.plan(&shapes)?,
            Kernel::BlockSparse(attention) => attention.plan(&shapes)?,
        };
        Ok(plan.to_string())
    }
}

// Documentation within is in attributes: comments would come out of the macro as raw string literals.
macro_rules! softmax_attention {
    ($(#[$doc:meta])* $kernel:ident, $name:ident, $params:ident $(, $mask:ident)?) => {
        $(#[$doc])*
        #[wasm_bindgen]
        pub struct $name {
            gpu: wgpu_attention::Gpu,
            kernel: Rc<Kernel>,
        }

        impl $name {
            fn call(&self, q: &Tensor, k: &Tensor, v: &Tensor $(, $mask: &BlockMask)?) -> Result<Call> {
                let mask = None$(.or(Some($mask.0.clone())))?;
                let tensors = [q.get()?, k.get()?, v.get()?];
                Ok(Call { gpu: self.gpu.clone(), kernel: self.kernel.clone(), tensors, mask })
            }
        }

        #[wasm_bindgen]
        impl $name {
            #[doc = " Checks the params; nothing is compiled yet."]
            #[wasm_bindgen(constructor)]
            pub fn new(gpu: &Gpu, params: Option<Ts<$params>>) -> Result<$name> {
                let kernel = Kernel::$kernel(wgpu_attention::$name::new(&gpu.0, self::params(params)?)?);
                Ok(Self { gpu: gpu.0.clone(), kernel: Rc::new(kernel) })
            }

            #[doc = " The output, [batch, heads, queries, value width]. What was compiled for a shape is kept."]
            #[wasm_bindgen(unchecked_return_type = "Promise<Tensor>")]
            pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor $(, $mask: &BlockMask)?) -> Promise {
                let call = self.call(q, k, v $(, $mask)?);
                promise(async { Ok(Tensor::new(call?.forward().await?.out).into()) })
            }

            #[doc = " The same with the log-sum-exp of each row."]
            #[wasm_bindgen(js_name = forwardWithLse, unchecked_return_type = "Promise<AttentionResult>")]
            pub fn forward_with_lse(&self, q: &Tensor, k: &Tensor, v: &Tensor $(, $mask: &BlockMask)?) -> Promise {
                let call = self.call(q, k, v $(, $mask)?);
                promise(async { Ok(call?.forward().await?.into()) })
            }

            #[doc = " Seconds that the GPU takes for it: the mean of `repeat` runs (default: 1), one after another in one go."]
            #[wasm_bindgen(unchecked_return_type = "Promise<number>")]
            pub fn time(
                &self,
                q: &Tensor,
                k: &Tensor,
                v: &Tensor $(,
                $mask: &BlockMask)?,
                repeat: Option<u32>,
            ) -> Promise {
                let call = self.call(q, k, v $(, $mask)?);
                promise(async move { Ok(call?.time(repeat).await?.into()) })
            }

            #[doc = " What runs for these tensors, in words."]
            pub fn plan(&self, q: &Tensor, k: &Tensor, v: &Tensor $(, $mask: &BlockMask)?) -> Result<String> {
                self.call(q, k, v $(, $mask)?)?.plan()
            }
        }
    };
}

softmax_attention!(
    #[doc = " Flash attention: q [batch, heads, queries, width], k and v [batch, key heads, keys, width]."]
    Flash,
    FlashAttention,
    FlashParams
);
softmax_attention!(
    #[doc = " Neighborhood attention in one to three dimensions: every token has a query, a key and a value."]
    Neighborhood,
    NeighborhoodAttention,
    NeighborhoodParams
);
softmax_attention!(
    #[doc = " Attention over the blocks of queries and keys that a mask selects."]
    BlockSparse,
    BlockSparseAttention,
    BlockSparseParams,
    mask
);
