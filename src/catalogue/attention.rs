//! Cases of softmax attention: flash and neighborhood.

use super::ready::Owned;
use super::{
    AttentionCase, BlockCase, Case, KernelParams, Known, KnownHook, Outcome, Problem, Ready, Scores, TokenListCase,
    Tolerance, normal,
};
use crate::program::Kernel;
use crate::reference::{At, FlashProblem, FlashReference, Neighborhoods, flash};
use crate::{AttentionParams, Caps, DType, Gpu, GpuTime, NeighborhoodAxis, Program, Result};
use futures::future::LocalBoxFuture;
use std::sync::OnceLock;

impl AttentionCase {
    /// The same case with a type for all tensors.
    pub fn of_type(self, dtype: DType) -> Self {
        Self { dtypes: [dtype; 3], ..self }
    }

    /// A neighborhood problem: every token has a query and a key.
    pub fn neighborhood(axes: &[NeighborhoodAxis]) -> Self {
        let tokens = axes.iter().map(|axis| axis.length).product();
        Self { axes: axes.into(), lengths: (tokens, tokens), ..Self::default() }
    }

    /// [batch, heads_kv, additional, width] of additional keys and values.
    pub(super) fn additional_shapes(&self) -> [[usize; 4]; 2] {
        [self.dims.0, self.dims.1].map(|width| [self.batch, self.heads.1, self.additional, width])
    }

    fn additional_values(&self) -> [Vec<f32>; 2] {
        let [k, v] = self.additional_shapes().map(|shape| shape.iter().product());
        let amplitude = if let Scores::Normal(amplitude) = self.scores { amplitude } else { 1.0 };
        [normal(self.seed + 30, k, amplitude, self.dtypes[1]), normal(self.seed + 31, v, 1.0, self.dtypes[1])]
    }

    pub(super) fn shapes(&self) -> [[usize; 4]; 3] {
        let (hq, hkv) = self.heads;
        let (nq, nk) = self.lengths;
        [[self.batch, hq, nq, self.dims.0], [self.batch, hkv, nk, self.dims.0], [self.batch, hkv, nk, self.dims.1]]
    }

    pub(super) fn known(&self) -> &Known {
        self.known.get_or_init(|| Known {
            inputs: self.inputs(),
            additional: self.additional_values(),
            pairs: self.pairs(),
            expected: OnceLock::new(),
        })
    }

    /// What must come out: computed at the first call.
    pub(super) fn reference(&self) -> &FlashReference {
        self.known().expected.get_or_init(|| self.compute())
    }

    fn compute(&self) -> FlashReference {
        self.with_problem(|problem, _| flash(&self.params, problem))
    }

    /// Calls `run` with the problem for the reference, and with the gradient through its hooks.
    pub(super) fn with_problem<R>(&self, run: impl Fn(&FlashProblem, &dyn Fn(f64, At, f64) -> f64) -> R) -> R {
        let Known { inputs, additional, pairs, .. } = self.known();
        let spaces = Neighborhoods::new(&self.axes);
        let whole = |i: usize| pairs[i].as_ref().map(|[_, whole]| whole.as_slice());
        let (masks, scores): (Vec<_>, Vec<_>) = self
            .hooks
            .iter()
            .map(|hook| (hook, hook.buffer(self).unwrap_or_default().1))
            .partition(|(hook, _)| hook.is_mask());
        let hidden = |s: f64| s == f64::NEG_INFINITY;
        let step = |s: f64, (hook, values): &(&KnownHook, Vec<f32>), at: At| match hidden(s) {
            true => s,
            false => hook.score(self, values, s, at),
        };
        let score_mod = |score: f64, at: At| scores.iter().fold(score, |s, one| step(s, one, at));
        let score_mod_grad = |score: f64, at: At, d_out: f64| {
            let mut before = vec![score];
            before.extend(scores.iter().scan(score, |s, one| {
                *s = step(*s, one, at);
                Some(*s)
            }));
            let back = scores.iter().zip(&before).rev();
            back.fold(d_out, |d, ((hook, _), &s)| hook.score_gradient(s, at, d))
        };
        let chosen = self.blocks.as_ref().map(|blocks| blocks.chosen(self)).unwrap_or_default();
        let blocks = self.blocks.as_ref().and_then(|blocks| blocks.known(self, &chosen));
        let listed = self.token_lists.as_ref().map(|lists| lists.listed(self)).unwrap_or_default();
        let lists = self.token_lists.as_ref().map(|lists| lists.known(self, &listed));
        let mask_mod = |at: At| {
            spaces.sees(at.query, at.key)
                && blocks.is_none_or(|blocks| blocks.sees(at))
                && lists.is_none_or(|lists| lists.sees(at))
                && masks.iter().all(|(hook, values)| hook.sees(self, values, at))
        };
        let problem = FlashProblem {
            bias: whole(0),
            mask: whole(1),
            score_mod: Some(&score_mod),
            mask_mod: Some(&mask_mod),
            additional_k: &additional[0],
            additional_v: &additional[1],
            ..self.problem(inputs)
        };
        run(&problem, &score_mod_grad)
    }

