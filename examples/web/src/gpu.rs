//! The device, and tensors on it.

use crate::error::{Failure, Result};
use crate::promise;
use js_sys::{Float32Array, Promise};
use std::cell::Cell;
use wasm_bindgen::prelude::*;
use wgpu_attention::plan::Name;
use wgpu_attention::{Call, DType, Prepared};

#[wasm_bindgen]
extern "C" {
    /// The browser's own, whichever crate describes it.
    #[wasm_bindgen(typescript_type = "GPUDevice")]
    pub type GpuDevice;
    #[wasm_bindgen(typescript_type = "GPUBuffer")]
    pub type GpuBuffer;
    #[wasm_bindgen(typescript_type = "[number, number, number, number]")]
    pub type Shape;
}

/// A WebGPU device, and the pipelines that have been built for it so far.
#[wasm_bindgen]
pub struct Gpu(pub(crate) wgpu_attention::Gpu);

#[wasm_bindgen]
impl Gpu {
    /// A device of the high-performance adapter, with the adapter's full limits.
    #[wasm_bindgen(unchecked_return_type = "Promise<Gpu>")]
    pub fn request() -> Promise {
        promise(async { Ok(Self(wgpu_attention::Gpu::request().await?).into()) })
    }

    /// The device: its `lost` is a promise that resolves when it is gone; `adapterInfo` and `limits` say what it is and what it can do;
    /// `createCommandEncoder` and the like work with the buffers of tensors.
    #[wasm_bindgen(getter)]
    pub fn device(&self) -> GpuDevice {
        let device: &JsValue = self.0.device().as_webgpu().expect("the only back end").as_ref();
        device.clone().unchecked_into()
    }

    /// A tensor of `values` ([batch, heads, sequence, width], the last index fastest), rounded to `dtype`: "f32" (default),
    /// "f16" or "bf16".
    #[wasm_bindgen(unchecked_return_type = "Promise<Tensor>")]
    pub fn tensor(&self, shape: Shape, values: Vec<f32>, dtype: Option<String>) -> Promise {
        let gpu = self.0.clone();
        promise(async move {
            let (shape, dtype) = (shape_of(&shape)?, dtype_of(dtype.as_deref())?);
            Ok(Tensor::new(wgpu_attention::Tensor::upload(&gpu, shape, dtype, &values).await?).into())
        })
    }
}

fn shape_of(shape: &JsValue) -> Result<[usize; 4]> {
    let bound = "four whole numbers: batch, heads, sequence, width";
    let sizes: Vec<f64> = js_sys::Array::from(shape).iter().map(|n| n.as_f64().unwrap_or(f64::NAN)).collect();
    let whole = |n: f64| (n >= 0.0 && n.fract() == 0.0 && n <= f64::from(u32::MAX)).then_some(n as usize);
    let whole: Option<Vec<usize>> = sizes.iter().map(|&n| whole(n)).collect();
    whole.and_then(|sizes| sizes.try_into().ok()).ok_or_else(|| Failure::argument("shape", format!("{sizes:?}"), bound))
}

/// How often a timed call is repeated: once by default.
pub fn times(repeat: Option<u32>) -> Result<u32> {
    match repeat.unwrap_or(1) {
        0 => Err(Failure::argument("repeat", "0".into(), "at least 1")),
        repeat => Ok(repeat),
    }
}

/// Seconds that the GPU takes for a call: the mean of `repeat` runs, one after another in one go. Its outputs are allocated.
pub async fn seconds(gpu: &wgpu_attention::Gpu, prepared: &Prepared, inputs: &dyn Call, repeat: u32) -> Result<f64> {
    let given = inputs.tensors();
    let mut outputs = vec![];
    for spec in &prepared.plan().tensors {
        if given.iter().all(|(name, _)| *name != spec.name) {
            let tensor = wgpu_attention::Tensor::empty(gpu, spec.layout.clone()).await?;
            outputs.push((spec.name.clone(), tensor));
        }
    }
    let outputs: Vec<(Name, &wgpu_attention::Tensor)> = outputs.iter().map(|(name, to)| (name.clone(), to)).collect();
    let call = (inputs, outputs);
    let time = gpu.time(|pass| (0..repeat).try_for_each(|_| prepared.encode_in(pass, &call))).await?;
    Ok(time.seconds / f64::from(repeat))
}

fn dtype_of(name: Option<&str>) -> Result<DType> {
    match name {
        None | Some("f32") => Ok(DType::F32),
        Some("f16") => Ok(DType::F16),
        Some("bf16") => Ok(DType::Bf16),
        Some(other) => Err(Failure::argument("dtype", other.into(), "\"f32\", \"f16\" or \"bf16\"")),
    }
}

/// A tensor on the GPU.
#[wasm_bindgen]
pub struct Tensor {
    tensor: wgpu_attention::Tensor,
    destroyed: Cell<bool>,
}

impl Tensor {
    pub fn new(tensor: wgpu_attention::Tensor) -> Self {
        Self { tensor, destroyed: Cell::new(false) }
    }

    /// The tensor that it stands for, until it is destroyed.
    pub fn get(&self) -> Result<wgpu_attention::Tensor> {
        match self.destroyed.get() {
            false => Ok(self.tensor.clone()),
            true => Err(Failure::argument("tensor", "destroyed".into(), "a live one")),
        }
    }
}

#[wasm_bindgen]
impl Tensor {
    /// [batch, heads, sequence, width].
    #[wasm_bindgen(getter)]
    pub fn shape(&self) -> Result<Shape> {
        let sizes = self.get()?.shape().map(|n| JsValue::from(n as f64));
        Ok(js_sys::Array::from_iter(sizes).unchecked_into())
    }

    /// "f32", "f16" or "bf16".
    #[wasm_bindgen(getter)]
    pub fn dtype(&self) -> Result<String> {
        Ok(self.get()?.layout().dtype.to_string())
    }

    /// Where the elements lie, the last index fastest; a row of 16-bit elements fills whole words. Usable in the page's own
    /// shaders on `gpu.device`, with the usages STORAGE, COPY_SRC and COPY_DST.
    #[wasm_bindgen(getter)]
    pub fn buffer(&self) -> Result<GpuBuffer> {
        let tensor = self.get()?;
        let buffer: &JsValue = tensor.buffer().as_webgpu().expect("the only back end").as_ref();
        Ok(buffer.clone().unchecked_into())
    }

    /// The values, once all work submitted so far is done.
    #[wasm_bindgen(unchecked_return_type = "Promise<Float32Array>")]
    pub fn read(&self) -> Promise {
        let tensor = self.get();
        promise(async move { Ok(Float32Array::from(tensor?.read().await?.as_slice()).into()) })
    }

    /// Writes other values, as many as the tensor has.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn write(&self, values: Vec<f32>) -> Promise {
        let tensor = self.get();
        promise(async move {
            tensor?.write(&values).await?;
            Ok(JsValue::UNDEFINED)
        })
    }

    /// Gives the memory back at once. (Without this the browser does so when it collects garbage.)
    pub fn destroy(&self) {
        self.destroyed.set(true);
        self.tensor.buffer().destroy();
    }
}
