//! Gradients: what runs for them, and the calls that a training loop makes.

use super::stage::{Pass, Stage, StagePrepared};
use super::uniforms::{BiasDivision, Division, uniforms};
use super::{FlashAttention, FlashInputs, FlashOutputs, FlashParams, FlashShapes, check_params, check_shapes};
use crate::arguments::{Argument, bind, number_buffers};
use crate::dispatch::{Kernel, Launch, check_device, scratch};
use crate::error::require;
use crate::packed::Side;
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::slices::cut;
use crate::softmax::Portable;
use crate::{Caps, CuSeqlens, DType, Error, Layout, Result, Slice, Tensor};

/// What the backward pass reads besides the forward pass's inputs and outputs.
#[derive(Clone, Copy, Debug)]
pub struct FlashOutputGradients<'a> {
    /// Gradient of the output [batch, heads_q, queries, value_dim], of any type.
    pub dout: &'a Tensor,
    /// Gradient of the log-sum-exp, f32 [batch, heads_q, queries, 1], where there is one.
    pub dlse: Option<&'a Tensor>,
}

/// What the backward pass writes.
#[derive(Clone, Debug)]
pub struct FlashGradients {
    /// Gradient of q, of its shape.
    pub dq: Tensor,
    /// Gradient of k: the sum over the query heads that use it.
    pub dk: Tensor,
    /// Gradient of v, likewise.
    pub dv: Tensor,
    /// Gradient of the bias where there is one, f32: of its shape, with 1 in place of a dimension that a stride of zero
    /// repeats, along which it is the sum.
    pub dbias: Option<Tensor>,
}

/// Types, shapes and strides of a backward pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlashBackwardShapes {
    /// Those of the forward pass.
    pub forward: FlashShapes,
    /// Gradient of the output.
    pub dout: Layout,
    /// Gradient of the log-sum-exp.
    pub dlse: Option<Layout>,
    /// Gradient of q.
    pub dq: Layout,
    /// Gradient of k.
    pub dk: Layout,
    /// Gradient of v.
    pub dv: Layout,
    /// Gradient of the bias.
    pub dbias: Option<Layout>,
    /// Which of q, k, v, out, lse, bias, mask, dout, dlse, dq, dk, dv, dbias lie in one buffer: those with the same number.
    pub buffers: [usize; 13],
}

/// In the order of [`FlashBackwardShapes::buffers`].
fn slots<'a>(
    inputs: &FlashInputs<'a>,
    outputs: &FlashOutputs<'a>,
    from: &FlashOutputGradients<'a>,
    to: &'a FlashGradients,
) -> [Option<&'a Tensor>; 13] {
    let [q, k, v, out, lse, bias, mask] = super::slots(inputs, outputs);
    let FlashGradients { dq, dk, dv, dbias } = to;
    [q, k, v, out, lse, bias, mask, Some(from.dout), from.dlse, Some(dq), Some(dk), Some(dv), dbias.as_ref()]
}

const NAMES: [&str; 13] = ["q", "k", "v", "out", "lse", "bias", "mask", "dout", "dlse", "dq", "dk", "dv", "dbias"];

impl FlashBackwardShapes {
    /// As the tensors are.
    pub fn of(inputs: &FlashInputs, outputs: &FlashOutputs, from: &FlashOutputGradients, to: &FlashGradients) -> Self {
        Self {
            forward: FlashShapes::of(inputs, outputs),
            dout: from.dout.layout().clone(),
            dlse: from.dlse.map(|dlse| dlse.layout().clone()),
            dq: to.dq.layout().clone(),
            dk: to.dk.layout().clone(),
            dv: to.dv.layout().clone(),
            dbias: to.dbias.as_ref().map(|dbias| dbias.layout().clone()),
            buffers: number_buffers(slots(inputs, outputs, from, to)),
        }
    }

