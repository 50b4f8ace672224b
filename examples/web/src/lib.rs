//! A JavaScript API of wgpu-attention: attention on `Float32Array`s, whose results are arrays or stay in `GPUBuffer`s.
//!
//! ```js
//! import init, { Gpu, FlashAttention } from "./wgpu_attention.js";
//! await init();
//! const gpu = await Gpu.request();
//! const q = await gpu.tensor([1, 8, 1024, 64], new Float32Array(8 * 1024 * 64));
//! const attention = new FlashAttention(gpu, { causal: "bottomRight" });
//! const out = await attention.forward(q, q, q);
//! const values = await out.read(); // or out.buffer, a GPUBuffer of gpu.device
//! ```
//!
//! Names are those of the Rust crate, in camel case; what it documents holds here. An error is an `Error` whose `name` is that of
//! the variant: `Argument`, `Limit`, `DeviceLost` and so on.
#![cfg(target_arch = "wasm32")]

mod attention;
#[cfg(feature = "catalogue")]
mod catalogue;
mod error;
mod gate;
mod gpu;
mod linear;
mod params;

use error::Result;
use js_sys::Promise;
use std::pin::Pin;
use wasm_bindgen::JsValue;

/// A promise of what the future gives. Each type of future costs as much code as a small kernel, so they all go through one.
fn promise(future: impl Future<Output = Result<JsValue>> + 'static) -> Promise {
    type Boxed = Pin<Box<dyn Future<Output = std::result::Result<JsValue, JsValue>>>>;
    let boxed: Boxed = Box::pin(async { Ok(future.await?) });
    wasm_bindgen_futures::future_to_promise(boxed)
}
