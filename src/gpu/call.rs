//! The tensors of a call, by name.

use crate::program::Name;
use crate::{Shapes, Tensor};
use std::borrow::Cow;
/// `Send` and `Sync`, but not on the web, where nothing goes to another thread.
pub(crate) use wgpu::WasmNotSendSync;

/// What a call reads and writes: tensors by name, and numbers. Structs of inputs and outputs are calls, and so are several of them in a
/// tuple, and pairs of a name and a tensor, or of a name and numbers.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::plan::Shapes;
/// use wgpu_attention::{DType, FlashAttention, FlashParams, Gpu, Layout, Tensor};
/// let gpu = Gpu::request().await?;
/// let x = Tensor::upload(&gpu, [1, 1, 2, 4], DType::F32, &[1.0; 8]).await?;
/// let out = Tensor::empty(&gpu, Layout::heads_first(DType::F32, [1, 1, 2, 4])).await?;
/// let lse = Tensor::empty(&gpu, Layout::heads_first(DType::F32, [1, 1, 2, 1])).await?;
/// let call = [("q", &x), ("k", &x), ("v", &x), ("out", &out), ("lse", &lse)];
/// let prepared = FlashAttention::new(&gpu, FlashParams::default())?.prepare(call).await?;
/// prepared.submit(call).await?;
/// assert_eq!(out.read().await?, [1.0; 8]);
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
pub trait Call: WasmNotSendSync {
    /// The tensors that are present.
    fn tensors(&self) -> Vec<(Name, &Tensor)>;

    /// What is not a tensor: lengths and offsets on the host, sizes of blocks.
    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        vec![]
    }
}

impl<C: Call + ?Sized> Call for &C {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        (**self).tensors()
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        (**self).numbers()
    }
}

impl Call for Vec<(Name, &Tensor)> {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        self.clone()
    }
}

impl<const N: usize> Call for [(&'static str, &Tensor); N] {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        self.iter().map(|&(name, tensor)| (name.into(), tensor)).collect()
    }
}

impl<const N: usize> Call for [(&'static str, &[usize]); N] {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        vec![]
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.iter().map(|&(name, numbers)| (name.into(), numbers.into())).collect()
    }
}

impl<A: Call, B: Call> Call for (A, B) {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        let mut all = self.0.tensors();
        all.append(&mut self.1.tensors());
        all
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        let mut all = self.0.numbers();
        all.append(&mut self.1.numbers());
        all
    }
}

impl<A: Call, B: Call, C: Call> Call for (A, B, C) {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        [self.0.tensors(), self.1.tensors(), self.2.tensors()].concat()
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        [self.0.numbers(), self.1.numbers(), self.2.numbers()].concat()
    }
}

impl<A: Call, B: Call, C: Call, D: Call> Call for (A, B, C, D) {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        [self.0.tensors(), self.1.tensors(), self.2.tensors(), self.3.tensors()].concat()
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        [self.0.numbers(), self.1.numbers(), self.2.numbers(), self.3.numbers()].concat()
    }
}

/// Those that are there, of tensors that may be.
pub(crate) fn present<'a, const N: usize>(all: [(&'static str, Option<&'a Tensor>); N]) -> Vec<(Name, &'a Tensor)> {
    all.into_iter().filter_map(|(name, tensor)| Some((name.into(), tensor?))).collect()
}

impl<C: Call> From<C> for Shapes {
    fn from(call: C) -> Self {
        Self::of(call)
    }
}

impl Shapes {
    /// The layouts and numbers of a call, and which of its tensors share buffers.
    pub fn of(call: impl Call) -> Self {
        let tensors = call.tensors();
        let mut shapes = Self::default();
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            let first = tensors[..i].iter().position(|(_, other)| other.buffer() == tensor.buffer());
            shapes.push(name.clone(), tensor.layout().clone(), first.unwrap_or(i));
        }
        call.numbers().into_iter().for_each(|(name, numbers)| shapes.push_numbers(name, numbers.into_owned()));
        shapes
    }
}
