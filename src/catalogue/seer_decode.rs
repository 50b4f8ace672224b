//! Cases of SeerAttention's gate for decoding: its cache, its choice, its training.

use super::{Case, Outcome, Tolerance, normal, poisoned, upload_numbers};
use crate::program::Kernel;
use crate::reference::{self, SeerDecodeProblem, SeerGateReference};
use crate::{
    Caps, DType, Gpu, GpuTime, Layout, Result, SeerDecodeGate, SeerDecodeGateParams, SeerDecodeInputs,
    SeerDecodeWeights, Seqlens, Shapes, Tensor,
};
use futures::future::LocalBoxFuture;

/// A gate for decoding over random tokens.
#[derive(Clone, Debug)]
pub struct SeerDecodeCase {
    /// Query heads, key heads.
    pub heads: (usize, usize),
    /// Queries, rows of the keys.
    pub lengths: (usize, usize),
    /// Width of tokens, of the gate.
    pub dims: (usize, usize),
    /// Keys of each batch entry.
    pub seqlens_k: Vec<usize>,
    /// Whether those are on the GPU.
    pub on_gpu: bool,
    /// Whether queries, keys go through a norm.
    pub norms: [bool; 2],
    /// The params.
    pub params: SeerDecodeGateParams,
    /// Types of tokens, of weights.
    pub dtypes: [DType; 2],
    /// How many blocks a ring of keys holds; 0: keys come whole.
    pub ring: usize,
    /// Target, loss and gradients instead of cache and choice.
    pub training: bool,
    /// Seed of the random values.
    pub seed: u64,
}

struct Values {
    q: Vec<f32>,
    k: Vec<f32>,
    wq: Vec<f32>,
    wk: Vec<f32>,
    norms: [Vec<f32>; 2],
}

struct Weights {
    wq: Tensor,
    wk: Tensor,
    norms: [Option<Tensor>; 2],
}

impl Weights {
    fn borrowed(&self) -> SeerDecodeWeights<'_> {
        let [norm_q, norm_k] = self.norms.each_ref().map(Option::as_ref);
        SeerDecodeWeights { wq: &self.wq, wk: &self.wk, norm_q, norm_k }
    }
}

