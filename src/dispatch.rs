//! From a plan to the GPU: uniforms, bind groups, dispatches. Every kernel goes this way.

use crate::arguments::{Argument, address_of, aligned, bind, bound_range, is_written, overlap, together};
use crate::few::Few;
use crate::shader::{Binding, Pipeline, Shader};
use crate::{Caps, Error, Gpu, Layout, Result, Slice, Tensor, hook};
use futures::FutureExt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// How many sets of tensors a prepared kernel keeps bind groups for.
const BIND_GROUP_SETS: usize = 8;

/// A kernel as planned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kernel {
    pub shader: Shader,
    pub arguments: Vec<Argument>,
    /// The uniform struct of each slice.
    pub uniforms: Vec<Vec<u8>>,
    /// The contents of each table, in the order of their bindings; unset for one that a kernel writes or has written.
    pub tables: Vec<Option<Vec<u8>>>,
}

impl Kernel {
    /// Gives a shader its uniform struct, its tables (with their contents) and its tensors.
    pub fn new(
        caps: &Caps,
        shader: Shader,
        arguments: Vec<Argument>,
        tables: Vec<(Binding, Option<Vec<u8>>)>,
        uniforms: Vec<Vec<u8>>,
    ) -> Self {
        let (fixed, tables): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
        let fixed = std::iter::once(Binding::Uniform { name: "params", ty: "Params" }).chain(fixed).collect();
        let (bindings, accesses) = bind(caps, &arguments, fixed);
        Self { shader: Shader { bindings, accesses, ..shader }, arguments, uniforms, tables }
    }

    /// The same with a uniform struct for each slice, from the slice and from where it finds each tensor, if a device binds so
    /// many storage buffers.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn sliced<P: bytemuck::Pod>(
        caps: &Caps,
        shader: Shader,
        arguments: Vec<Argument>,
        tables: Vec<(Binding, Option<Vec<u8>>)>,
        slices: &[Slice],
        params: impl Fn(&Slice, &dyn Fn(&str) -> [u32; 4]) -> P,
    ) -> Result<Self> {
        let of_slice = |slice: &Slice| params(slice, &|name| address_of(caps, &arguments, name, slice));
        let uniforms = slices.iter().map(|slice| bytemuck::bytes_of(&of_slice(slice)).to_vec()).collect();
        Self::new(caps, shader, arguments, tables, uniforms).fit(caps)
    }

    /// The same, if a device binds so many storage buffers.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn fit(self, caps: &Caps) -> Result<Self> {
        let (name, buffers) = (&self.shader.name, self.shader.storage_buffers());
        caps.within(name, "maxStorageBuffersPerShaderStage", buffers, caps.storage_buffers.into())?;
        Ok(self)
    }
}

/// Tables that kernels write for one another, by their names in the shaders.
pub(crate) type Scratch = Few<&'static str, wgpu::Buffer>;

