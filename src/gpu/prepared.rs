//! The one executor: records the dispatches of a program whose pipelines and buffers are made.

use super::call::Call;
use super::parts::{Bound, Parts};
use super::tensor::DeferredCheck;
use crate::error::require;
use crate::program::{BindingAccess, Name, Program, Source, TensorSpec};
use crate::{Caps, Error, Gpu, Layout, Result, Tensor};
use futures::FutureExt;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// How many sets of tensors a prepared call keeps bind groups for.
const BIND_GROUP_SETS: usize = 8;

/// A call that is compiled for certain shapes. It records into the caller's encoders, as often as wanted, with any tensors of these shapes.
///
/// All work that is recorded from one of them shares its scratch buffers, also across command buffers. Submit the slices of one call one
/// after another, with no other call in between.
#[derive(Debug)]
pub struct Prepared {
    gpu: Gpu,
    parts: Arc<Parts>,
    /// What stands for a tensor that a call does not bring.
    defaults: Vec<Option<Tensor>>,
}

/// A call's tensors in the order of the program's, and how far each lies from where it was planned, in bytes.
struct Resolved<'a> {
    tensors: Vec<&'a Tensor>,
    shifts: Vec<u64>,
}

impl Prepared {
    /// `defaults` stand for tensors that a call does not bring.
    pub(crate) async fn new(gpu: &Gpu, program: Program, defaults: &[(Name, Tensor)]) -> Result<Self> {
        Ok(Self::of(gpu, Arc::new(Parts::new(gpu, program).await?), defaults))
    }

    /// What was made before, with other defaults.
    pub(crate) fn of(gpu: &Gpu, parts: Arc<Parts>, defaults: &[(Name, Tensor)]) -> Self {
        let default = |spec: &TensorSpec| defaults.iter().find(|(name, _)| *name == spec.name).map(|(_, t)| t.clone());
        let defaults = parts.program.tensors.iter().map(default).collect();
        Self { gpu: gpu.clone(), parts, defaults }
    }

    /// What runs.
    pub fn plan(&self) -> &Program {
        &self.parts.program
    }

    /// How many slices there are: see [`Prepared::encode_slice`].
    pub fn slices(&self) -> usize {
        self.parts.program.slices.len()
    }