impl SeerDecodeCase {
    /// Every kernel of the case's params.
    fn all_kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        let (params, dtype) = (&self.params, self.dtypes[0]);
        let (heads_kv, group, head_dim, gate_dim, keys) = (2, 3, 20, 12, 5 * params.block);
        let layout = |shape| Layout::heads_first(dtype, shape);
        let kinds = params.pool_k.len();
        let exact = |shape| Layout::heads_first(DType::F32, shape);
        let norm = |there: bool| there.then(|| layout([1, 1, 1, gate_dim]));
        let weights = Shapes::new([
            ("wq", exact([1, heads_kv, group * head_dim, gate_dim])),
            ("wk", exact([1, heads_kv, kinds * head_dim, gate_dim])),
        ]);
        let weights = weights.tensor_if("norm_q", norm(self.norms[0])).tensor_if("norm_k", norm(self.norms[1]));
        let k = layout([1, heads_kv, keys, head_dim]);
        let compressed = exact([1, heads_kv, 5, gate_dim]);
        let compression = weights.clone().tensor("k", k.clone()).tensor("compressed", compressed.clone());
        let compression = compression.numbers("before", [0]).numbers("after", [keys]);
        let selection = weights.clone().tensor("q", layout([1, 6, 2, head_dim])).tensor("compressed", compressed);
        let selection = match self.on_gpu {
            true => selection.tensor("seqlens_k", Layout::heads_first(DType::U32, [1; 4])),
            false => selection.numbers("seqlens_k", [keys]),
        };
        let selection = selection.numbers("keys", [keys]);
        let training = weights.tensor("q", layout([1, 6, 2, head_dim])).tensor("k", k);
        let step = selection.clone().wanted("logits").wanted("scores");
        let all =
            [params.plan_compression(caps, &compression)?, params.plan(caps, &step)?, params.plan(caps, &selection)?];
        let all = all.into_iter().chain(params.plan_training(10.0, 0, caps, &training)?);
        Ok(all.flat_map(|program| program.kernels).collect())
    }

    fn shapes(&self) -> [[usize; 4]; 5] {
        let Self { heads, lengths, dims, seqlens_k, params, .. } = self;
        let batch = seqlens_k.len();
        [
            [batch, heads.0, lengths.0, dims.0],
            [batch, heads.1, lengths.1, dims.0],
            [1, heads.1, heads.0 / heads.1 * dims.0, dims.1],
            [1, heads.1, params.pool_k.len() * dims.0, dims.1],
            [1, 1, 1, dims.1],
        ]
    }

    fn values(&self) -> Values {
        let [q, k, wq, wk, norm] = self.shapes().map(|shape| shape.iter().product());
        let [tokens, weights] = self.dtypes;
        let spread = 1.0 / (self.dims.0 as f32).sqrt();
        let norms = [4, 5].map(|i| normal(self.seed + i, norm, 0.3, weights).iter().map(|x| 1.0 + x).collect());
        let norms = norms.map(|norm: Vec<f32>| norm.into_iter().map(|x| weights.round(x)).collect());
        Values {
            q: normal(self.seed, q, 1.0, tokens),
            k: normal(self.seed + 1, k, 1.0, tokens),
            wq: normal(self.seed + 2, wq, spread, weights),
            wk: normal(self.seed + 3, wk, spread, weights),
            norms,
        }
    }

    fn with_problem<R>(&self, run: impl FnOnce(&SeerDecodeProblem) -> R) -> R {
        let (values, [q_shape, k_shape, ..]) = (self.values(), self.shapes());
        let norm = |i: usize| self.norms[i].then_some(&values.norms[i][..]);
        run(&SeerDecodeProblem {
            q: &values.q,
            q_shape,
            k: &values.k,
            k_shape,
            wq: &values.wq,
            wk: &values.wk,
            norms: [norm(0), norm(1)],
            gate_dim: self.dims.1,
            seqlens_k: &self.seqlens_k,
            past: self.training,
        })
    }

    async fn weights(&self, gpu: &Gpu) -> Result<Weights> {
        let (Values { wq, wk, norms, .. }, [_, _, of_wq, of_wk, of_norm]) = (self.values(), self.shapes());
        let up = async |shape, values: &[f32]| poisoned(gpu, Layout::heads_first(self.dtypes[1], shape), values).await;
        let mut found = [None, None];
        for (i, norm) in norms.iter().enumerate().filter(|(i, _)| self.norms[*i]) {
            found[i] = Some(up(of_norm, norm).await?);
        }
        Ok(Weights { wq: up(of_wq, &wq).await?, wk: up(of_wk, &wk).await?, norms: found })
    }

    /// Keys of batch entry b up to `lengths[b]`, in a ring or whole; NaN elsewhere.
    async fn keys(&self, gpu: &Gpu, lengths: &[usize]) -> Result<Tensor> {
        let [batch, heads, keys, width] = self.shapes()[1];
        let rows = if self.ring > 0 { self.ring * self.params.block } else { keys.next_multiple_of(self.params.block) };
        let k = self.values().k;
        let mut all = vec![f32::NAN; batch * heads * rows * width];
        for (n, row) in k.chunks(width).enumerate() {
            let (of_head, token) = (n / keys, n % keys);
            if token < lengths[of_head / heads] {
                all[(of_head * rows + token % rows) * width..][..width].copy_from_slice(row);
            }
        }
        poisoned(gpu, Layout::heads_first(self.dtypes[0], [batch, heads, rows, width]), &all).await
    }

    fn blocks(&self) -> usize {
        self.lengths.1 / self.params.block + 1
    }

    /// The cache after the keys came bit by bit.
    async fn compress(&self, gpu: &Gpu, gate: &SeerDecodeGate, weights: &SeerDecodeWeights<'_>) -> Result<Tensor> {
        let shape = [self.seqlens_k.len(), self.heads.1, self.blocks(), self.dims.1];
        let count = shape.iter().product();
        let layout = Layout::heads_first(DType::F32, shape);
        let compressed = poisoned(gpu, layout, &vec![f32::NAN; count]).await?;
        let mut before = vec![0; self.seqlens_k.len()];
        while before != self.seqlens_k {
            // As much as fits in the ring beside the block that is being filled, and no more than that.
            let room = |before: usize, end: usize| match self.ring {
                0 => end.min(before + self.lengths.1 / 2 + 1),
                ring => end.min((before / self.params.block + ring) * self.params.block),
            };
            let after: Vec<usize> = before.iter().zip(&self.seqlens_k).map(|(&b, &end)| room(b, end)).collect();
            gate.compress(weights, &self.keys(gpu, &after).await?, &compressed, &before, &after).await?;
            before = after;
        }
        Ok(compressed)
    }

    fn seqlens<'a>(&'a self, on_gpu: &'a Tensor) -> Seqlens<'a> {
        if self.on_gpu { Seqlens::Gpu(on_gpu) } else { Seqlens::Host(&self.seqlens_k) }
    }

    async fn q(&self, gpu: &Gpu) -> Result<Tensor> {
        poisoned(gpu, Layout::heads_first(self.dtypes[0], self.shapes()[0]), &self.values().q).await
    }

    async fn choose(&self, gpu: &Gpu) -> Result<Outcome> {
        let gate = SeerDecodeGate::new(gpu, self.params.clone())?;
        let (weights, q) = (self.weights(gpu).await?, self.q(gpu).await?);
        let weights = weights.borrowed();
        let compressed = self.compress(gpu, &gate, &weights).await?;
        let (on_gpu, keys) = (upload_numbers(gpu, &self.seqlens_k).await?, self.lengths.1);
        let inputs = SeerDecodeInputs { q: &q, compressed: &compressed, seqlens_k: self.seqlens(&on_gpu), keys };
        let (mask, logits, scores) = gate.forward_with_scores(&weights, &inputs).await?;
        let (logits, scores) = (logits.read().await?, scores.read().await?);
        let (chosen, cache) = (mask.read().await?, compressed.read().await?);
        let alone = gate.forward(&weights, &inputs).await?.read().await?;
        assert_eq!(alone, chosen, "a mask does not depend on what else is asked for");
        Ok(self.with_problem(|problem| {
            let SeerGateReference { logits: known, magnitude, shape } =
                reference::seer_decode_gate(&self.params, problem);
            let tolerance = Tolerance { dtype: DType::F32, unit: 2e-5, magnitude };
            let of_scores = reference::seer_gate_scores(&known, shape[3]);
            // What was not written yet is as it was.
            let full = |n: usize| {
                let (b, j) = (n / self.dims.1 / self.blocks() / self.heads.1, n / self.dims.1 % self.blocks());
                (j + 1) * self.params.block <= self.seqlens_k[b]
            };
            let of_cache = problem.compressed(&self.params, self.blocks());
            let of_cache: Vec<f64> =
                of_cache.into_iter().enumerate().map(|(n, x)| if full(n) { x } else { f64::NAN }).collect();
            let given: Vec<f64> = logits.iter().map(|&z| f64::from(z)).collect();
            let choice = reference::seer_decode_choice(&self.params, problem, &given);
            let right = chosen.len() == choice.len()
                && chosen.iter().zip(&choice).all(|(found, (known, open))| found == known || *open);
            let of_mask = if right { 0.0 } else { f64::INFINITY };
            let outcome = tolerance.compare(&logits, &known).and(tolerance.compare(&scores, &of_scores));
            let outcome = outcome.and(tolerance.compare(&cache, &of_cache));
            outcome.and(Outcome { error: of_mask, over_tolerance: of_mask })
        }))
    }

    async fn train(&self, gpu: &Gpu) -> Result<Outcome> {
        let gate = SeerDecodeGate::new(gpu, self.params.clone())?;
        let (weights, q) = (self.weights(gpu).await?, self.q(gpu).await?);
        let [_, k_shape, ..] = self.shapes();
        let k = poisoned(gpu, Layout::heads_first(self.dtypes[0], k_shape), &self.values().k).await?;
        let saved = gate.forward_for_training(&weights.borrowed(), &q, &k).await?;
        let shape = saved.logits().shape();
        let wanted = normal(self.seed + 6, shape.iter().product(), 1.0, DType::F32);
        let wanted: Vec<f32> = wanted.iter().map(|x| (x - 0.5).max(0.0)).collect();
        let target = Tensor::upload(gpu, shape, DType::F32, &wanted).await?;
        let weight = shape.iter().product::<usize>() as f32;
        let from_row = usize::from(shape[2] > 1);
        // What calls before leave behind does not show.
        let nan = Tensor::upload(gpu, shape, DType::F32, &vec![f32::NAN; wanted.len()]).await?;
        gate.loss(&saved, &nan, weight, from_row).await?;
        gate.backward(&saved, &nan).await?;
        let (loss, dlogits) = gate.loss(&saved, &target, weight, from_row).await?;
        let gradients = gate.backward(&saved, &dlogits).await?;
        let read = async |tensor: Option<Tensor>| match tensor {
            Some(tensor) => tensor.read().await,
            None => Ok(vec![]),
        };
        let found = [
            loss.read().await?,
            dlogits.read().await?,
            read(gradients.dwq).await?,
            gradients.dwk.read().await?,
            read(gradients.dnorm_q).await?,
            read(gradients.dnorm_k).await?,
        ];
        Ok(self.with_problem(|problem| {
            let SeerGateReference { logits, magnitude, .. } = reference::seer_decode_gate(&self.params, problem);
            let (loss, dlogits) = reference::seer_gate_loss(shape, &logits, &wanted, weight.into(), from_row);
            let [[dwq, dwk], [of_q, of_k]] = reference::seer_decode_gradients(&self.params, problem, &dlogits);
            let tolerance = Tolerance { dtype: DType::F32, unit: 5e-5, magnitude };
            let none = Outcome { error: 0.0, over_tolerance: 0.0 };
            let all = [vec![loss], dlogits, dwq, dwk, of_q, of_k];
            found.iter().zip(&all).fold(none, |all, (found, known)| all.and(tolerance.compare(found, known)))
        }))
    }
}