    fn problem<'a>(&'a self, [q, k, v]: &'a [Vec<f32>; 3]) -> FlashProblem<'a> {
        FlashProblem {
            seqlens_q: self.seqlens_q.as_deref(),
            seqlens_k: self.seqlens_k.as_deref(),
            cu_seqlens: self.cu_seqlens.as_ref().map(|sides| sides.each_ref().map(Vec::as_slice)),
            ..FlashProblem::new([q, k, v], self.shapes())
        }
    }

    /// What would run on a device, except for hooks that read buffers.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        self.in_family(self.params_without_buffers()).plan(caps, &self.plan_shapes())
    }

    /// The output and its log-sum-exp, by the reference.
    pub fn expected(&self) -> (&[f64], &[f64]) {
        let expected = self.reference();
        (&expected.out, &expected.lse)
    }

    /// How an output compares with the reference.
    pub fn compare_out(&self, out: &[f32]) -> Outcome {
        let expected = self.reference();
        Tolerance { dtype: self.dtypes[2], unit: 2e-5, magnitude: expected.magnitude }.compare(out, &expected.out)
    }

    /// How an output and its log-sum-exp compare with the reference.
    pub fn compare(&self, out: &[f32], lse: &[f32]) -> Outcome {
        let expected = self.reference();
        let of_lse = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude: expected.magnitude };
        self.compare_out(out).and(of_lse.compare(lse, &expected.lse))
    }
}

impl Case for AttentionCase {
    fn kernel(&self) -> &'static str {
        match (&self.blocks, self.axes.is_empty()) {
            _ if self.token_lists.is_some() => "token-lists",
            (Some(_), _) => "block-sparse",
            (None, true) => "flash",
            (None, false) => "neighborhood",
        }
    }

    fn name(&self) -> String {
        let (hq, hkv) = self.heads;
        let (nq, nk) = self.lengths;
        let lengths = if self.axes.is_empty() { format!("N {nq}/{nk}") } else { space(&self.axes) };
        let additional = if self.additional > 0 { format!(" +{}", self.additional) } else { String::new() };
        let (d, dv) = self.dims;
        let [q, k, out] = self.dtypes;
        let dim = if d == dv { format!("D {d}") } else { format!("D {d}/{dv}") };
        let dtype = if q == k && k == out { q.to_string() } else { format!("{q}/{k}/{out}") };
        let amplitude = match self.scores {
            Scores::Normal(a) if a != 1.0 => format!(" ×{a}"),
            _ => String::new(),
        };
        let packed = match &self.cu_seqlens {
            Some([q, _]) => format!(" packed {}", q.len() - 1),
            None => String::new(),
        };
        let by_gpu = if self.on_gpu && self.seqlens().iter().any(Option::is_some) { " by the GPU" } else { "" };
        let hooks: String = self.hooks.iter().map(|hook| format!(" {hook:?}")).collect();
        let lists = self.token_lists.as_ref().map(TokenListCase::name);
        let blocks = self.blocks.as_ref().map(BlockCase::name).or(lists).unwrap_or_default();
        format!(
            "{}: B {} H {hq}/{hkv} {lengths}{additional} {dim} {dtype}{amplitude}{blocks}{packed}{by_gpu}{hooks}",
            self.label, self.batch
        )
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        2.0 * self.reference().visible as f64 * (self.dims.0 + self.dims.1) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let tensors = self.upload(gpu).await?;
            let (inputs, to) = self.arguments(&tensors);
            self.prepare(gpu, &tensors).await?.submit((&inputs, &to)).await?;
            Ok(self.compare(&to.out.read().await?, &to.lse.read().await?))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move {
            let tensors = self.upload(gpu).await?;
            let (inputs, to) = self.arguments(&tensors);
            let prepared = self.prepare(gpu, &tensors).await?;
            gpu.time(|pass| prepared.encode_in(pass, (&inputs, &to))).await
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let tensors = self.upload(gpu).await?;
            let mut call = Owned::of(self.arguments(&tensors));
            call.tensors.extend(self.buffers_on(gpu).await?);
            let params = self.in_family(self.params_on(gpu).await?);
            let prepared = self.prepare(gpu, &tensors).await?;
            let (out, lse) = self.expected();
            Ok(Some(Problem {
                params: KernelParams::Attention(params),
                backward: false,
                ready: Ready::new(call, prepared),
                expected: vec![("out", out.to_vec()), ("lse", lse.to_vec())],
            }))
        })
    }
}

/// The axes in short: lengths, windows, and what is unusual.
fn space(axes: &[NeighborhoodAxis]) -> String {
    let each = |name: &str, of: &dyn Fn(&NeighborhoodAxis) -> usize, usual: usize| {
        let values: Vec<String> = axes.iter().map(|axis| of(axis).to_string()).collect();
        if axes.iter().all(|axis| of(axis) == usual) { String::new() } else { format!(" {name} {}", values.join("×")) }
    };
    let causal = each("causal", &|axis| usize::from(axis.causal), 0);
    let (stride, dilation) = (each("s", &|axis| axis.stride, 1), each("d", &|axis| axis.dilation, 1));
    let (lengths, windows) = (each("L", &|axis| axis.length, 0), each("k", &|axis| axis.window, 0));
    format!("{}{windows}{stride}{dilation}{causal}", lengths.trim_start())
}
