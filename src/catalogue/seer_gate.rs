//! Cases of SeerAttention's gate: its logits, its choice, and its training.

use super::ready::{Owned, Ready};
use super::{Case, KernelParams, Outcome, Problem, Tolerance, normal, poisoned};
use crate::program::Kernel;
use crate::reference::{self, SeerGateProblem, SeerGateReference};
use crate::{
    Caps, DType, Gpu, GpuTime, Layout, Program, Result, SeerGate, SeerGateInputs, SeerGateParams, Seqlens, Shapes,
    Tensor,
};
use futures::future::LocalBoxFuture;

/// A gate over random tokens.
#[derive(Clone, Debug)]
pub struct SeerGateCase {
    /// Batch entries.
    pub batch: usize,
    /// Query heads, key heads.
    pub heads: (usize, usize),
    /// Queries, keys.
    pub lengths: (usize, usize),
    /// Width of tokens, of the gate.
    pub dims: (usize, usize),
    /// Whether pooled queries have a linear map.
    pub wq: bool,
    /// Whether the map of keys has a matrix for each query head, instead of one for each key head.
    pub wk_per_query_head: bool,
    /// Queries and keys of each batch entry; empty: all.
    pub sequences: Vec<[usize; 2]>,
    /// Whether they lie one after another.
    pub packed: bool,
    /// The params.
    pub params: SeerGateParams,
    /// Types of tokens, of weights.
    pub dtypes: [DType; 2],
    /// Tokens [batch, tokens, heads, width] in memory instead of contiguous.
    pub strided: bool,
    /// Standard deviation of tokens.
    pub amplitude: f32,
    /// Target, loss and gradients instead of the choice.
    pub training: bool,
    /// Seed of the random values.
    pub seed: u64,
}

impl Default for SeerGateCase {
    fn default() -> Self {
        Self {
            batch: 1,
            heads: (2, 2),
            lengths: (200, 200),
            dims: (16, 16),
            wq: false,
            wk_per_query_head: true,
            sequences: vec![],
            packed: false,
            params: SeerGateParams { block: [16, 16], ..SeerGateParams::default() },
            dtypes: [DType::F32; 2],
            strided: false,
            amplitude: 1.0,
            training: false,
            seed: 0,
        }
    }
}

/// The values of a case.
struct Values {
    q: Vec<f32>,
    k: Vec<f32>,
    wq: Vec<f32>,
    wk: Vec<f32>,
}

impl SeerGateCase {
    fn wk_heads(&self) -> usize {
        if self.wk_per_query_head { self.heads.0 } else { self.heads.1 }
    }

    fn token_shapes(&self) -> [[usize; 4]; 2] {
        let total = |i: usize| self.sequences.iter().map(|s| s[i]).sum::<usize>();
        let (batch, lengths) = match self.packed {
            true => (1, [total(0), total(1)]),
            false => (self.batch, [self.lengths.0, self.lengths.1]),
        };
        [[batch, self.heads.0, lengths[0], self.dims.0], [batch, self.heads.1, lengths[1], self.dims.0]]
    }

    fn weight_shapes(&self) -> [[usize; 4]; 2] {
        let (head_dim, gate_dim) = self.dims;
        let SeerGateParams { pool_q, pool_k, .. } = &self.params;
        [[1, self.heads.0, pool_q.len() * head_dim, gate_dim], [1, self.wk_heads(), pool_k.len() * head_dim, gate_dim]]
    }

    fn values(&self) -> Values {
        let [q, k] = self.token_shapes().map(|shape| shape.iter().product());
        let [wq, wk] = self.weight_shapes().map(|shape| shape.iter().product());
        let [tokens, weights] = self.dtypes;
        // Features of unit variance stay so.
        let spread = 1.0 / (self.dims.0 as f32).sqrt();
        Values {
            q: normal(self.seed, q, self.amplitude, tokens),
            k: normal(self.seed + 1, k, self.amplitude, tokens),
            wq: normal(self.seed + 2, if self.wq { wq } else { 0 }, spread, weights),
            wk: normal(self.seed + 3, wk, spread, weights),
        }
    }

