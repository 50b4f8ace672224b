//! The gate for decoding (SeerAttention-R, arXiv 2506.08889): every query chooses blocks for the heads that share a key head.

use super::frame::{Frame, SideFrame};
use super::kernels::SideTensors;
use super::plan::declare_outputs;
use super::training::Training;
use super::{Pool, Selector, check_block, check_pools, check_theta};
use crate::error::require;
use crate::layout::MAX_HEAD_DIM;
use crate::packed::{self, Lengths, Schedule, Side};
use crate::program::shader::Binding;
use crate::program::{Builder, Operand, Program, Table, small_table};
use crate::softmax::AttentionShapes;
use crate::{BlockGrid, Caps, Causal, DType, Layout, Result, Shapes};

/// What a gate for decoding computes.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default, deny_unknown_fields))]
pub struct SeerDecodeGateParams {
    /// Keys of a block, a power of two. Default: 64.
    pub block: usize,
    /// How keys are pooled. Default: maximum, minimum, mean.
    pub pool_k: Vec<Pool>,
    /// The base of the model's rotary angles: a query rotates by its own position, a block of keys by that of its first token. Unset: no
    /// embedding. Default: 10000.
    pub rope_theta: Option<f32>,
    /// Added to the mean square in the RMS norms. Default: 10⁻⁶.
    pub norm_epsilon: f32,
    /// How blocks are chosen. The block that holds the query's own token is always chosen too. A density is ⌊r · M⌋ of M blocks here, at
    /// least one. Default: a budget of 4096 keys.
    pub selector: Selector,
    /// Whether the first block is always chosen too. Default: no.
    pub sink: bool,
}

impl Default for SeerDecodeGateParams {
    fn default() -> Self {
        Self {
            block: 64,
            pool_k: vec![Pool::Max, Pool::Min, Pool::Avg],
            rope_theta: Some(10_000.0),
            norm_epsilon: 1e-6,
            selector: Selector::Budget(4096),
            sink: false,
        }
    }
}

/// Weights: linear maps, and RMS norms of what they give.
const WEIGHTS: [&str; 4] = ["wq", "wk", "norm_q", "norm_k"];

/// What the sides of a frame are made of.
struct Sizes {
    heads_kv: usize,
    group: usize,
    head_dim: usize,
    gate_dim: usize,
}

impl SeerDecodeGateParams {
    /// Checks the params.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a block size that is not a power of two, a list of poolings that is empty or names a kind twice, a
    /// selector whose bound is out of range, or a budget smaller than a block.
    pub fn check(&self) -> Result<()> {
        check_block("block", self.block)?;
        check_pools("pool_k", &self.pool_k)?;
        check_theta(self.rope_theta)?;
        let epsilon = self.norm_epsilon;
        require(epsilon.is_finite() && epsilon >= 0.0, "norm_epsilon", epsilon, "finite, at least 0")?;
        self.selector.check(self.block)
    }

    /// The program for a step of decoding. Its tensors are named like the fields of [`crate::SeerDecodeWeights`] and
    /// [`crate::SeerDecodeInputs`]: wq, wk and, where present, norm_q and norm_k; q, compressed; `chosen`, u32 of the shape
    /// [`BlockGrid::shape`]; where present or wanted, `logits` and `scores`, f32 [batch, heads_kv, queries, blocks of keys]. Its numbers:
    /// keys, and seqlens_k unless that is a tensor, u32 [1, 1, 1, batch].
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for tensors that do not fit together and lengths beyond `compressed` or `keys`;
    /// [`crate::Error::Limit`] if the work needs more than the device offers.
    pub fn plan(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let tensors = [&WEIGHTS[..], &["q", "compressed", "seqlens_k", "chosen", "logits", "scores"]].concat();
        shapes.check_names(&tensors, &["seqlens_k", "keys"])?;
        let mut builder = Builder::new(caps, shapes)?;
        let (frame, grid) = self.selection_frame(&mut builder, shapes)?;
        let scores = declare_outputs(&mut builder, &frame, &grid, "to match q, keys and blocks")?;
        builder.scratch(frame.side(Side::Queries).vectors, frame.vectors(Side::Queries))?;
        frame.check_loops(builder.caps)?;
        let tasks = [frame.project(Side::Queries), frame.logits_task(), frame.select(scores)];
        tasks.into_iter().try_for_each(|task| task.add(&mut builder, frame.sequences.clone()))?;
        let [rows, cols] = frame.pairs();
        let (block, selector) = (self.block, self.selector);
        builder
            .finish(format!("gate for decoding: {rows} × {cols} blocks of {block} keys a key head; then {selector:?}"))
    }

