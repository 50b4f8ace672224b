//! What a kernel reads and writes, by the names of a call.

use super::file::Floats;
use std::borrow::Cow;
use std::collections::BTreeMap;
use wgpu_attention::plan::Name;
use wgpu_attention::{Call, Gpu, Prepared, Result, Tensor};

/// Tensors on the host.
pub type Named = BTreeMap<&'static str, Floats>;

/// Tensors on the GPU, and the numbers that the last program was planned for.
pub struct Uploaded {
    gpu: Gpu,
    pub tensors: BTreeMap<Name, Tensor>,
    numbers: Vec<(Name, Vec<usize>)>,
}

impl Uploaded {
    pub fn empty(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), tensors: BTreeMap::new(), numbers: vec![] }
    }

    pub async fn new(gpu: &Gpu, tensors: &Named) -> Result<Self> {
        let mut new = Self::empty(gpu);
        new.upload(tensors).await?;
        Ok(new)
    }

    pub async fn upload(&mut self, tensors: &Named) -> Result<()> {
        for (&name, Floats { dtype, shape, values }) in tensors {
            self.tensors.insert(name.into(), Tensor::upload(&self.gpu, *shape, *dtype, values).await?);
        }
        Ok(())
    }

    /// Allocates the tensors of a program that are not there yet, and takes over its numbers.
    pub async fn complete(&mut self, prepared: &Prepared) -> Result<()> {
        for spec in &prepared.plan().tensors {
            if !self.tensors.contains_key(&spec.name) {
                self.tensors.insert(spec.name.clone(), Tensor::empty(&self.gpu, spec.layout.clone()).await?);
            }
        }
        self.numbers.clone_from(&prepared.plan().numbers);
        Ok(())
    }

    /// Runs a whole program on these tensors.
    pub async fn run(&mut self, prepared: &Prepared) -> Result<()> {
        self.complete(prepared).await?;
        prepared.submit(&*self).await?;
        prepared.check().await
    }
}

impl Call for Uploaded {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect()
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.numbers.iter().map(|(name, numbers)| (name.clone(), numbers.into())).collect()
    }
}