    /// (batch entry, first query, queries, first key, keys) of each sequence.
    fn rows(&self) -> Vec<[usize; 5]> {
        if self.sequences.is_empty() {
            return (0..self.batch).map(|b| [b, 0, self.lengths.0, 0, self.lengths.1]).collect();
        }
        let mut next = [0, 0];
        let row = |(b, &[q, k]): (usize, &[usize; 2])| {
            let first = if self.packed { next } else { [0, 0] };
            next = [next[0] + q, next[1] + k];
            [if self.packed { 0 } else { b }, first[0], q, first[1], k]
        };
        self.sequences.iter().enumerate().map(row).collect()
    }

    fn with_problem<R>(&self, run: impl FnOnce(&SeerGateProblem) -> R) -> R {
        let (values, rows, [q_shape, k_shape]) = (self.values(), self.rows(), self.token_shapes());
        run(&SeerGateProblem {
            q: &values.q,
            q_shape,
            k: &values.k,
            k_shape,
            wq: self.wq.then_some(&values.wq),
            wk: &values.wk,
            wk_heads: self.wk_heads(),
            gate_dim: self.dims.1,
            sequences: &rows,
        })
    }

    fn token_layouts(&self) -> [Layout; 2] {
        self.token_shapes().map(|shape| match self.strided {
            true => Layout::heads_last(self.dtypes[0], shape).at(2),
            false => Layout::heads_first(self.dtypes[0], shape),
        })
    }

    fn cu_seqlens(&self) -> [Vec<usize>; 2] {
        let ends = |i: usize| {
            let mut end = 0;
            let next = self.sequences.iter().map(move |s| {
                end += s[i];
                end
            });
            std::iter::once(0).chain(next).collect()
        };
        [ends(0), ends(1)]
    }

    /// The inputs.
    fn shapes(&self) -> Shapes {
        let [q, k] = self.token_layouts();
        let [wq, wk] = self.weight_shapes().map(|shape| Layout::heads_first(self.dtypes[1], shape));
        let mut shapes = Shapes::new([("q", q), ("k", k), ("wk", wk)]).tensor_if("wq", self.wq.then_some(wq));
        for (i, (side, offsets)) in ["q", "k"].into_iter().zip(self.cu_seqlens()).enumerate() {
            if self.packed {
                shapes = shapes.numbers(format!("cu_seqlens_{side}"), offsets);
            } else if !self.sequences.is_empty() {
                let lengths: Vec<usize> = self.sequences.iter().map(|s| s[i]).collect();
                shapes = shapes.numbers(format!("seqlens_{side}"), lengths);
            }
        }
        shapes
    }

