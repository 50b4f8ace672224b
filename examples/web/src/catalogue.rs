//! The crate's catalogue of cases: kernels against their reference.

use crate::error::Failure;
use crate::gpu::Gpu;
use crate::promise;
use js_sys::Promise;
use serde::Serialize;
use std::rc::Rc;
use tsify::Tsify;
use wasm_bindgen::prelude::*;
use wgpu_attention::catalogue::{Case, FAMILIES};

/// How a case came out.
#[derive(Serialize, Tsify)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Whether every value lies within the tolerance.
    pub passed: bool,
    /// Largest absolute difference from the reference.
    pub error: f64,
    /// The same divided by what is allowed: 1 or less passes.
    pub over_tolerance: f64,
}

/// The cases that the crate's own tests run.
#[wasm_bindgen]
pub struct Catalogue(Rc<Vec<Box<dyn Case>>>);

#[wasm_bindgen]
impl Catalogue {
    /// Every case of every family.
    #[wasm_bindgen(constructor)]
    #[allow(clippy::new_without_default)] // JavaScript has no such trait
    pub fn new() -> Catalogue {
        Self(Rc::new(FAMILIES.iter().flat_map(|family| (family.cases)()).collect()))
    }

    /// The family of each case.
    #[wasm_bindgen(getter)]
    pub fn kernels(&self) -> Vec<String> {
        self.0.iter().map(|case| case.kernel().to_string()).collect()
    }

    /// What is special about each case.
    #[wasm_bindgen(getter)]
    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(|case| case.name()).collect()
    }

    /// Runs a case on the GPU and compares it with the float64 reference.
    #[wasm_bindgen(unchecked_return_type = "Promise<Outcome>")]
    pub fn run(&self, gpu: &Gpu, index: usize) -> Promise {
        let (cases, gpu) = (self.0.clone(), gpu.0.clone());
        promise(async move {
            let Some(case) = cases.get(index) else {
                return Err(Failure::argument("index", index.to_string(), &format!("below {}", cases.len())));
            };
            let found = case.run(&gpu).await?;
            let outcome = Outcome { passed: found.passed(), error: found.error, over_tolerance: found.over_tolerance };
            Ok(outcome.into_ts().map_err(|e| Failure::argument("outcome", e.to_string(), "an object"))?.into())
        })
    }
}