/// Buffers for tables of these sizes in bytes.
pub(crate) async fn scratch(gpu: &Gpu, sizes: &[(&'static str, u64)]) -> Result<Scratch> {
    use wgpu::BufferUsages as Usage;
    let mut found = Scratch::default();
    for &(name, bytes) in sizes {
        let usage = Usage::STORAGE | Usage::COPY_SRC | Usage::COPY_DST;
        found.insert(name, gpu.buffer(name, bytes, usage, &[]).await?);
    }
    Ok(found)
}

/// A compiled kernel with its constant buffers: all that does not depend on the tensors.
#[derive(Debug)]
pub(crate) struct Launch {
    gpu: Gpu,
    shader: Shader,
    pipeline: Arc<Pipeline>,
    arguments: Vec<Argument>,
    /// For each argument, the first of those that share its binding.
    leaders: Vec<usize>,
    slices: Vec<Slice>,
    uniforms: wgpu::Buffer,
    uniform_stride: u64,
    uniform_size: u64,
    tables: Vec<wgpu::Buffer>,
    /// For tensors without elements: one to read, one to write.
    empty: [wgpu::Buffer; 2],
    /// The caller's buffers.
    hooks: Option<wgpu::BindGroup>,
    bound: Mutex<Vec<Bound>>,
}

/// The bind groups of one set of tensors, one for each slice.
#[derive(Debug)]
struct Bound {
    key: Vec<(wgpu::Buffer, u64)>,
    groups: Arc<Vec<wgpu::BindGroup>>,
}

impl Launch {
    /// Builds the pipeline and uploads one uniform struct for each slice, and the tables.
    pub async fn prepare(gpu: &Gpu, kernel: &Kernel, slices: &[Slice], scratch: &Scratch) -> Result<Self> {
        let Kernel { shader, arguments, uniforms, tables } = kernel;
        let pipeline = gpu.pipeline(shader).await?;
        let uniform_size = uniforms.first().map_or(0, |uniform| uniform.len() as u64);
        let uniform_stride = uniform_size.next_multiple_of(u64::from(gpu.caps().uniform_alignment)).max(1);
        let mut bytes = vec![0; uniforms.len() * uniform_stride as usize];
        for (uniform, at) in uniforms.iter().zip(bytes.chunks_exact_mut(uniform_stride as usize)) {
            at[..uniform_size as usize].copy_from_slice(uniform);
        }
        use wgpu::BufferUsages as Usage;
        let uniforms = gpu.buffer("parameters", bytes.len() as u64, Usage::UNIFORM | Usage::COPY_DST, &bytes).await?;
        let mut table_buffers = Vec::new();
        let named = shader.bindings.iter().filter_map(|binding| match binding {
            Binding::Table { name, .. } => Some(*name),
            _ => None,
        });
        for (name, contents) in named.zip(tables) {
            let usage = Usage::STORAGE | Usage::UNIFORM | Usage::COPY_DST;
            table_buffers.push(match contents {
                Some(contents) => gpu.buffer(name, contents.len() as u64, usage, contents).await?,
                None => scratch[&name].clone(),
            });
        }
        let empty = async || gpu.buffer("empty tensor", 16, Usage::STORAGE, &[]).await;
        let empty = [empty().await?, empty().await?];
        let (hooks, popped) = gpu.scoped(|_| hook_group(gpu, shader, &pipeline, &empty[0]));
        gpu.refused("buffers of hooks", popped.await).await?;
        let leaders = leaders(gpu.caps(), arguments);
        Ok(Self {
            gpu: gpu.clone(),
            shader: shader.clone(),
            pipeline,
            arguments: arguments.to_vec(),
            leaders,
            slices: slices.to_vec(),
            uniforms,
            uniform_stride,
            uniform_size,
            tables: table_buffers,
            empty,
            hooks,
            bound: Mutex::default(),
        })
    }

    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// How many tensors there are.
    pub fn arguments(&self) -> usize {
        self.arguments.len()
    }

    /// Records the slices `which` into a compute pass. The tensors stand in the order of the arguments.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, tensors: &[&Tensor], which: Range<usize>) -> Result<()> {
        let shifts = self.check(tensors, &which)?;
        if which.is_empty() {
            return Ok(());
        }
        let groups = self.groups(tensors, &shifts)?;
        pass.set_pipeline(&self.pipeline.compute);
        if let Some(hooks) = &self.hooks {
            pass.set_bind_group(1, hooks, &[]);
        }
        for i in which {
            let [batches, heads, tiles] = self.slices[i].sizes().map(|n| n as u32);
            pass.set_bind_group(0, &groups[i], &[]);
            pass.dispatch_workgroups(tiles, heads, batches);
        }
        Ok(())
    }

    /// Checks that the slices are there, and that each tensor is as prepared, but for its buffer and for an offset that
    /// differs by whole alignments. Returns that difference for each, in bytes.
    pub fn check(&self, tensors: &[&Tensor], which: &Range<usize>) -> Result<Vec<u64>> {
        let known = self.slices.len();
        if which.end > known || which.start > which.end {
            return Err(Error::argument("slice", format!("{which:?}"), format!("within 0..{known}")));
        }
        let shifts = check_tensors(&self.gpu, &self.arguments, &self.leaders, tensors)?;
        self.check_hooks(tensors)?;
        Ok(shifts)
    }

    /// No buffer of a hook is one that this kernel writes: a buffer is either read or written in a dispatch.
    fn check_hooks(&self, tensors: &[&Tensor]) -> Result<()> {
        for (name, tensor) in hook::buffers(self.shader.hooks()) {
            let written = |i: &usize| is_written(&self.arguments, self.arguments[*i].buffer);
            let same = (0..tensors.len()).filter(written).find(|&i| tensors[i].buffer() == tensor.buffer());
            if let Some(i) = same {
                let value = format!("in the buffer of {}", self.arguments[i].name);
                return Err(Error::argument(
                    format!("hook buffer {name}"),
                    value,
                    "in another: that one is bound for writing",
                ));
            }
        }
        Ok(())
    }

    /// The argument that each tensor binding starts with.
    fn binding_leaders(&self) -> impl Iterator<Item = usize> {
        self.leaders.iter().enumerate().filter(|&(i, &leader)| i == leader).map(|(i, _)| i)
    }

    fn groups(&self, tensors: &[&Tensor], shifts: &[u64]) -> Result<Arc<Vec<wgpu::BindGroup>>> {
        let key: Vec<_> = self.binding_leaders().map(|i| (tensors[i].buffer().clone(), shifts[i])).collect();
        let mut bound = self.bound.lock().expect("no panic under this lock");
        if let Some(found) = bound.iter().find(|b| b.key == key) {
            return Ok(found.groups.clone());
        }
        let make = |_: &wgpu::Device| self.slices.iter().enumerate().map(|(i, s)| self.group(i, s, &key)).collect();
        let (groups, popped) = self.gpu.scoped(make);
        // On native the answer is there at once; in a browser it comes with the submit.
        let refused = async { self.gpu.refused("bind groups", popped.await).await };
        refused.now_or_never().unwrap_or(Ok(()))?;
        let groups = Arc::new(groups);
        if bound.len() == BIND_GROUP_SETS {
            bound.remove(0);
        }
        bound.push(Bound { key, groups: Arc::clone(&groups) });
        Ok(groups)
    }

    fn group(&self, index: usize, slice: &Slice, key: &[(wgpu::Buffer, u64)]) -> wgpu::BindGroup {
        let mut parts = vec![part(&self.uniforms, index as u64 * self.uniform_stride, self.uniform_size)];
        parts.extend(self.tables.iter().map(|table| part(table, 0, table.size())));
        for (i, (buffer, shift)) in self.binding_leaders().zip(key) {
            let range = bound_range(self.gpu.caps(), &self.arguments, i, slice);
            parts.push(match range.end - range.start {
                0 => {
                    let empty = &self.empty[usize::from(is_written(&self.arguments, self.arguments[i].buffer))];
                    part(empty, 0, empty.size())
                }
                bytes => part(buffer, range.start.wrapping_add(*shift), bytes),
            });
        }
        bind_group(&self.gpu, &self.shader.name, &self.pipeline.layout, parts)
    }
}

/// For each argument, the first of those that share its binding.
pub(crate) fn leaders(caps: &Caps, arguments: &[Argument]) -> Vec<usize> {
    (0..arguments.len()).map(|i| together(caps, arguments, i)[0]).collect()
}

/// Checks that each tensor is as planned, but for its buffer and for an offset that differs by whole alignments. Returns that
/// difference for each, in bytes.
pub(crate) fn check_tensors(
    gpu: &Gpu,
    arguments: &[Argument],
    leaders: &[usize],
    tensors: &[&Tensor],
) -> Result<Vec<u64>> {
    let caps = gpu.caps();
    let mut shifts = Vec::new();
    for (argument, tensor) in arguments.iter().zip(tensors) {
        let (name, wanted, given) = (argument.name, &argument.layout, tensor.layout());
        check_device(name, tensor, gpu)?;
        let bytes = wanted.dtype.bytes();
        let alignment = caps.binding_alignment();
        let (from, to) = (wanted.offset as u64 * bytes, given.offset as u64 * bytes);
        let same = Layout { offset: 0, ..wanted.clone() } == Layout { offset: 0, ..given.clone() };
        if !same || from % alignment != to % alignment {
            let bound = format!("as prepared: {wanted:?} (the offset may differ by multiples of {alignment} bytes)");
            return Err(Error::argument(name, format!("{given:?}"), bound));
        }
        shifts.push(to.wrapping_sub(from));
    }
    for (i, &leader) in leaders.iter().enumerate() {
        if shifts[i] != shifts[leader] {
            let with = arguments[leader].name;
            let bound = format!("as far from {with}'s as it was prepared: both share a binding");
            let argument = format!("{}.offset", arguments[i].name);
            return Err(Error::argument(argument, tensors[i].layout().offset, bound));
        }
    }
    check_apart(gpu.caps(), arguments, leaders, tensors)?;
    Ok(shifts)
}

/// Outputs lie apart from everything else, bindings of a buffer that is written do not overlap, and tensors share
/// buffers as the kernel was prepared for.
fn check_apart(caps: &Caps, arguments: &[Argument], leaders: &[usize], tensors: &[&Tensor]) -> Result<()> {
    let spans = tensors.iter().map(|t| t.layout().byte_span()).collect::<Result<Vec<_>>>()?;
    let written = |i: usize| is_written(arguments, arguments[i].buffer);
    let pairs = (0..arguments.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    for (i, j) in pairs.filter(|&(i, j)| written(i) || written(j)) {
        // The output first, where one of them is.
        let (i, j) = if arguments[i].writes() { (i, j) } else { (j, i) };
        let (one, other) = (arguments[i].name, arguments[j].name);
        let shares = tensors[i].buffer() == tensors[j].buffer();
        if shares && arguments[i].writes() && overlap(&spans[i], &spans[j]) {
            let bound = format!("apart from {other}, which has bytes {:?} of the same buffer", spans[j]);
            return Err(Error::argument(one, format!("bytes {:?}", spans[i]), bound));
        }
        if shares != (arguments[i].buffer == arguments[j].buffer) {
            let found = if shares { "in one buffer" } else { "in buffers of their own" };
            let bound = "as prepared; make the shapes with `of` from tensors that share buffers in the same way";
            return Err(Error::argument(format!("{one} and {other}"), found, bound));
        }
        let [a, b] = [i, j].map(|n| aligned(caps, spans[n].clone()));
        if shares && leaders[i] != leaders[j] && overlap(&a, &b) {
            let alignment = caps.binding_alignment();
            let bound = format!("{alignment} bytes or more from {other}, as prepared: bindings are aligned");
            return Err(Error::argument(one, format!("bytes {:?}", spans[i]), bound));
        }
    }
    Ok(())
}

fn part(buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) }
}