    /// What would run on a device.
    ///
    /// # Errors
    /// Those of [`SeerGateParams::plan`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        self.params.plan(caps, &self.shapes().wanted("logits").wanted("scores"))
    }

    fn all_kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        let mut kernels = self.plan(caps)?.kernels;
        if self.training {
            let training = self.params.plan_training(10.0, 0, caps, &self.shapes())?;
            kernels.extend(training.into_iter().flat_map(|plan| plan.kernels));
        }
        Ok(kernels)
    }

    async fn upload(&self, gpu: &Gpu) -> Result<Uploaded> {
        let Values { mut q, mut k, wq, wk } = self.values();
        if !self.packed {
            // Padding holds NaN.
            for (i, values) in [&mut q, &mut k].into_iter().enumerate() {
                let [_, heads, length, width] = self.token_shapes()[i];
                for (row, chunk) in values.chunks_exact_mut(width).enumerate() {
                    let there = self.sequences.get(row / length / heads).map_or(length, |s| s[i]);
                    if row % length >= there {
                        chunk.fill(f32::NAN);
                    }
                }
            }
        }
        let [of_q, of_k] = self.token_layouts();
        let [of_wq, of_wk] = self.weight_shapes().map(|shape| Layout::heads_first(self.dtypes[1], shape));
        Ok(Uploaded {
            q: poisoned(gpu, of_q, &q).await?,
            k: poisoned(gpu, of_k, &k).await?,
            wq: if self.wq { Some(poisoned(gpu, of_wq, &wq).await?) } else { None },
            wk: poisoned(gpu, of_wk, &wk).await?,
            lengths: [0, 1].map(|i| self.sequences.iter().map(|s| s[i]).collect()),
            offsets: self.cu_seqlens(),
        })
    }

    fn inputs<'a>(&self, uploaded: &'a Uploaded) -> SeerGateInputs<'a> {
        let Uploaded { q, k, wq, wk, lengths, offsets } = uploaded;
        let inputs = SeerGateInputs { wq: wq.as_ref(), ..SeerGateInputs::new(q, k, wk) };
        match (self.sequences.is_empty(), self.packed) {
            (true, _) => inputs,
            (false, false) => SeerGateInputs {
                seqlens_q: Some(Seqlens::Host(&lengths[0])),
                seqlens_k: Some(Seqlens::Host(&lengths[1])),
                ..inputs
            },
            (false, true) => SeerGateInputs {
                cu_seqlens_q: Some(Seqlens::Host(&offsets[0])),
                cu_seqlens_k: Some(Seqlens::Host(&offsets[1])),
                ..inputs
            },
        }
    }

    async fn choose(&self, gpu: &Gpu) -> Result<Outcome> {
        let uploaded = self.upload(gpu).await?;
        let gate = SeerGate::new(gpu, self.params.clone())?;
        let (mask, logits, scores) = gate.forward_with_scores(&self.inputs(&uploaded)).await?;
        let (logits, scores) = (logits.read().await?, scores.read().await?);
        let chosen = mask.read().await?;
        let outcome = self.with_problem(|problem| {
            let SeerGateReference { logits: known, magnitude, shape } = reference::seer_gate(&self.params, problem);
            let tolerance = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude };
            let of_scores = reference::seer_gate_scores(&known, shape[3]);
            // What the selector makes of the logits that it was given.
            let given: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
            let choice = reference::seer_gate_choice(&self.params, problem, &given);
            let right = chosen.len() == choice.len()
                && chosen.iter().zip(&choice).all(|(found, (known, open))| found == known || *open);
            let of_mask = if right { 0.0 } else { f64::INFINITY };
            let outcome = tolerance.compare(&logits, &known).and(tolerance.compare(&scores, &of_scores));
            outcome.and(Outcome { error: of_mask, over_tolerance: of_mask })
        });
        // The mask alone, without scores, is the same.
        let alone = gate.forward(&self.inputs(&uploaded)).await?.read().await?;
        assert_eq!(alone, chosen, "a mask does not depend on what else is asked for");
        Ok(outcome)
    }

    /// What a target is made of: few blocks with much.
    fn wanted(&self, count: usize) -> Vec<f32> {
        normal(self.seed + 4, count, 1.0, DType::F32).iter().map(|x| (x - 0.5).max(0.0)).collect()
    }

    async fn train(&self, gpu: &Gpu) -> Result<Outcome> {
        let uploaded = self.upload(gpu).await?;
        let gate = SeerGate::new(gpu, self.params.clone())?;
        let saved = gate.forward_for_training(&self.inputs(&uploaded)).await?;
        let shape = saved.logits().shape();
        let wanted = self.wanted(shape.iter().product());
        let target = Tensor::upload(gpu, shape, DType::F32, &wanted).await?;
        let target = gate.normalize(&self.inputs(&uploaded), &target).await?;
        let from_row = shape[2] / 4;
        // Gradients of about 1.
        let weight = shape.iter().product::<usize>() as f32;
        // What calls before leave behind does not show.
        let nan = Tensor::upload(gpu, shape, DType::F32, &vec![f32::NAN; wanted.len()]).await?;
        gate.loss(&saved, &nan, weight, from_row).await?;
        gate.backward(&saved, &nan).await?;
        let (loss, dlogits) = gate.loss(&saved, &target, weight, from_row).await?;
        let gradients = gate.backward(&saved, &dlogits).await?;
        let dwq = match &gradients.dwq {
            Some(dwq) => dwq.read().await?,
            None => vec![],
        };
        let found = [loss.read().await?, target.read().await?, dlogits.read().await?, dwq, gradients.dwk.read().await?];
        Ok(self.with_problem(|problem| {
            let SeerGateReference { logits, magnitude, .. } = reference::seer_gate(&self.params, problem);
            let wanted: Vec<f64> = wanted.iter().map(|&x| f64::from(x)).collect();
            let target = reference::seer_gate_target(&self.params, problem, &wanted);
            let of_target: Vec<f32> = target.iter().map(|&x| x as f32).collect();
            let (loss, dlogits) = reference::seer_gate_loss(shape, &logits, &of_target, weight.into(), from_row);
            let (dwq, dwk) = reference::seer_gate_gradients(&self.params, problem, &dlogits);
            let tolerance = Tolerance { dtype: DType::F32, unit: 5e-5, magnitude };
            let all = [vec![loss], target, dlogits, dwq, dwk];
            let none = Outcome { error: 0.0, over_tolerance: 0.0 };
            found.iter().zip(&all).fold(none, |all, (found, known)| all.and(tolerance.compare(found, known)))
        }))
    }
}