    /// Records all of the work. The caller submits; for long work see [`Prepared::encode_slice`].
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Then nothing is recorded.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, call: impl Call) -> Result<()> {
        self.record(encoder, 0..self.slices(), call.tensors(), call.numbers())
    }

    /// Records one slice of the work, so that the caller can submit long work in parts of 50 to 100 ms, one after another.
    ///
    /// # Errors
    /// Those of [`Prepared::encode`]; [`Error::Argument`] for a slice that does not exist.
    pub fn encode_slice(&self, encoder: &mut wgpu::CommandEncoder, slice: usize, call: impl Call) -> Result<()> {
        let known = self.slices();
        let bound = format!("within 0..{known}");
        require(slice < known, "slice", format!("{slice}..{}", slice.saturating_add(1)), bound)?;
        self.record(encoder, slice..slice + 1, call.tensors(), call.numbers())
    }

    /// Records all of the work into the caller's compute pass.
    ///
    /// # Errors
    /// Those of [`Prepared::encode`].
    pub fn encode_in(&self, pass: &mut wgpu::ComputePass<'_>, call: impl Call) -> Result<()> {
        let resolved = self.resolve(call.tensors(), call.numbers())?;
        self.record_in(pass, 0..self.slices(), &resolved).map_err(|e| self.blamed(e, &resolved))
    }

    /// Records each slice into an encoder of its own and submits it.
    ///
    /// # Errors
    /// Those of [`Prepared::encode`]; [`Error::DeviceLost`].
    pub async fn submit(&self, call: impl Call) -> Result<()> {
        self.submit_checked(call.tensors(), call.numbers(), false).await.map(|_| ())
    }

    /// Checks what only the GPU has seen (lengths and offsets of sequences, numbers of segments, gates): whether it was in order and in
    /// range in the work that was recorded last. Submit that work first. Results of `forward` are checked when they are read.
    ///
    /// # Errors
    /// [`Error::Argument`], which names what was wrong; [`Error::DeviceLost`].
    pub async fn check(&self) -> Result<()> {
        for check in self.parts.program.checks.iter().filter(|_| self.slices() > 0) {
            let words = self.parts.scratch[check.scratch].clone();
            DeferredCheck { words, rule: check.rule.clone() }.ask(&self.gpu).await?;
        }
        Ok(())
    }

    /// The same as [`Prepared::submit`]; what is to be checked later is copied by the command buffer that wrote it.
    pub(crate) async fn submit_checked(
        &self,
        tensors: Vec<(Name, &Tensor)>,
        numbers: Vec<(Name, Cow<'_, [usize]>)>,
        checked: bool,
    ) -> Result<Vec<DeferredCheck>> {
        let resolved = self.resolve(tensors, numbers)?;
        let mut checks = vec![];
        for slice in 0..self.slices() {
            let mut encoder = self.gpu.encoder();
            self.record_in(&mut self.pass(&mut encoder), slice..slice + 1, &resolved)
                .map_err(|e| self.blamed(e, &resolved))?;
            if checked && slice + 1 == self.slices() {
                checks = self.copied(&mut encoder).await?;
            }
            self.gpu.submit(encoder).await.map_err(|e| self.blamed(e, &resolved))?;
        }
        Ok(checks)
    }

    fn blamed(&self, e: Error, resolved: &Resolved) -> Error {
        let named = self.parts.program.tensors.iter().zip(&resolved.tensors);
        self.gpu.blamed(e, named.map(|(spec, tensor)| (&*spec.name, tensor.buffer())))
    }

    /// Copies of the words that tell what was wrong, which later work does not change.
    async fn copied(&self, encoder: &mut wgpu::CommandEncoder) -> Result<Vec<DeferredCheck>> {
        let mut checks = vec![];
        for check in &self.parts.program.checks {
            let from = &self.parts.scratch[check.scratch];
            let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
            let words = self.gpu.buffer("problem", from.size(), usage, &[]).await?;
            encoder.copy_buffer_to_buffer(from, 0, &words, 0, from.size());
            checks.push(DeferredCheck { words, rule: check.rule.clone() });
        }
        Ok(checks)
    }

    fn pass<'e>(&self, encoder: &'e mut wgpu::CommandEncoder) -> wgpu::ComputePass<'e> {
        let label = self.parts.program.kernels.last().map(|kernel| &*kernel.name);
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes: None })
    }

    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        slices: Range<usize>,
        tensors: Vec<(Name, &Tensor)>,
        numbers: Vec<(Name, Cow<'_, [usize]>)>,
    ) -> Result<()> {
        let resolved = self.resolve(tensors, numbers)?;
        self.record_in(&mut self.pass(encoder), slices, &resolved).map_err(|e| self.blamed(e, &resolved))
    }

    fn record_in(&self, pass: &mut wgpu::ComputePass<'_>, slices: Range<usize>, resolved: &Resolved) -> Result<()> {
        let slices = &self.parts.program.slices[slices];
        if slices.is_empty() {
            return Ok(());
        }
        let groups = self.groups(resolved)?;
        let mut last = None;
        let mut dispatch = |i: usize| {
            let one = &self.parts.program.dispatches[i];
            if last != Some(one.kernel) {
                pass.set_pipeline(&self.parts.pipelines[one.kernel].compute);
                last = Some(one.kernel);
            }
            for (group, bound) in (0..).zip(&groups[i]) {
                pass.set_bind_group(group, bound, &[]);
            }
            let [x, y, z] = one.workgroups;
            pass.dispatch_workgroups(x, y, z);
        };
        // Each of them once, before all work.
        let first = slices.iter().enumerate().flat_map(|(n, slice)| slice.first.iter().map(move |&i| (n, i)));
        first.filter(|(n, i)| slices[..*n].iter().all(|slice| !slice.first.contains(i))).for_each(|(_, i)| dispatch(i));
        slices.iter().flat_map(|slice| slice.work.clone()).for_each(&mut dispatch);
        Ok(())
    }

    /// Checks that tensors and numbers are as prepared, but for buffers, and for offsets that differ by whole alignments.
    fn resolve<'a>(
        &'a self,
        given: Vec<(Name, &'a Tensor)>,
        numbers: Vec<(Name, Cow<'_, [usize]>)>,
    ) -> Result<Resolved<'a>> {
        self.gpu.alive()?;
        self.check_numbers(&numbers)?;
        let caps = self.gpu.caps();
        let (mut tensors, mut shifts) = (Vec::with_capacity(given.len()), Vec::with_capacity(given.len()));
        let mut used = 0;
        for (i, (spec, default)) in self.parts.program.tensors.iter().zip(&self.defaults).enumerate() {
            let same = |(name, _): &&(Name, &Tensor)| *name == spec.name;
            let found = given.get(i).filter(same).or_else(|| given.iter().find(same)).map(|(_, tensor)| *tensor);
            used += usize::from(found.is_some());
            let Some(tensor) = found.or(default.as_ref()) else {
                return Err(Error::argument(&spec.name, "None", format!("set, as prepared: {:?}", spec.layout)));
            };
            tensors.push(tensor);
            shifts.push(shift(&self.gpu, caps, spec, tensor)?);
        }
        if used < given.len() {
            let unknown = |(name, _): &&(Name, &Tensor)| self.parts.program.tensor(name).is_none();
            if let Some((name, tensor)) = given.iter().find(unknown) {
                return Err(Error::argument(name, format!("{:?}", tensor.layout()), "unset, as prepared: None"));
            }
        }
        let resolved = Resolved { tensors, shifts };
        let Resolved { tensors, shifts } = &resolved;
        let specs = &self.parts.program.tensors;
        self.parts.relations.iter().try_for_each(|relation| relation.check(caps, specs, tensors, shifts))?;
        Ok(resolved)
    }

    fn check_numbers(&self, given: &[(Name, Cow<'_, [usize]>)]) -> Result<()> {
        let planned = &self.parts.program.numbers;
        let of = |name: &Name| planned.iter().find(|(other, _)| other == name).map(|(_, numbers)| numbers);
        for (name, numbers) in given {
            if of(name).is_none_or(|planned| **planned != **numbers) {
                let bound = format!("as prepared: {:?}", of(name));
                return Err(Error::argument(name, format!("{numbers:?}"), bound));
            }
        }
        match planned.iter().find(|(name, _)| given.iter().all(|(other, _)| other != name)) {
            Some((name, numbers)) => Err(Error::argument(name, "None", format!("as prepared: {numbers:?}"))),
            None => Ok(()),
        }
    }

    fn groups(&self, resolved: &Resolved) -> Result<Arc<Vec<Vec<wgpu::BindGroup>>>> {
        let same = |bound: &&Bound| {
            let pairs = bound.key.iter().zip(resolved.tensors.iter().zip(&resolved.shifts));
            pairs.into_iter().all(|((buffer, shift), (tensor, other))| shift == other && buffer == tensor.buffer())
        };
        let mut all = self.parts.bound.lock().expect("no panic under this lock");
        if let Some(found) = all.iter().find(same) {
            return Ok(found.groups.clone());
        }
        let make =
            |_: &wgpu::Device| (0..self.parts.program.dispatches.len()).map(|i| self.groups_of(i, resolved)).collect();
        let (groups, popped) = self.gpu.scoped(make);
        // On native the answer is there at once; in a browser it comes with the submit.
        let refused = async { self.gpu.refused("bind groups", popped.await).await };
        refused.now_or_never().unwrap_or(Ok(()))?;
        let groups = Arc::new(groups);
        if all.len() == BIND_GROUP_SETS {
            all.remove(0);
        }
        let tensors = resolved.tensors.iter().zip(&resolved.shifts);
        let key = tensors.map(|(tensor, &shift)| (tensor.buffer().clone(), shift)).collect();
        all.push(Bound { key, groups: Arc::clone(&groups) });
        Ok(groups)
    }

    /// The bind groups of a dispatch.
    fn groups_of(&self, index: usize, resolved: &Resolved) -> Vec<wgpu::BindGroup> {
        let dispatch = &self.parts.program.dispatches[index];
        let (kernel, pipeline) = (&self.parts.program.kernels[dispatch.kernel], &self.parts.pipelines[dispatch.kernel]);
        let mut entries: Vec<Vec<wgpu::BindGroupEntry>> = pipeline.layouts.iter().map(|_| vec![]).collect();
        for (binding, range) in kernel.bindings.iter().zip(&dispatch.ranges) {
            let (buffer, shift) = match binding.source {
                Source::Uniform => (&self.parts.uniforms, index as u64 * self.parts.uniform_stride),
                Source::Table(i) => (&self.parts.tables[i], 0),
                Source::Scratch(i) => (&self.parts.scratch[i], 0),
                Source::Tensor(i) => (resolved.tensors[i].buffer(), resolved.shifts[i]),
            };
            let (buffer, offset, size) = match range.end - range.start {
                0 => (&self.parts.empty[usize::from(binding.access == BindingAccess::ReadWrite)], 0, 16),
                bytes => (buffer, range.start.wrapping_add(shift), bytes),
            };
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                buffer,
                offset,
                size: wgpu::BufferSize::new(size),
            });
            entries[binding.group as usize].push(wgpu::BindGroupEntry { binding: binding.binding, resource });
        }
        let groups = pipeline.layouts.iter().zip(&entries);
        let group = |(layout, entries): (&wgpu::BindGroupLayout, &Vec<wgpu::BindGroupEntry>)| {
            let descriptor = wgpu::BindGroupDescriptor { label: Some(&kernel.name), layout, entries };
            self.gpu.device().create_bind_group(&descriptor)
        };
        groups.map(group).collect()
    }
}