    fn layout(&self, name: &str) -> Option<&Layout> {
        let FlashShapes { q, k, v, out, lse, bias, mask, .. } = &self.forward;
        match name {
            "q" => Some(q),
            "k" => Some(k),
            "v" => Some(v),
            "out" => Some(out),
            "lse" => Some(lse),
            "bias" => bias.as_ref(),
            "mask" => mask.as_ref(),
            "dout" => Some(&self.dout),
            "dlse" => self.dlse.as_ref(),
            "dq" => Some(&self.dq),
            "dk" => Some(&self.dk),
            "dv" => Some(&self.dv),
            _ => self.dbias.as_ref(),
        }
    }

    fn check(&self) -> Result<()> {
        check_shapes(&self.forward)?;
        let FlashShapes { q, k, v, out, lse, .. } = &self.forward;
        for (name, like) in [("dout", out), ("dlse", lse), ("dq", q), ("dk", k), ("dv", v)] {
            let Some(layout) = self.layout(name) else { continue };
            let bound = format!("{:?}", like.shape);
            require(layout.shape == like.shape, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
            layout.byte_span()?;
        }
        if let Some(dbias) = &self.dbias {
            let shape = self.forward.bias_shape();
            let bound = format!("{shape:?}: the bias, with 1 where a stride of zero repeats it");
            require(self.forward.bias.is_some(), "dbias", "set", "unset without a bias")?;
            require(dbias.shape == shape, "dbias.shape", format!("{:?}", dbias.shape), bound)?;
            require(dbias.dtype == DType::F32, "dbias.dtype", dbias.dtype, "f32")?;
            dbias.byte_span()?;
            dbias.check_output("dbias")?;
        }
        let dlse = self.dlse.as_ref().map_or(DType::F32, |dlse| dlse.dtype);
        require(dlse == DType::F32, "dlse.dtype", dlse, "f32")?;
        [("dq", &self.dq), ("dk", &self.dk), ("dv", &self.dv)].into_iter().try_for_each(|(n, l)| l.check_output(n))
    }

    /// The tensors of the gradient of the bias. Work goes by the bias's own batch entries and heads, each of which may stand
    /// for all.
    fn bias_arguments(&self) -> Vec<Argument> {
        let (pairs, bias) = (self.forward.pairs(), self.forward.bias_shape());
        let mut arguments = self.arguments(Side::Queries, &OF_BIAS);
        for argument in arguments.iter_mut().filter(|argument| argument.name != "dbias") {
            argument.spread = if bias[1] == pairs[1] { 1 } else { pairs[1] };
            // Packed sequences lie in one batch entry, whatever is repeated.
            let own = ["bias", "mask"].contains(&argument.name) || self.forward.packed().is_none();
            argument.whole = bias[0] != pairs[0] || !own;
        }
        for argument in arguments.iter_mut().filter(|argument| ["bias", "mask"].contains(&argument.name)) {
            argument.whole = bias[0] != pairs[0];
        }
        arguments
    }

    /// The tensors of these names, as a kernel over the rows of one side sees them.
    fn arguments(&self, side: Side, names: &[&'static str]) -> Vec<Argument> {
        let group = self.forward.q.shape[1] / self.forward.k.shape[1];
        let argument = |&name: &&'static str| {
            let of_keys = ["k", "v", "dk", "dv"].contains(&name);
            let (group, spread) = match side {
                Side::Queries => (if of_keys { group } else { 1 }, 1),
                Side::Keys => (1, if of_keys { 1 } else { group }),
            };
            let kind = match name {
                "dq" | "dk" | "dv" => AccessKind::Store4,
                "bias" | "mask" | "dlse" => AccessKind::Load1,
                "lse" => AccessKind::LoadBits,
                "dbias" => AccessKind::StoreBits,
                _ => AccessKind::Load4,
            };
            let buffer = self.buffers[NAMES.iter().position(|other| *other == name).expect("one of them")];
            let whole = self.forward.packed().is_some() && ["bias", "mask"].contains(&name);
            Some(Argument { name, layout: self.layout(name)?.clone(), kind, group, spread, buffer, whole })
        };
        names.iter().filter_map(argument).collect()
    }
}

const OF_DELTA: [&str; 4] = ["out", "dout", "lse", "dlse"];
const OF_QUERIES: [&str; 7] = ["q", "k", "v", "dout", "dq", "bias", "mask"];
const OF_BIAS: [&str; 7] = ["q", "k", "v", "dout", "bias", "mask", "dbias"];
const OF_KEYS_AND_VALUES: [&str; 8] = ["q", "k", "v", "dout", "dk", "dv", "bias", "mask"];
const OF_KEYS: [&str; 7] = ["q", "k", "v", "dout", "dk", "bias", "mask"];
const OF_VALUES: [&str; 7] = ["q", "k", "v", "dout", "dv", "bias", "mask"];
/// Threads of the kernel that takes a row of the output each.
const DELTA_THREADS: u32 = 64;

/// What runs for the gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct FlashBackwardPlan {
    delta: Kernel,
    delta_slices: Vec<Slice>,
    queries: Stage,
    /// One for both gradients, or one each.
    keys: Vec<(Stage, &'static [&'static str])>,
    bias: Option<Stage>,
    stats_bytes: u64,
    engine: Portable,
}