struct Uploaded {
    q: Tensor,
    k: Tensor,
    wq: Option<Tensor>,
    wk: Tensor,
    lengths: [Vec<usize>; 2],
    offsets: [Vec<usize>; 2],
}

impl Case for SeerGateCase {
    fn kernel(&self) -> &'static str {
        "gate"
    }

    fn name(&self) -> String {
        let Self {
            batch, heads, lengths: (nq, nk), dims, params, sequences, packed, dtypes: [tokens, weights], ..
        } = self;
        let SeerGateParams { block, pool_q, pool_k, rope_theta, causal, selector, sink, diagonal, last_rows_dense } =
            params;
        let what = if self.training { "training" } else { "choice" };
        let lengths = if sequences.is_empty() { format!("N {nq}/{nk}") } else { format!("N {sequences:?}") };
        let switches = [(sink, "sink"), (diagonal, "diagonal"), (last_rows_dense, "last rows"), (packed, "packed")];
        let on: Vec<&str> = switches.into_iter().filter(|(on, _)| **on).map(|(_, name)| name).collect();
        format!(
            "{what}: B {batch} H {}/{} {lengths} D {}/{} blocks {block:?} pools {pool_q:?}{}/{pool_k:?} theta {rope_theta:?} causal \
             {causal:?} {selector:?} {} {tokens}/{weights}",
            heads.0,
            heads.1,
            dims.0,
            dims.1,
            if self.wq { " mapped" } else { "" },
            on.join(", ")
        )
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        self.all_kernels(caps)
    }

    fn flops(&self) -> f64 {
        let [[.., fq, gate_dim], [.., fk, _]] = self.weight_shapes();
        let [batch, heads, rows, cols] = self.with_problem(|problem| problem.shape(&self.params));
        let of_maps = if self.wq { rows * fq } else { 0 } + cols * fk;
        (2 * batch * heads * gate_dim * (of_maps + rows * cols)) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move { if self.training { self.train(gpu).await } else { self.choose(gpu).await } })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            if self.training {
                return Ok(None);
            }
            let (uploaded, gate) = (self.upload(gpu).await?, SeerGate::new(gpu, self.params.clone())?);
            let mut call = Owned::of(self.inputs(&uploaded));
            let program = gate.plan(&Shapes::of(&call).wanted("logits").wanted("scores"))?;
            for name in ["chosen", "logits", "scores"] {
                let layout = program.tensor(name).expect("a result").layout.clone();
                call.push(name, Tensor::empty(gpu, layout).await?);
            }
            let prepared = gate.prepare(&call).await?;
            let logits = self.with_problem(|problem| reference::seer_gate(&self.params, problem).logits);
            Ok(Some(Problem {
                params: KernelParams::Gate(self.params.clone()),
                backward: false,
                ready: Ready::new(call, prepared),
                expected: vec![("logits", logits)],
            }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move {
            let uploaded = self.upload(gpu).await?;
            let inputs = self.inputs(&uploaded);
            let gate = SeerGate::new(gpu, self.params.clone())?;
            let chosen = gate.plan(&Shapes::of(inputs))?.tensor("chosen").expect("a result").layout.clone();
            let chosen = Tensor::empty(gpu, chosen).await?;
            let call = (&inputs, [("chosen", &chosen)]);
            let prepared = gate.prepare(call).await?;
            gpu.time(|pass| prepared.encode_in(pass, call)).await
        })
    }
}