/// How far a tensor lies from where it was planned, in bytes.
fn shift(gpu: &Gpu, caps: &Caps, spec: &TensorSpec, tensor: &Tensor) -> Result<u64> {
    check_device(&spec.name, tensor, gpu)?;
    let (wanted, given) = (&spec.layout, tensor.layout());
    let (bytes, alignment) = (wanted.dtype.bytes(), caps.binding_alignment());
    let (from, to) = (wanted.offset as u64 * bytes, given.offset as u64 * bytes);
    let Layout { dtype, shape, strides, .. } = given;
    let same = (dtype, shape, strides) == (&wanted.dtype, &wanted.shape, &wanted.strides);
    if !same || from % alignment != to % alignment {
        let bound = format!("as prepared: {wanted:?} (the offset may differ by multiples of {alignment} bytes)");
        return Err(Error::argument(&spec.name, format!("{given:?}"), bound));
    }
    Ok(to.wrapping_sub(from))
}

pub(crate) fn check_device(name: &str, tensor: &Tensor, gpu: &Gpu) -> Result<()> {
    if tensor.gpu() == gpu {
        return Ok(());
    }
    let (theirs, ours) = (tensor.gpu().caps().adapter.clone(), gpu.caps().adapter.clone());
    Err(Error::OtherDevice { argument: name.into(), theirs, ours })
}
