//! The tensors of an attention case: where they lie, and what is in them.

use super::{AttentionCase, poisoned, upload_numbers};
use crate::{
    Attention, AttentionInputs, AttentionOutputs, BlockMask, DType, Gpu, Layout, Prepared, Result, Seqlens, Shapes,
    Tensor,
};

/// The tensors of a case.
#[derive(Debug)]
pub struct AttentionTensors {
    /// q, k, v.
    pub inputs: [Tensor; 3],
    /// Additive bias.
    pub bias: Option<Tensor>,
    /// Boolean mask.
    pub mask: Option<Tensor>,
    /// Selects the blocks to compute.
    pub block_mask: Option<BlockMask>,
    /// Additional keys and values.
    pub additional: Option<[Tensor; 2]>,
    /// Lengths and offsets on the GPU, of queries and of keys.
    pub seqlens: [Option<Tensor>; 4],
    /// Output and log-sum-exp.
    pub outputs: [Tensor; 2],
}

impl AttentionCase {
    pub(super) fn layout(&self, which: usize, dtype: DType, shape: [usize; 4]) -> Layout {
        let contiguous = Layout::heads_first(dtype, shape);
        if !self.strided {
            return contiguous;
        }
        // Inputs may start anywhere and have any stride. Outputs of 16 bits need whole words.
        let odd = usize::from(which < 3);
        let head = contiguous.strides[2] + 2 * which + odd;
        let row = head * shape[1] + 2 * which + 2 + odd;
        Layout { strides: [row * shape[2] + 6 + odd, head, row], ..contiguous }.at(2 * which + odd)
    }

    /// Lengths of queries and keys, offsets of queries and keys.
    pub(super) fn seqlens(&self) -> [Option<&[usize]>; 4] {
        let [q, k] = [0, 1].map(|i| Some(&*self.cu_seqlens.as_ref()?[i]));
        [self.seqlens_q.as_deref(), self.seqlens_k.as_deref(), q, k]
    }

    /// The longest sequences, where only the GPU sees offsets.
    fn max_seqlen(&self) -> [Option<usize>; 2] {
        [0, 1].map(|i| self.cu_seqlens.as_ref().filter(|_| self.on_gpu).map(|sides| longest(&sides[i])))
    }

    /// The layouts of its tensors.
    pub(super) fn plan_shapes(&self) -> Shapes {
        let [q, k, v] = self.shapes();
        let [tq, tk, to] = self.dtypes;
        let rows = [self.batch, self.heads.0, self.lengths.0, self.dims.1];
        let pairs = self.pair_shape();
        let [bias, mask] = self.pair_layouts().map(|layout| Some(layout?.expand(pairs).expect("made from this shape")));
        let [additional_k, additional_v] =
            self.additional_shapes().map(|shape| (self.additional > 0).then(|| self.layout(1, tk, shape)));
        let mut shapes =
            Shapes::new([("q", self.layout(0, tq, q)), ("k", self.layout(1, tk, k)), ("v", self.layout(2, tk, v))])
                .tensor("out", self.layout(3, to, rows))
                .tensor("lse", self.layout(4, DType::F32, [rows[0], rows[1], rows[2], 1]))
                .tensor_if("bias", bias)
                .tensor_if("mask", mask)
                .tensor_if("additional_k", additional_k)
                .tensor_if("additional_v", additional_v);
        for (name, numbers) in
            ["seqlens_q", "seqlens_k", "cu_seqlens_q", "cu_seqlens_k"].into_iter().zip(self.seqlens())
        {
            let Some(numbers) = numbers else { continue };
            shapes = match self.on_gpu {
                true => shapes.tensor(name, Layout::heads_first(DType::U32, [1, 1, 1, numbers.len()])),
                false => shapes.numbers(name, numbers),
            };
        }
        for (name, longest) in ["max_seqlen_q", "max_seqlen_k"].into_iter().zip(self.max_seqlen()) {
            shapes = shapes.numbers_if(name, longest.map(|longest| [longest]));
        }
        match &self.blocks {
            Some(blocks) => blocks.in_shapes(self, shapes),
            None => shapes,
        }
    }

