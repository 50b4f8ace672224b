//! wgpu-attention's side.

use crate::{Side, Size};
use pollster::block_on;
use wgpu_attention::backward::AttentionSaved;
use wgpu_attention::plan::Engine;
use wgpu_attention::{AttentionInputs, Causal, DType, FlashAttention, FlashParams, Gpu, GpuOptions, Tensor};

/// A device with this engine, where the adapter has what it needs.
pub fn gpu(engine: Engine) -> Option<Gpu> {
    let options = GpuOptions { engine: Some(engine), ..GpuOptions::default() };
    block_on(Gpu::request_with(&options)).ok()
}

pub struct Ours {
    gpu: Gpu,
    attention: FlashAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
}

impl Ours {
    pub fn new(gpu: &Gpu, size: Size) -> Self {
        let params = FlashParams { causal: size.causal.then_some(Causal::BottomRight), ..FlashParams::default() };
        let attention = FlashAttention::new(gpu, params).expect("valid params");
        let [q, k, v, dout] = [1, 2, 3, 4].map(|seed| {
            block_on(Tensor::upload(gpu, size.shape(), DType::F32, &size.values(seed))).expect("memory for a tensor")
        });
        Self { gpu: gpu.clone(), attention, q, k, v, dout }
    }

    fn saved(&self) -> (Tensor, AttentionSaved) {
        let inputs = AttentionInputs::new(&self.q, &self.k, &self.v);
        block_on(self.attention.forward_for_training(&inputs)).expect("a call that fits")
    }

    fn wait(&self) {
        self.gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("a GPU that works");
    }
}

impl Side for Ours {
    fn name(&self) -> String {
        format!("wgpu-attention, engine {}", self.gpu.caps().engine)
    }

    fn forward(&self) -> Vec<Vec<f32>> {
        let out = block_on(self.attention.forward(&self.q, &self.k, &self.v)).expect("a call that fits");
        vec![block_on(out.read()).expect("a result")]
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        let found = block_on(self.attention.backward(&self.saved().1, &self.dout)).expect("a call that fits");
        [found.dq, found.dk, found.dv].map(|gradient| block_on(gradient.read()).expect("a result")).into()
    }

    fn run_forward(&self) {
        block_on(self.attention.forward(&self.q, &self.k, &self.v)).expect("a call that fits");
        self.wait();
    }

    fn run_gradients(&self) {
        block_on(self.attention.backward(&self.saved().1, &self.dout)).expect("a call that fits");
        self.wait();
    }
}
