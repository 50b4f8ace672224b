//! The values of cases of linear attention, their reference, and where they lie on a device.

use super::linear::LinearCase;
use super::{normal, poisoned};
use crate::reference::{self, LinearProblem};
use crate::{DType, FeatureMap, Gpu, Layout, LinearInputs, LinearRule, Result, Seqlens, Tensor};

/// The values of a case.
struct Values {
    tokens: [Vec<f32>; 3],
    g: Vec<f32>,
    beta: Vec<f32>,
    h0: Vec<f32>,
    z0: Vec<f32>,
}

impl LinearCase {
    fn values(&self) -> Values {
        let [q, k, v] = self.token_shapes().map(|shape| shape.iter().product());
        let [qk, of_v] = self.dtypes;
        let count = self.of_gates().iter().product();
        let g = match self.gates {
            None => vec![],
            Some((spread, hard)) => {
                let gate = |(i, x): (usize, f32)| if i % hard == hard / 2 { -80.0 } else { -(spread * x - 3.0).exp() };
                normal(self.seed + 3, count, 1.0, DType::F32).into_iter().enumerate().map(gate).collect()
            }
        };
        let h0 = if self.h0 || self.in_place { self.state_shape().iter().product() } else { 0 };
        let mut keys = normal(self.seed + 1, k, 1.0, qk);
        if self.params.rule != LinearRule::Linear {
            // Of unit length, but for rounding.
            for key in keys.chunks_exact_mut(self.dims.0) {
                let length = key.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
                key.iter_mut().for_each(|x| *x = qk.round(*x / length));
            }
        }
        let sums = if self.brings_sums() { self.sums_shape().iter().product() } else { 0 };
        let betas = self.of_betas().map_or(0, |shape| shape.iter().product());
        // A sum of features that are mostly positive; the Taylor map's first is 1.
        let mut z0: Vec<f32> = normal(self.seed + 8, sums, 1.0, DType::F32).into_iter().map(f32::abs).collect();
        if self.params.feature_map == FeatureMap::Taylor2 {
            z0.iter_mut().step_by(self.sums_shape()[2]).for_each(|z| *z += 30.0);
        }
        // Within [0, 2], both ends among them; less for features beyond unit length, or no state would be finite for long.
        let most = 2.0 / self.longest_features().max(1.0);
        let beta = |x: f32| 0.5 * most * (1.0 + x).clamp(0.0, 2.0);
        Values {
            tokens: [normal(self.seed, q, 1.0, qk), keys, normal(self.seed + 2, v, 1.0, of_v)],
            g,
            beta: normal(self.seed + 7, betas, 0.7, DType::F32).into_iter().map(beta).collect(),
            h0: normal(self.seed + 4, h0, 1.0, self.of_states),
            z0,
        }
    }

    /// The square of how long the features of a key of unit length may be.
    pub(super) fn longest_features(&self) -> f32 {
        let head_dim = self.dims.0 as f32;
        let scale = self.params.scale_for(self.dims.0);
        match self.params.feature_map {
            FeatureMap::Identity | FeatureMap::Relu => 1.0,
            FeatureMap::Elu1 => (head_dim.sqrt() + 1.0).powi(2),
            FeatureMap::Taylor2 => 1.0 + scale + 0.5 * scale * scale,
        }
    }

    /// (batch entry, first row, tokens) of each sequence.
    pub(super) fn places(&self) -> Vec<[usize; 3]> {
        if self.sequences.is_empty() {
            return (0..self.batch).map(|b| [b, 0, self.tokens]).collect();
        }
        let mut next = 0;
        let place = |(b, &count): (usize, &usize)| {
            let first = if self.packed { next } else { 0 };
            next += count;
            [if self.packed { 0 } else { b }, first, count]
        };
        self.sequences.iter().enumerate().map(place).collect()
    }

    pub(super) fn offsets(&self) -> Vec<usize> {
        let ends = self.places().into_iter().map(|[_, first, count]| first + count);
        std::iter::once(0).chain(ends).collect()
    }