    /// The tensors of the case, padding and gaps filled with NaN.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn upload(&self, gpu: &Gpu) -> Result<AttentionTensors> {
        let shapes = self.plan_shapes();
        let layout = |name: &str| shapes.layout(name).cloned();
        let known = self.known();
        let (sq, sk) = (self.seqlens_q.as_deref(), self.seqlens_k.as_deref());
        let tensor = async |i: usize, seqlens| {
            let layout = layout(["q", "k", "v"][i]).expect("a tensor of each case");
            let [_, heads, length, width] = layout.shape;
            let values = self.poison(&known.inputs[i], width, heads, length, seqlens);
            poisoned(gpu, layout, &values).await
        };
        let mut pairs = [None, None];
        for ((stored, layout), (whole, values)) in pairs
            .iter_mut()
            .zip(self.pair_layouts())
            .zip([layout("bias"), layout("mask")].into_iter().zip(&known.pairs))
        {
            if let (Some(layout), Some(whole), Some([values, _])) = (layout, whole, values) {
                *stored = Some(poisoned(gpu, layout, values).await?.view(whole)?);
            }
        }
        let [bias, mask] = pairs;
        let mut seqlens = [const { None }; 4];
        for (stored, numbers) in seqlens.iter_mut().zip(self.seqlens()) {
            if let (true, Some(numbers)) = (self.on_gpu, numbers) {
                *stored = Some(upload_numbers(gpu, numbers).await?);
            }
        }
        let additional = match (layout("additional_k"), layout("additional_v")) {
            (Some(k), Some(v)) => {
                let [of_k, of_v] = &known.additional;
                Some([poisoned(gpu, k, of_k).await?, poisoned(gpu, v, of_v).await?])
            }
            _ => None,
        };
        let block_mask = match &self.blocks {
            Some(blocks) => Some(blocks.upload(gpu, self).await?),
            None => None,
        };
        let output = async |name| Tensor::empty(gpu, layout(name).expect("a tensor of each case")).await;
        Ok(AttentionTensors {
            block_mask,
            seqlens,
            additional,
            inputs: [tensor(0, sq).await?, tensor(1, sk).await?, tensor(2, sk).await?],
            bias,
            mask,
            outputs: [output("out").await?, output("lse").await?],
        })
    }

    /// The tensors as arguments.
    pub fn arguments<'a>(&'a self, tensors: &'a AttentionTensors) -> (AttentionInputs<'a>, AttentionOutputs<'a>) {
        let AttentionTensors { inputs: [q, k, v], bias, mask, block_mask, additional, seqlens, outputs: [out, lse] } =
            tensors;
        let host = self.seqlens();
        let side = |i: usize| seqlens[i].as_ref().map(Seqlens::Gpu).or(host[i].map(Seqlens::Host));
        let [seqlens_q, seqlens_k, cu_seqlens_q, cu_seqlens_k] = [0, 1, 2, 3].map(side);
        let [max_seqlen_q, max_seqlen_k] = self.max_seqlen();
        let (bias, mask) = (bias.as_ref(), mask.as_ref());
        let (additional_k, additional_v) = additional.as_ref().map(|[k, v]| (k, v)).unzip();
        let inputs = AttentionInputs {
            seqlens_q,
            seqlens_k,
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            max_seqlen_k,
            bias,
            mask,
            additional_k,
            additional_v,
            block_mask: block_mask.as_ref(),
            ..AttentionInputs::new(q, k, v)
        };
        (inputs, AttentionOutputs { out, lse })
    }

    /// The kernel, prepared for these tensors.
    ///
    /// # Errors
    /// Those of [`Attention::prepare`].
    pub async fn prepare(&self, gpu: &Gpu, tensors: &AttentionTensors) -> Result<Prepared> {
        let (inputs, outputs) = self.arguments(tensors);
        let (params, shapes) = (self.params_on(gpu).await?, Shapes::of((&inputs, &outputs)));
        Attention::new(gpu, self.in_family(params))?.prepare(&shapes).await
    }
}

/// The longest of packed sequences.
pub(super) fn longest(offsets: &[usize]) -> usize {
    offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
}
