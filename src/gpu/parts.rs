//! What a program is made of on a device: pipelines and buffers.

use super::pipeline::Pipeline;
use super::relation::Relation;
use crate::program::{Contents, Program};
use crate::{Gpu, Result};
use std::sync::{Arc, Mutex};

/// What a program is made of on a device. It holds no [`Gpu`], which may hold it.
#[derive(Debug)]
pub(crate) struct Parts {
    pub program: Program,
    /// For each kernel.
    pub(super) pipelines: Vec<Arc<Pipeline>>,
    pub(super) uniforms: wgpu::Buffer,
    pub(super) uniform_stride: u64,
    pub(super) tables: Vec<wgpu::Buffer>,
    pub(super) scratch: Vec<wgpu::Buffer>,
    /// For tensors without elements: one to read, one to write.
    pub(super) empty: [wgpu::Buffer; 2],
    pub(super) relations: Vec<Relation>,
    pub(super) bound: Mutex<Vec<Bound>>,
}

/// The bind groups of one set of tensors: of each dispatch, one for each group.
#[derive(Debug)]
pub(super) struct Bound {
    pub key: Vec<(wgpu::Buffer, u64)>,
    pub groups: Arc<Vec<Vec<wgpu::BindGroup>>>,
}

impl Parts {
    /// Builds pipelines, uploads constants, allocates scratch.
    pub async fn new(gpu: &Gpu, program: Program) -> Result<Self> {
        use wgpu::BufferUsages as Usage;
        gpu.alive()?;
        let mut pipelines = vec![];
        for kernel in &program.kernels {
            pipelines.push(gpu.pipeline_of(kernel).await?);
        }
        let largest = program.dispatches.iter().map(|dispatch| dispatch.uniform.len() as u64).max().unwrap_or(0);
        let uniform_stride = largest.next_multiple_of(u64::from(gpu.caps().uniform_alignment)).max(1);
        let mut bytes = vec![0; program.dispatches.len() * uniform_stride as usize];
        for (dispatch, at) in program.dispatches.iter().zip(bytes.chunks_exact_mut(uniform_stride as usize)) {
            at[..dispatch.uniform.len()].copy_from_slice(&dispatch.uniform);
        }
        let uniforms = gpu.buffer("parameters", bytes.len() as u64, Usage::UNIFORM | Usage::COPY_DST, &bytes).await?;
        let mut tables = vec![];
        for contents in &program.tables {
            tables.push(gpu.constants(contents).await?);
        }
        let mut scratch = vec![];
        for one in &program.scratch {
            let usage = Usage::STORAGE | Usage::UNIFORM | Usage::COPY_SRC | Usage::COPY_DST;
            scratch.push(gpu.buffer(&one.name, one.bytes, usage, &[]).await?);
        }
        let empty = async || gpu.buffer("empty tensor", 16, Usage::STORAGE, &[]).await;
        Ok(Self {
            pipelines,
            uniforms,
            uniform_stride,
            tables,
            scratch,
            empty: [empty().await?, empty().await?],
            relations: Relation::all(&program),
            bound: Mutex::default(),
            program,
        })
    }

    /// Lets go of the tensors of all calls so far.
    pub fn forget(&self) {
        self.bound.lock().expect("no panic under this lock").clear();
    }
}

impl Gpu {
    /// A table of constants: those of rotary angles are made once, and kept for the device's life.
    async fn constants(&self, contents: &Contents) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        match *contents {
            Contents::Bytes(ref bytes) => self.buffer("table", bytes.len() as u64, usage, bytes).await,
            Contents::RotaryAngles { theta, dim } => {
                let key = ("angles", [u64::from(theta.to_bits()), dim as u64]);
                self.table(key, || contents.bytes().into_owned()).await
            }
        }
    }
}