impl FlashBackwardPlan {
    /// Chooses variants, tile sizes and slices.
    ///
    /// # Errors
    /// [`Error::Argument`] for params or shapes that do not fit together, and for a hook that changes scores and has no
    /// gradient; [`Error::Limit`] for a device that has too little.
    pub fn new(caps: &Caps, params: &FlashParams, shapes: &FlashBackwardShapes) -> Result<Self> {
        check_params(caps, params)?;
        shapes.check()?;
        for (i, hook) in params.score_mod.iter().enumerate() {
            let what = format!("score_mod[{i}].grad_entry");
            let bound = format!("the name of the gradient of `{}`: gradients go through it", hook.entry);
            require(hook.grad_entry.is_some(), &what, "unset", bound)?;
        }
        let forward = &shapes.forward;
        let [batch, heads, queries, head_dim] = forward.q.shape;
        let value_dim = forward.v.shape[3];
        let engine = Portable::plan(caps, "flash backward", head_dim, head_dim.max(value_dim))?;
        for name in ["dq", "dk", "dv"] {
            let end = shapes.layout(name).map_or(Ok(0..0), Layout::byte_span)?.end;
            caps.within(name, "maxBufferSize", end, caps.buffer_bytes)?;
        }
        let stats_bytes = 8 * (batch * heads * queries) as u64;
        caps.within("flash backward", "maxStorageBufferBindingSize", stats_bytes, caps.binding_bytes)?;
        let stage = |pass: Pass, names: &[&'static str], flops: usize| {
            let arguments = shapes.arguments(pass.side(), names);
            Stage::plan(caps, params, forward, &engine, pass, arguments, 2.0 * flops as f64)
        };
        let queries = stage(Pass::Queries, &OF_QUERIES, 2 * head_dim + value_dim)?;
        // Where a device binds too few buffers for both gradients, each comes alone.
        let keys = match stage(Pass::KeysAndValues, &OF_KEYS_AND_VALUES, 2 * (head_dim + value_dim)) {
            Err(Error::Limit { limit: "maxStorageBuffersPerShaderStage", .. }) => vec![
                (stage(Pass::Keys, &OF_KEYS, 2 * head_dim + value_dim)?, &OF_KEYS[..]),
                (stage(Pass::Values, &OF_VALUES, head_dim + 2 * value_dim)?, &OF_VALUES[..]),
            ],
            both => vec![(both?, &OF_KEYS_AND_VALUES[..])],
        };
        let bias = match &shapes.dbias {
            None => None,
            Some(_) => {
                let flops = 2.0 * (head_dim + value_dim) as f64;
                Some(Stage::plan(caps, params, forward, &engine, Pass::Bias, shapes.bias_arguments(), flops)?)
            }
        };
        let (delta, delta_slices) = delta(caps, params, shapes, &engine)?;
        Ok(Self { delta, delta_slices, queries, keys, bias, stats_bytes, engine })
    }