    fn selection_frame(&self, builder: &mut Builder, shapes: &Shapes) -> Result<(Frame, BlockGrid)> {
        self.check()?;
        let (q, compressed) = (builder.input("q")?, builder.input("compressed")?);
        let ([batch, heads_q, queries, head_dim], heads_kv) = (q.shape(), compressed.shape()[1]);
        let keys = shapes.get_numbers("keys").and_then(|keys| keys.first().copied());
        require(keys.is_some(), "keys", "unset", "set to the number of rows in attention's key tensor")?;
        let (keys, block) = (keys.unwrap_or_default(), self.block);
        let [_, seqlens_k] = packed::lengths(builder, shapes)?;
        let k = q.view(Layout::heads_first(DType::F32, [batch, heads_kv, keys, head_dim]));
        AttentionShapes::of_tokens(&q, &k, [None, seqlens_k.clone()]).check()?;
        let gate_dim = self.check_weights(builder, [heads_q, heads_kv, head_dim])?;
        let blocks = check_compressed(&compressed, [batch, heads_kv, gate_dim])?;
        let bound = || format!("below {}: compressed has {blocks} blocks", (blocks + 1) * block);
        match &seqlens_k {
            Some(Lengths::Host(lengths)) => {
                for (b, &length) in lengths.iter().enumerate() {
                    require(length / block <= blocks, &format!("seqlens_k[{b}]"), length, bound())?;
                }
            }
            Some(Lengths::Gpu(_)) => {}
            None => require(keys / block <= blocks, "keys", keys, bound())?,
        }
        // Keys that have vectors, but for those of the block that is being filled.
        let rows = [queries, keys.min((blocks + 1) * block - 1)];
        let schedule = Schedule::padded(builder, "lengths", [None, seqlens_k.as_ref()], (batch, rows), 1, true)?;
        schedule.kernel.iter().for_each(|kernel| builder.add_sliced(kernel));
        let sizes = Sizes { heads_kv, group: heads_q / heads_kv, head_dim, gate_dim };
        let grid = BlockGrid { batch, heads: heads_kv, queries, keys, block: [1, block] };
        grid.check()?;
        let frame = self.frame(builder, batch, schedule.table, [queries, keys.div_ceil(block)], &sizes);
        Ok((cached(frame), grid))
    }

    /// The program that runs when batch entry b grows from `before[b]` to `after[b]` keys: it writes the vectors of the blocks that become
    /// full into `compressed` [batch, heads_kv, blocks, gate_dim], block j into row j. `k` [batch, heads_kv, rows, head_dim] holds the keys
    /// before their rotary embedding, token t in row t mod rows; the weights are those of [`SeerDecodeGateParams::plan`].
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for tensors that do not fit together, lengths that shrink, keys that are no longer in the ring, and
    /// blocks beyond `compressed`; [`crate::Error::Limit`] if the work needs more than the device offers.
    pub fn plan_compression(&self, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        shapes.check_names(&[&WEIGHTS[..], &["k", "compressed"]].concat(), &["before", "after"])?;
        let mut builder = Builder::new(caps, shapes)?;
        let frame = self.compression_frame(&builder, shapes)?;
        builder.scratch(SideTensors::of(Side::Keys).pooled, frame.pooled(Side::Keys))?;
        let tasks = [frame.pool(Side::Keys), frame.project(Side::Keys)];
        tasks.into_iter().try_for_each(|task| task.add(&mut builder, frame.sequences.clone()))?;
        builder.finish(format!("gate for decoding: vectors of at most {} blocks more", frame.pairs()[1]))
    }

