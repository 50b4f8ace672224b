//! The tensors of an attention case: where they lie, and what is in them.

use super::ready::Owned;
use super::{AttentionCase, poisoned, upload_numbers};
use crate::token_lists::TokenLists;
use crate::{
    Attention, AttentionInputs, AttentionOutputs, BlockMask, DType, Gpu, Layout, Prepared, Result, Seqlens, Shapes,
    Tensor,
};

/// The tensors of a case, by the names of the call.
#[derive(Debug)]
pub struct AttentionTensors {
    all: Owned,
    block_mask: Option<BlockMask>,
}

impl AttentionTensors {
    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.all.tensor(name)
    }
}

/// Lengths of queries and keys, offsets of queries and keys.
const SEQLENS: [&str; 4] = ["seqlens_q", "seqlens_k", "cu_seqlens_q", "cu_seqlens_k"];

impl AttentionCase {
    pub(super) fn layout(&self, which: usize, dtype: DType, shape: [usize; 4]) -> Layout {
        let contiguous = Layout::heads_first(dtype, shape);
        if self.heads_last && which >= 3 {
            return Layout::heads_last(dtype, shape).at(8);
        }
        if !self.strided {
            return contiguous;
        }
        // Inputs may start anywhere and have any stride. Outputs of 16 bits need whole words.
        let odd = usize::from(which < 3);
        let head = contiguous.strides[2] + 2 * which + odd;
        let row = head * shape[1] + 2 * which + 2 + odd;
        Layout { strides: [row * shape[2] + 6 + odd, head, row], ..contiguous }.at(2 * which + odd)
    }

    /// The numbers of [`SEQLENS`].
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
        for (name, numbers) in SEQLENS.into_iter().zip(self.seqlens()) {
            let Some(numbers) = numbers else { continue };
            shapes = match self.on_gpu {
                true => shapes.tensor(name, Layout::heads_first(DType::U32, [1, 1, 1, numbers.len()])),
                false => shapes.numbers(name, numbers),
            };
        }
        for (name, longest) in ["max_seqlen_q", "max_seqlen_k"].into_iter().zip(self.max_seqlen()) {
            shapes = shapes.numbers_if(name, longest.map(|longest| [longest]));
        }
        if let Some(lists) = &self.token_lists {
            shapes = lists.in_shapes(self, shapes);
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
        let (shapes, known, pairs) = (self.plan_shapes(), self.known(), self.pair_layouts());
        let [seqlens_q, seqlens_k, ..] = self.seqlens();
        let block_mask = match &self.blocks {
            Some(blocks) => Some(blocks.upload(gpu, self).await?),
            None => None,
        };
        let mut all = Owned::default();
        for (name, layout, _) in shapes.tensors().iter().filter(|(name, ..)| !name.starts_with("block_mask")) {
            let values = match &**name {
                "q" => self.poison(&known.inputs[0], layout.shape, seqlens_q),
                "k" | "v" => {
                    let values = self.poison(&known.inputs[1 + usize::from(name == "v")], layout.shape, seqlens_k);
                    match &self.token_lists {
                        Some(lists) => lists.forget_others(self, values, layout.shape[3]),
                        None => values,
                    }
                }
                "additional_k" => known.additional[0].clone(),
                "additional_v" => known.additional[1].clone(),
                "bias" => known.pairs[0].as_ref().expect("values of the bias")[0].clone(),
                "mask" => known.pairs[1].as_ref().expect("values of the mask")[0].clone(),
                _ => vec![],
            };
            let side = SEQLENS.into_iter().zip(self.seqlens()).find(|(other, _)| name == other);
            let tensor = match (&**name, side) {
                (_, Some((_, numbers))) => upload_numbers(gpu, numbers.expect("as planned")).await?,
                ("token_lists.tokens", _) => self.token_lists.as_ref().expect("as planned").upload(gpu, self).await?,
                ("out" | "lse", _) => Tensor::empty(gpu, layout.clone()).await?,
                ("bias" | "mask", _) => {
                    let stored = pairs[usize::from(name == "mask")].clone().expect("as planned");
                    poisoned(gpu, stored, &values).await?.view(layout.clone())?
                }
                _ => poisoned(gpu, layout.clone(), &values).await?,
            };
            all.push(name.clone(), tensor);
        }
        Ok(AttentionTensors { all, block_mask })
    }

    /// The tensors as arguments.
    pub fn arguments<'a>(&'a self, tensors: &'a AttentionTensors) -> (AttentionInputs<'a>, AttentionOutputs) {
        let [q, k, v, out, lse] =
            ["q", "k", "v", "out", "lse"].map(|name| tensors.get(name).expect("a tensor of each case"));
        let host = self.seqlens();
        let side = |i: usize| tensors.get(SEQLENS[i]).map(Seqlens::Gpu).or(host[i].map(Seqlens::Host));
        let [max_seqlen_q, max_seqlen_k] = self.max_seqlen();
        let inputs = AttentionInputs {
            seqlens_q: side(0),
            seqlens_k: side(1),
            cu_seqlens_q: side(2),
            cu_seqlens_k: side(3),
            max_seqlen_q,
            max_seqlen_k,
            bias: tensors.get("bias"),
            mask: tensors.get("mask"),
            additional_k: tensors.get("additional_k"),
            additional_v: tensors.get("additional_v"),
            block_mask: tensors.block_mask.as_ref(),
            token_lists: self
                .token_lists
                .as_ref()
                .zip(tensors.get("token_lists.tokens"))
                .map(|(lists, tokens)| TokenLists { tokens, block: lists.block }),
            ..AttentionInputs::new(q, k, v)
        };
        (inputs, AttentionOutputs::new(out, lse))
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