    /// The whole WGSL text of each kernel that runs, in their order, with its name.
    pub fn wgsl(&self) -> Vec<(&str, String)> {
        let kernels = [&self.delta]
            .into_iter()
            .chain(self.queries.kernels())
            .chain(self.keys.iter().flat_map(|(stage, _)| stage.kernels()));
        let kernels = kernels.chain(self.bias.iter().flat_map(Stage::kernels));
        kernels.map(|kernel| (kernel.shader.name.as_str(), kernel.shader.source())).collect()
    }
}

impl std::fmt::Display for FlashBackwardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (queries, keys) = (self.queries.slices.len(), self.keys[0].0.slices.len());
        write!(f, "flash backward, {}; {queries} slices for queries, {keys} for keys and values", self.engine)?;
        if self.keys.len() > 1 {
            write!(f, "; dk and dv apart: together they need more storage buffers than there are")?;
        }
        if let Some(masks) = &self.queries.masks {
            write!(f, "; {masks}")?;
        }
        Ok(())
    }
}

fn delta(
    caps: &Caps,
    params: &FlashParams,
    shapes: &FlashBackwardShapes,
    engine: &Portable,
) -> Result<(Kernel, Vec<Slice>)> {
    let [batch, heads, queries, head_dim] = shapes.forward.q.shape;
    let value_dim = shapes.forward.v.shape[3];
    let arguments = shapes.arguments(Side::Queries, &OF_DELTA);
    let tiles = queries.div_ceil(DELTA_THREADS as usize);
    let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
    let flops = 2.0 * f64::from(DELTA_THREADS) * value_dim as f64;
    let slices = if batch == 0 || tiles == 0 { vec![] } else { cut(caps, &arguments, whole, flops)? };
    let table = Binding::Table { name: "stats", ty: "vec2f", length: None, write: true };
    let (bindings, accesses) = bind(caps, &arguments, vec![Binding::Uniform { name: "params", ty: "Params" }, table]);
    let mut constants = engine.constants(head_dim, value_dim);
    constants.iter_mut().filter(|(name, _)| *name == "WG").for_each(|(_, threads)| *threads = DELTA_THREADS);
    constants.push(("NONE", u32::MAX));
    constants.push(("MINUS_INFINITY_BITS", f32::NEG_INFINITY.to_bits()));
    let mut files = vec![file::PARAMS, file::DELTA, file::ROWS_STRIDED, file::ELEMENT];
    files.extend(shapes.dlse.is_none().then_some(file::NO_DLSE));
    let division = Division {
        tiles,
        sequences: 0,
        map: [0; 2],
        scored: false,
        side: Side::Queries,
        bias: BiasDivision::default(),
    };
    let uniforms = slices.iter().map(|s| uniforms(caps, params, &shapes.forward, division, &arguments, s)).collect();
    let shader = Shader { name: "flash delta".into(), constants, bindings, accesses, chain: None, files };
    caps.within(
        "flash delta",
        "maxStorageBuffersPerShaderStage",
        shader.storage_buffers(),
        caps.storage_buffers.into(),
    )?;
    Ok((Kernel { shader, arguments, uniforms, tables: vec![None] }, slices))
}

/// Gradients compiled for certain shapes: records into the caller's encoders, as often as wanted.
#[derive(Debug)]
pub struct FlashBackwardPrepared {
    delta: Launch,
    queries: StagePrepared,
    keys: Vec<StagePrepared>,
    bias: Option<StagePrepared>,
    shapes: FlashBackwardShapes,
    plan: FlashBackwardPlan,
}

impl FlashBackwardPrepared {
    /// What runs.
    pub fn plan(&self) -> &FlashBackwardPlan {
        &self.plan
    }