    fn compression_frame(&self, builder: &Builder, shapes: &Shapes) -> Result<Frame> {
        self.check()?;
        let (k, compressed, block) = (builder.input("k")?, builder.input("compressed")?, self.block);
        let [batch, heads_kv, ring, head_dim] = k.shape();
        require(heads_kv > 0, "k.shape[1] (heads_kv)", heads_kv, "at least 1")?;
        let features = builder.input("wq")?.shape()[2];
        let bound = format!("a multiple of head_dim = {head_dim}, but not 0");
        require(features > 0 && features.is_multiple_of(head_dim.max(1)), "wq.shape[2]", features, bound)?;
        let group = features / head_dim.max(1);
        let gate_dim = self.check_weights(builder, [group * heads_kv, heads_kv, head_dim])?;
        AttentionShapes::of_tokens(&k, &k, [None, None]).check()?;
        let bound = format!("a multiple of {block}, the number of keys in a block");
        require(ring > 0 && ring.is_multiple_of(block), "k.shape[2] (rows)", ring, bound)?;
        let blocks = check_compressed(&compressed, [batch, heads_kv, gate_dim])?;
        let lengths = |name: &str| {
            let lengths = shapes.get_numbers(name).unwrap_or_default();
            let bound = format!("{batch}, one per batch entry");
            require(lengths.len() == batch, &format!("{name}.len()"), lengths.len(), bound).map(|()| lengths)
        };
        let (before, after) = (lengths("before")?, lengths("after")?);
        let (mut sequences, mut rows) = (vec![], 0);
        for (b, (&before, &after)) in before.iter().zip(after).enumerate() {
            let what = format!("after[{b}]");
            require(after >= before, &what, after, format!("at least {before}, before[{b}]"))?;
            let (first, end) = (before / block, after / block);
            let bound = format!("below {}: compressed has {blocks} blocks", (blocks + 1) * block);
            require(end <= blocks, &what, after, bound)?;
            // Keys of the first block that becomes full are still there.
            let (from, most) = (first * block, first * block + ring);
            let bound = format!("at most {most}: the ring of {ring} rows holds keys from {from} on");
            require(first == end || after - from <= ring, &what, after, bound)?;
            sequences.push([first as u32, 0, 0, after as u32]);
            rows = rows.max(end - first);
        }
        let sizes = Sizes { heads_kv, group, head_dim, gate_dim };
        let sequences = small_table("sequences", &sequences);
        Ok(Frame { ring, ..cached(self.frame(builder, batch, sequences, [0, rows], &sizes)) })
    }

    /// The four programs of training, for tokens and weights: from these to `logits`, with what the gradients need; from the `wanted`
    /// numbers to a `target`; from both to the `loss` and its gradient `dlogits`; from that to the gradients of the weights.
    ///
    /// # Errors
    /// Those of [`SeerDecodeGateParams::plan`].
    pub fn plan_training(&self, weight: f32, from_row: usize, caps: &Caps, shapes: &Shapes) -> Result<[Program; 4]> {
        self.training(caps, shapes)?.plan(weight, from_row, caps, shapes)
    }

    /// What training is made of, for the tokens of whole sequences, and weights. A query sees the blocks before its own.
    pub(crate) fn training(&self, caps: &Caps, shapes: &Shapes) -> Result<Training> {
        self.check()?;
        shapes.check_names(&[&WEIGHTS[..], &["q", "k"]].concat(), &[])?;
        let builder = &Builder::new(caps, shapes)?;
        let (q, k) = (builder.input("q")?, builder.input("k")?);
        AttentionShapes::of_tokens(&q, &k, [None, None]).check()?;
        let ([batch, heads_q, queries, head_dim], [_, heads_kv, keys, _]) = (q.shape(), k.shape());
        let gate_dim = self.check_weights(builder, [heads_q, heads_kv, head_dim])?;
        let sizes = Sizes { heads_kv, group: heads_q / heads_kv, head_dim, gate_dim };
        let sequences = small_table("sequences", &vec![[0, queries as u32, 0, keys as u32]; batch]);
        let frame = self.frame(builder, batch, sequences, [queries, keys.div_ceil(self.block)], &sizes);
        Ok(Training(Frame { past: true, complete: false, forced: 0, ..frame }))
    }