    pub(super) fn with_problem<T>(&self, solve: impl FnOnce(&LinearProblem) -> T) -> T {
        let (Values { tokens, g, beta, h0, z0 }, places) = (self.values(), self.places());
        solve(&LinearProblem {
            tokens: tokens.each_ref().map(|values| &values[..]),
            shapes: self.token_shapes(),
            g: self.gates.map(|_| (&g[..], [self.of_gates()[1], self.of_gates()[3]])),
            beta: self.betas.map(|heads| (&beta[..], heads)),
            h0: (!h0.is_empty()).then_some(&h0[..]),
            z0: (!z0.is_empty()).then_some(&z0[..]),
            sequences: &places,
        })
    }

    pub(super) fn expected(&self) -> reference::LinearReference {
        self.with_problem(|problem| reference::linear(&self.params, problem))
    }

    /// NaN in padding.
    pub(super) fn pad(&self, values: &mut [f32], [_, heads, rows, width]: [usize; 4]) {
        if self.sequences.is_empty() {
            return;
        }
        let all: usize = self.sequences.iter().sum();
        for (n, row) in values.chunks_exact_mut(width).enumerate() {
            if n % rows >= if self.packed { all } else { self.sequences[n / rows / heads] } {
                row.fill(f32::NAN);
            }
        }
    }

    pub(super) async fn upload(&self, gpu: &Gpu) -> Result<Uploaded> {
        let Values { tokens, mut g, mut beta, h0, z0 } = self.values();
        self.pad(&mut g, self.of_gates());
        let mut found = vec![];
        for (mut values, layout) in tokens.into_iter().zip(self.layouts()) {
            self.pad(&mut values, layout.shape);
            found.push(poisoned(gpu, layout, &values).await?);
        }
        let of_g = Layout::heads_first(DType::F32, self.of_gates());
        let state = self.state_layout();
        Ok(Uploaded {
            g: if self.gates.is_some() { Some(poisoned(gpu, of_g, &g).await?) } else { None },
            beta: match self.of_betas() {
                Some(shape) => {
                    self.pad(&mut beta, shape);
                    Some(poisoned(gpu, Layout::heads_first(DType::F32, shape), &beta).await?)
                }
                None => None,
            },
            h0: if h0.is_empty() { None } else { Some(poisoned(gpu, state, &h0).await?) },
            z0: if z0.is_empty() {
                None
            } else {
                Some(poisoned(gpu, Layout::heads_first(DType::F32, self.sums_shape()), &z0).await?)
            },
            lengths: self.lengths().unwrap_or_default(),
            on_gpu: match self.lengths().filter(|_| self.on_gpu) {
                Some(lengths) => {
                    let lengths: Vec<u32> = lengths.into_iter().map(|n| n as u32).collect();
                    Some(Tensor::upload_u32(gpu, &lengths).await?)
                }
                None => None,
            },
            tokens: found,
        })
    }

    pub(super) fn inputs<'a>(&'a self, uploaded: &'a Uploaded) -> LinearInputs<'a> {
        let [q, k, v] = &uploaded.tokens[..] else { unreachable!("three are uploaded") };
        let there = self.packed || !self.sequences.is_empty();
        let lengths = there.then_some(match &uploaded.on_gpu {
            Some(lengths) => Seqlens::Gpu(lengths),
            None => Seqlens::Host(&uploaded.lengths),
        });
        LinearInputs {
            g: uploaded.g.as_ref(),
            beta: uploaded.beta.as_ref(),
            h0: uploaded.h0.as_ref().filter(|_| !self.in_place),
            z0: uploaded.z0.as_ref().filter(|_| !self.in_place),
            seqlens: lengths.filter(|_| !self.packed),
            cu_seqlens: lengths.filter(|_| self.packed),
            max_seqlen: self.max_seqlen(),
            ..LinearInputs::new(q, k, v)
        }
    }
}

#[derive(Debug)]
pub(super) struct Uploaded {
    tokens: Vec<Tensor>,
    g: Option<Tensor>,
    beta: Option<Tensor>,
    pub h0: Option<Tensor>,
    pub z0: Option<Tensor>,
    lengths: Vec<usize>,
    on_gpu: Option<Tensor>,
}