fn bind_group(
    gpu: &Gpu,
    label: &str,
    layout: &wgpu::BindGroupLayout,
    parts: Vec<wgpu::BufferBinding>,
) -> wgpu::BindGroup {
    let entry = |(part, binding)| wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(part) };
    let entries: Vec<_> = parts.into_iter().zip(0u32..).map(entry).collect();
    gpu.device().create_bind_group(&wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries })
}

/// Group 1: the caller's buffers.
fn hook_group(gpu: &Gpu, shader: &Shader, pipeline: &Pipeline, empty: &wgpu::Buffer) -> Option<wgpu::BindGroup> {
    let layout = pipeline.hook_layout.as_ref()?;
    let buffers = hook::buffers(shader.hooks());
    let parts = buffers.into_iter().map(|(_, tensor)| {
        let span = tensor.layout().byte_span().expect("checked when the kernel was planned");
        match span.end - span.start {
            0 => part(empty, 0, empty.size()),
            bytes => part(tensor.buffer(), span.start, bytes.next_multiple_of(4)),
        }
    });
    Some(bind_group(gpu, &shader.name, layout, parts.collect()))
}

pub(crate) fn check_device(name: &str, tensor: &Tensor, gpu: &Gpu) -> Result<()> {
    if tensor.gpu() == gpu {
        return Ok(());
    }
    let (theirs, ours) = (tensor.gpu().caps().adapter.clone(), gpu.caps().adapter.clone());
    Err(Error::OtherDevice { argument: name.into(), theirs, ours })
}