    fn frame(
        &self,
        builder: &Builder,
        batch: usize,
        sequences: (Binding, Table),
        rows: [usize; 2],
        sizes: &Sizes,
    ) -> Frame {
        let Self { block, pool_k, rope_theta, norm_epsilon, selector, sink } = self.clone();
        let side = |vectors, rows, joined, pools, normed| SideFrame {
            vectors,
            heads: sizes.heads_kv,
            share: 1,
            joined,
            rows,
            pools,
            head_dim: sizes.head_dim,
            weighted: true,
            normed,
        };
        let normed = |name: &str| builder.tensor(name).is_some();
        Frame {
            batch,
            sequences,
            heads: sizes.heads_kv,
            gate_dim: sizes.gate_dim,
            sides: [
                side("vectors_q", rows[0], sizes.group, None, normed("norm_q")),
                side("vectors_k", rows[1], 1, Some(pool_k), normed("norm_k")),
            ],
            block: [1, block],
            causal: Some(Causal::BottomRight),
            triangle: false,
            past: false,
            complete: true,
            ring: 0,
            theta: rope_theta,
            epsilon: norm_epsilon,
            selector,
            // Its own block always.
            forced: u32::from(sink) | 2,
        }
    }

    /// Checks shapes and types of weights, for tokens of these heads and this width. Returns the gate's width.
    fn check_weights(&self, builder: &Builder, [heads_q, heads_kv, head_dim]: [usize; 3]) -> Result<usize> {
        let gate_dim = builder.input("wk")?.shape()[3];
        builder.input("wq")?;
        let most = format!("within 1..={MAX_HEAD_DIM}");
        require((1..=MAX_HEAD_DIM).contains(&gate_dim), "wk.shape[3] (gate_dim)", gate_dim, most)?;
        let even = gate_dim.is_multiple_of(2) || self.rope_theta.is_none();
        require(even, "wk.shape[3] (gate_dim)", gate_dim, "even: a rotary embedding rotates pairs")?;
        let kinds = self.pool_k.len();
        let of_q = [1, heads_kv, heads_q / heads_kv * head_dim, gate_dim];
        let (of_k, norm) = ([1, heads_kv, kinds * head_dim, gate_dim], [1, 1, 1, gate_dim]);
        for (name, shape) in WEIGHTS.into_iter().zip([of_q, of_k, norm, norm]) {
            let Some(Operand { layout, .. }) = builder.tensor(name) else { continue };
            let bound = format!("{shape:?}, to match the heads of q and k, {kinds} kinds of pool_k and gate_dim");
            require(layout.shape == shape, &format!("{name}.shape"), format!("{:?}", layout.shape), bound)?;
            require(layout.dtype.is_float(), &format!("{name}.dtype"), layout.dtype, "f32, f16 or bf16")?;
        }
        Ok(gate_dim)
    }

    /// The grid of the mask that a step chooses for queries of this shape, `heads_kv` key heads and at most `keys` keys.
    pub fn grid(&self, [batch, _, queries, _]: [usize; 4], heads_kv: usize, keys: usize) -> BlockGrid {
        BlockGrid { batch, heads: heads_kv, queries, keys, block: [1, self.block] }
    }
}

/// The same where the vectors of keys are in a cache.
fn cached(mut frame: Frame) -> Frame {
    frame.sides[Side::Keys as usize].vectors = "compressed";
    frame
}

/// The blocks that the cache has room for.
fn check_compressed(compressed: &Operand, [batch, heads_kv, gate_dim]: [usize; 3]) -> Result<usize> {
    let ([b, h, blocks, d], layout) = (compressed.shape(), &compressed.layout);
    let bound = format!("[{batch}, {heads_kv}, any number, {gate_dim}], to match the tokens and wk");
    let fits = [b, h, d] == [batch, heads_kv, gate_dim];
    require(fits, "compressed.shape", format!("{:?}", layout.shape), bound)?;
    require(layout.dtype.is_float(), "compressed.dtype", layout.dtype, "f32, f16 or bf16")?;
    layout.check_output("compressed")?;
    Ok(blocks)
}