    /// Records the whole work. The caller submits.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::OtherDevice`] if a tensor is not as it was prepared for. Nothing is recorded then.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &FlashInputs,
        outputs: &FlashOutputs,
        from: &FlashOutputGradients,
        to: &FlashGradients,
    ) -> Result<()> {
        let descriptor = wgpu::ComputePassDescriptor { label: Some("flash backward"), timestamp_writes: None };
        self.encode_in(&mut encoder.begin_compute_pass(&descriptor), inputs, outputs, from, to)
    }

    /// Records the whole work into a pass of the caller's.
    ///
    /// # Errors
    /// Those of [`FlashBackwardPrepared::encode`].
    pub fn encode_in(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        inputs: &FlashInputs,
        outputs: &FlashOutputs,
        from: &FlashOutputGradients,
        to: &FlashGradients,
    ) -> Result<()> {
        let work = Work::new(self, inputs, outputs, from, to)?;
        self.delta.encode(pass, &work.delta, 0..self.delta.slices().len())?;
        for (stage, tensors) in self.stages(&work) {
            stage.encode(pass, tensors, inputs.mask, &work.offsets, 0..stage.slices().len())?;
        }
        Ok(())
    }

    /// The stages behind the first, with their tensors.
    fn stages<'a, 'b>(&'a self, work: &'a Work<'b>) -> impl Iterator<Item = (&'a StagePrepared, &'a [&'b Tensor])> {
        let bias = self.bias.iter().map(|bias| (bias, work.bias.as_slice()));
        let keys = self.keys.iter().zip(&work.keys).map(|(keys, tensors)| (keys, tensors.as_slice()));
        [(&self.queries, work.queries.as_slice())].into_iter().chain(keys).chain(bias)
    }

    /// Records each slice into an encoder of its own and submits it.
    ///
    /// # Errors
    /// Those of [`FlashBackwardPrepared::encode`]; [`Error::DeviceLost`].
    pub async fn submit(
        &self,
        inputs: &FlashInputs<'_>,
        outputs: &FlashOutputs<'_>,
        from: &FlashOutputGradients<'_>,
        to: &FlashGradients,
    ) -> Result<()> {
        let work = Work::new(self, inputs, outputs, from, to)?;
        let gpu = self.queries.gpu();
        for (stage, tensors) in self.stages(&work) {
            for slice in 0..stage.slices().len() {
                let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                // Little work, and made anew in every command buffer, because others may use its table in between.
                self.delta.encode(&mut pass, &work.delta, 0..self.delta.slices().len())?;
                stage.encode(&mut pass, tensors, inputs.mask, &work.offsets, slice..slice + 1)?;
                drop(pass);
                gpu.submit(encoder).await?;
            }
        }
        Ok(())
    }
}

/// The tensors of each kernel, checked.
struct Work<'a> {
    delta: Vec<&'a Tensor>,
    queries: Vec<&'a Tensor>,
    keys: Vec<Vec<&'a Tensor>>,
    bias: Vec<&'a Tensor>,
    offsets: Vec<&'a Tensor>,
}

impl<'a> Work<'a> {
    fn new(
        prepared: &FlashBackwardPrepared,
        inputs: &'a FlashInputs<'a>,
        outputs: &FlashOutputs<'a>,
        from: &FlashOutputGradients<'a>,
        to: &'a FlashGradients,
    ) -> Result<Self> {
        prepared.queries.gpu().alive()?;
        prepared.shapes.forward.check_as_prepared(inputs)?;
        let has = |tensor: Option<&Tensor>| if tensor.is_some() { "set" } else { "unset" };
        let same = from.dlse.is_some() == prepared.shapes.dlse.is_some();
        require(same, "dlse", has(from.dlse), "set or unset as prepared")?;
        let all = slots(inputs, outputs, from, to);
        let of = |names: &[&str]| -> Vec<&'a Tensor> {
            names.iter().filter_map(|name| all[NAMES.iter().position(|other| other == name)?]).collect()
        };
        let offsets = [&inputs.cu_seqlens_q, &inputs.cu_seqlens_k];
        let offsets = offsets.into_iter().flatten().filter_map(CuSeqlens::tensor).collect();
        let keys = prepared.plan.keys.iter().map(|(_, names)| of(names)).collect();
        let work = Self { delta: of(&OF_DELTA), queries: of(&OF_QUERIES), keys, bias: of(&OF_BIAS), offsets };
        let same = to.dbias.is_some() == prepared.bias.is_some();
        require(same, "dbias", has(to.dbias.as_ref()), "set or unset as prepared")?;
        prepared.delta.check(&work.delta, &(0..prepared.delta.slices().len()))?;
        for (stage, tensors) in prepared.stages(&work) {
            stage.check(tensors, &(0..stage.slices().len()))?;
        }
        Ok(work)
    }
}