impl Case for SeerDecodeCase {
    fn kernel(&self) -> &'static str {
        "gate"
    }

    fn name(&self) -> String {
        let Self { heads, lengths, dims, seqlens_k, on_gpu, norms, params, dtypes: [tokens, weights], .. } = self;
        let (ring, training) = (self.ring, self.training);
        let SeerDecodeGateParams { block, pool_k, rope_theta, selector, sink, .. } = params;
        let what = if training { "decode training" } else { "decode" };
        let on_gpu = if *on_gpu { " by the GPU" } else { "" };
        let sink = if *sink { " sink" } else { "" };
        format!(
            "{what}: H {}/{} N {}/{} {seqlens_k:?}{on_gpu} D {}/{} block {block} pools {pool_k:?} norms {norms:?} theta {rope_theta:?} \
             {selector:?}{sink} ring {ring} {tokens}/{weights}",
            heads.0, heads.1, lengths.0, lengths.1, dims.0, dims.1
        )
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        self.all_kernels(caps)
    }

    fn flops(&self) -> f64 {
        let [[batch, _, queries, _], [_, heads, keys, _], [_, _, of_q, width], [_, _, of_k, _], _] = self.shapes();
        let blocks = keys.div_ceil(self.params.block);
        (2 * batch * heads * width * (queries * of_q + blocks * of_k + queries * blocks)) as f64
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move { if self.training { self.train(gpu).await } else { self.choose(gpu).await } })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move {
            let gate = SeerDecodeGate::new(gpu, self.params.clone())?;
            let (weights, q) = (self.weights(gpu).await?, self.q(gpu).await?);
            let weights = weights.borrowed();
            let compressed = self.compress(gpu, &gate, &weights).await?;
            let (on_gpu, keys) = (upload_numbers(gpu, &self.seqlens_k).await?, self.lengths.1);
            let inputs = SeerDecodeInputs { q: &q, compressed: &compressed, seqlens_k: self.seqlens(&on_gpu), keys };
            let chosen = Tensor::empty(gpu, Layout::heads_first(DType::U32, gate.grid(&inputs).shape())).await?;
            let call = (&weights, &inputs, [("chosen", &chosen)]);
            let step = gate.prepare(call).await?;
            gpu.time(|pass| step.encode_in(pass, call)).await
        })
    }
}
