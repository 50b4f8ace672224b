//! A case on the GPU, ready to be run and timed.

use super::Outcome;
use crate::program::Name;
use crate::{Call, DType, Gpu, GpuTime, Prepared, Program, Result, Tensor};
use std::borrow::Cow;

/// Tensors and numbers of a call by name, and what was prepared for them.
#[derive(Debug)]
pub struct Ready {
    call: Owned,
    prepared: Prepared,
}

/// A call that owns its tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Owned {
    pub tensors: Vec<(Name, Tensor)>,
    pub numbers: Vec<(Name, Vec<usize>)>,
}

impl Owned {
    /// The same tensors and numbers.
    pub fn of(call: impl Call) -> Self {
        let tensors = call.tensors().into_iter().map(|(name, tensor)| (name, tensor.clone()));
        let numbers = call.numbers().into_iter().map(|(name, numbers)| (name, numbers.into_owned()));
        Self { tensors: tensors.collect(), numbers: numbers.collect() }
    }

    pub fn push(&mut self, name: impl Into<Name>, tensor: Tensor) {
        self.tensors.push((name.into(), tensor));
    }

    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(other, _)| other == name).map(|(_, tensor)| tensor)
    }
}

impl Call for Owned {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect()
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.numbers.iter().map(|(name, numbers)| (name.clone(), numbers.into())).collect()
    }
}

impl Ready {
    pub(super) fn new(call: Owned, prepared: Prepared) -> Self {
        Self { call, prepared }
    }

    /// With results that the program declares, of its own layouts.
    pub(super) async fn of(
        gpu: &Gpu,
        mut call: Owned,
        program: Program,
        results: impl IntoIterator<Item = &'static str>,
    ) -> Result<Self> {
        for name in results {
            call.push(name, Tensor::empty(gpu, program.tensor(name).expect("a result").layout.clone()).await?);
        }
        Ok(Self::new(call, Prepared::new(gpu, program, &[]).await?))
    }

    /// What runs.
    pub fn plan(&self) -> &Program {
        self.prepared.plan()
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &[(Name, Tensor)] {
        &self.call.tensors
    }

    /// Runs it once, and measures.
    ///
    /// # Errors
    /// A lost device.
    pub async fn time(&self, gpu: &Gpu) -> Result<GpuTime> {
        gpu.time(|pass| self.prepared.encode_in(pass, &self.call)).await
    }

    /// Runs it once.
    pub(super) async fn run(&self) -> Result<()> {
        self.prepared.submit(&self.call).await
    }

    /// Runs it once, and compares its results, by name and type.
    pub(super) async fn compared(
        &self,
        expected: impl IntoIterator<Item = (&'static str, Vec<f64>)>,
        compare: impl Fn(&str, DType, &[f32], &[f64]) -> Outcome,
    ) -> Result<Outcome> {
        self.run().await?;
        let mut outcome = Outcome { error: 0.0, over_tolerance: 0.0 };
        for (name, expected) in expected {
            let found = self.tensor(name).expect("a result");
            outcome = outcome.and(compare(name, found.layout().dtype, &found.read().await?, &expected));
        }
        Ok(outcome)
    }

    /// Tensors that the params carry, for a call that brings them.
    pub(super) fn extend(&mut self, tensors: Vec<(Name, Tensor)>) {
        self.call.tensors.extend(tensors);
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.call.tensor(name)
    }
}