impl FlashAttention {
    /// Compiles and allocates all that the gradients of these shapes need.
    ///
    /// # Errors
    /// Those of [`FlashBackwardPlan::new`]; [`Error::Shader`], [`Error::Hook`], [`Error::OutOfMemory`],
    /// [`Error::DeviceLost`].
    pub async fn prepare_backward(&self, shapes: &FlashBackwardShapes) -> Result<FlashBackwardPrepared> {
        let gpu = self.gpu();
        let plan = FlashBackwardPlan::new(gpu.caps(), self.params(), shapes)?;
        let tables = scratch(gpu, &[("stats", plan.stats_bytes)]).await?;
        let delta = Launch::prepare(gpu, &plan.delta, &plan.delta_slices, &tables).await?;
        let queries = StagePrepared::new(gpu, &plan.queries, &tables).await?;
        let mut keys = Vec::new();
        for (stage, _) in &plan.keys {
            keys.push(StagePrepared::new(gpu, stage, &tables).await?);
        }
        let bias = match &plan.bias {
            Some(bias) => Some(StagePrepared::new(gpu, bias, &tables).await?),
            None => None,
        };
        Ok(FlashBackwardPrepared { delta, queries, keys, bias, shapes: shapes.clone(), plan })
    }

    /// The forward pass, with all that the backward pass needs of it.
    ///
    /// # Errors
    /// Those of [`FlashAttention::forward_with_lse`].
    ///
    /// ```
    /// # pollster::block_on(async {
    /// use wgpu_attention::{DType, FlashAttention, FlashInputs, FlashParams, Gpu, Tensor};
    /// let gpu = Gpu::request().await?;
    /// let q = Tensor::upload(&gpu, [1, 1, 1, 2], DType::F32, &[1.0, 0.0]).await?;
    /// let k = Tensor::upload(&gpu, [1, 1, 2, 2], DType::F32, &[0.0; 4]).await?;
    /// let v = Tensor::upload(&gpu, [1, 1, 2, 1], DType::F32, &[1.0, 5.0]).await?;
    /// let attention = FlashAttention::new(&gpu, FlashParams { scale: Some(1.0), ..Default::default() })?;
    /// let (out, saved) = attention.forward_for_training(&FlashInputs::new(&q, &k, &v)).await?;
    /// assert_eq!(out.read().await?, [3.0]); // both weights are 1/2
    /// let dout = Tensor::upload(&gpu, [1, 1, 1, 1], DType::F32, &[1.0]).await?;
    /// let gradients = attention.backward(&saved, &dout).await?;
    /// assert_eq!(gradients.dv.read().await?, [0.5, 0.5]);
    /// assert_eq!(gradients.dk.read().await?, [-1.0, 0.0, 1.0, 0.0]); // 1/2 · (1 − 3) · q, 1/2 · (5 − 3) · q
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub async fn forward_for_training(&self, inputs: &FlashInputs<'_>) -> Result<(Tensor, FlashSaved)> {
        let (out, lse) = self.forward_with_lse(inputs).await?;
        let seqlens = [inputs.seqlens_q, inputs.seqlens_k].map(|s| s.map(<[usize]>::to_vec));
        let offsets = [inputs.cu_seqlens_q, inputs.cu_seqlens_k].map(|side| {
            side.map(|side| match side {
                CuSeqlens::Host(offsets) => Offsets::Host(offsets.to_vec()),
                CuSeqlens::Gpu { offsets, max_seqlen } => Offsets::Gpu(offsets.clone(), max_seqlen),
            })
        });
        let saved = FlashSaved {
            inputs: [inputs.q, inputs.k, inputs.v].map(Tensor::clone),
            pairs: [inputs.bias.cloned(), inputs.mask.cloned()],
            seqlens,
            offsets,
            outputs: [out.clone(), lse],
        };
        Ok((out, saved))
    }

    /// The gradients of Σ dout · out in one call: allocates them, of the inputs' types, and submits.
    ///
    /// # Errors
    /// Those of [`FlashAttention::prepare_backward`]; [`Error::OtherDevice`].
    pub async fn backward(&self, saved: &FlashSaved, dout: &Tensor) -> Result<FlashGradients> {
        self.backward_with_lse(saved, &FlashOutputGradients { dout, dlse: None }).await
    }

    /// The same where the log-sum-exp has a gradient too: those of Σ dout · out + Σ dlse · lse. Results that were merged:
    /// give each part the merged output and log-sum-exp ([`FlashSaved::merged`]).
    ///
    /// # Errors
    /// Those of [`FlashAttention::backward`].
    pub async fn backward_with_lse(
        &self,
        saved: &FlashSaved,
        from: &FlashOutputGradients<'_>,
    ) -> Result<FlashGradients> {
        let gpu = self.gpu();
        check_device("q", &saved.inputs[0], gpu)?;
        for (name, tensor) in [("dout", Some(from.dout)), ("dlse", from.dlse)] {
            tensor.map_or(Ok(()), |tensor| check_device(name, tensor, gpu))?;
        }
        let (inputs, outputs) = (saved.inputs(), saved.outputs());
        let like = async |tensor: &Tensor| {
            let Layout { dtype, shape, .. } = tensor.layout().clone();
            Tensor::empty(gpu, Layout::heads_first(dtype, shape)).await
        };
        let dbias = match inputs.bias {
            None => None,
            Some(_) => {
                let shape = FlashShapes::of_inputs(&inputs).bias_shape();
                Some(Tensor::empty(gpu, Layout::heads_first(DType::F32, shape)).await?)
            }
        };
        let [dq, dk, dv] = [like(inputs.q).await?, like(inputs.k).await?, like(inputs.v).await?];
        let to = FlashGradients { dq, dk, dv, dbias };
        let shapes = FlashBackwardShapes::of(&inputs, &outputs, from, &to);
        self.prepared_backward(&shapes).await?.submit(&inputs, &outputs, from, &to).await?;
        Ok(to)
    }
}

/// What a forward pass leaves for the backward pass. It shares the tensors with whoever else holds them: they must not be
/// written in between.
#[derive(Clone, Debug)]
pub struct FlashSaved {
    inputs: [Tensor; 3],
    pairs: [Option<Tensor>; 2],
    seqlens: [Option<Vec<usize>>; 2],
    offsets: [Option<Offsets>; 2],
    outputs: [Tensor; 2],
}

#[derive(Clone, Debug)]
enum Offsets {
    Host(Vec<u32>),
    Gpu(Tensor, usize),
}

impl FlashSaved {
    /// The forward pass's inputs.
    pub fn inputs(&self) -> FlashInputs<'_> {
        let side = |i: usize| {
            self.offsets[i].as_ref().map(|side| match side {
                Offsets::Host(offsets) => CuSeqlens::Host(offsets),
                Offsets::Gpu(offsets, max_seqlen) => CuSeqlens::Gpu { offsets, max_seqlen: *max_seqlen },
            })
        };
        let [q, k, v] = &self.inputs;
        FlashInputs {
            seqlens_q: self.seqlens[0].as_deref(),
            seqlens_k: self.seqlens[1].as_deref(),
            cu_seqlens_q: side(0),
            cu_seqlens_k: side(1),
            bias: self.pairs[0].as_ref(),
            mask: self.pairs[1].as_ref(),
            ..FlashInputs::new(q, k, v)
        }
    }

    /// Its outputs.
    pub fn outputs(&self) -> FlashOutputs<'_> {
        let [out, lse] = &self.outputs;
        FlashOutputs { out, lse }
    }

    /// The same as part of a merged result: with the merged output and log-sum-exp, each part's ordinary backward pass gives
    /// its share of the exact gradients.
    pub fn merged(self, out: &Tensor, lse: &Tensor) -> Self {
        Self { outputs: [out.clone(), lse.clone()], ..self }
    }
}
