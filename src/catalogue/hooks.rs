//! The caller's own functions, in WGSL and, for the reference, in Rust.

use super::KnownHook::{self, Checks, Coordinates, Documents, Fields, Prefix, Relative, Stripes, TanhCap};
use super::{AttentionCase, normal};
use crate::program::{Name, hook::tensor_name};
use crate::reference::At;
use crate::{DType, FlashParams, Gpu, Hook, Result, Tensor};

impl KnownHook {
    /// Those for any order of tokens.
    pub const ALL: [Self; 6] = [Relative, TanhCap, Fields, Documents(4), Prefix, Stripes];

    /// Whether it hides keys; the others change scores.
    pub fn is_mask(self) -> bool {
        matches!(self, Documents(_) | Prefix | Stripes | Checks)
    }

    /// What it reads: its name, its type and its values.
    pub(super) fn buffer(self, case: &AttentionCase) -> Option<(&'static str, Vec<f32>)> {
        match self {
            Relative => Some(("distances", normal(case.seed + 7, 5, 1.0, DType::F32))),
            Documents(count) => {
                // Of about equal lengths, that begin within tiles, elsewhere in each batch entry.
                let [batch, _, queries, keys] = case.pair_shape();
                let length = queries.max(keys);
                let number = |b: usize, i: usize| ((count * i + length / 5 + b) / length).min(count - 1) as f32;
                let entry = |b: usize| (0..length).map(move |i| number(b, i));
                Some(("documents", (0..batch).flat_map(entry).collect()))
            }
            _ => None,
        }
    }

    fn wgsl(self) -> &'static str {
        match self {
            Relative => {
                "fn relative(score: f32, at: Position) -> f32 {
    let distance = max(at.query, at.key) - min(at.query, at.key);
    return score + distances[min(distance, 4u)];
}
fn relative_grad(score: f32, at: Position, d_out: f32) -> f32 { return d_out; }"
            }
            TanhCap => {
                "const LIMIT: f32 = 8.0;
fn tanh_cap(score: f32, at: Position) -> f32 {
    return LIMIT * tanh(clamp(score / LIMIT, -10.0, 10.0));
}
fn tanh_cap_grad(score: f32, at: Position, d_out: f32) -> f32 {
    let t = tanh(clamp(score / LIMIT, -10.0, 10.0));
    return d_out * (1.0 - t * t);
}"
            }
            Fields => {
                "fn fields(score: f32, at: Position) -> f32 {
    if ((3u * at.query + at.key) % 11u == 4u) { return bitcast<f32>(0xff800000u | (at.batch & 0u)); }
    let place = f32(at.query) / f32(at.queries) - f32(at.key) / f32(at.keys);
    return score * (1.0 + 0.1 * f32(at.head)) + place + 0.5 * f32(at.batch % 2u);
}
fn fields_grad(score: f32, at: Position, d_out: f32) -> f32 { return d_out * (1.0 + 0.1 * f32(at.head)); }"
            }
            Documents(_) => {
                "fn document(at: Position) -> bool {
    let first = at.batch * LENGTH;
    return documents[first + at.query] == documents[first + at.key];
}"
            }
            Coordinates => {
                "fn coordinates(score: f32, at: Position) -> f32 {
    return score + dot(vec3f(at.query_at) - vec3f(at.key_at), vec3f(0.1, -0.2, 0.3)) + f32(at.query_at.x % 2u);
}
fn coordinates_grad(score: f32, at: Position, d_out: f32) -> f32 { return d_out; }"
            }
            Checks => {
                "fn checks(at: Position) -> bool {
    return (at.query_at.x + 2u * at.query_at.y + at.key_at.x + at.key_at.y + 3u * at.key_at.z + at.query_at.z) % 4u != 1u;
}"
            }
            Prefix => "fn prefix(at: Position) -> bool { return at.key < 20u || at.key <= at.query; }",
            Stripes => {
                "fn stripes(at: Position) -> bool {
    return at.query % 7u != 3u + at.head % 2u && (at.key / 10u + at.batch + at.head) % 3u != 0u;
}"
            }
        }
    }

    fn entry(self) -> &'static str {
        match self {
            Relative => "relative",
            TanhCap => "tanh_cap",
            Fields => "fields",
            Documents(_) => "document",
            Prefix => "prefix",
            Stripes => "stripes",
            Coordinates => "coordinates",
            Checks => "checks",
        }
    }

    /// The hook without its buffers.
    fn hook(self, case: &AttentionCase) -> Hook {
        let [_, _, queries, keys] = case.pair_shape();
        let length = format!("const LENGTH: u32 = {}u;\n", queries.max(keys));
        let source = if matches!(self, Documents(_)) { length + self.wgsl() } else { self.wgsl().into() };
        let hook = Hook::new(self.entry(), source);
        if self.is_mask() { hook } else { hook.with_gradient(format!("{}_grad", self.entry())) }
    }

    pub(super) fn score(self, case: &AttentionCase, values: &[f32], score: f64, at: At) -> f64 {
        match self {
            Relative => score + f64::from(values[at.query.abs_diff(at.key).min(4)]),
            TanhCap => 8.0 * (score / 8.0).tanh(),
            Fields if (3 * at.query + at.key) % 11 == 4 => f64::NEG_INFINITY,
            Fields => {
                let place = at.query as f64 / at.queries as f64 - at.key as f64 / at.keys as f64;
                score * (1.0 + 0.1 * at.head as f64) + place + 0.5 * (at.batch % 2) as f64
            }
            Coordinates => {
                let (q, k) = (coordinates(case, at.query), coordinates(case, at.key));
                let places = (0..3).map(|a| [0.1, -0.2, 0.3][a] * (q[a] as f64 - k[a] as f64)).sum::<f64>();
                score + places + (q[0] % 2) as f64
            }
            _ => unreachable!("{}: {self:?} is a mask", case.label),
        }
    }

    /// What the gradient of the result makes of the argument's.
    pub(super) fn score_gradient(self, score: f64, at: At, d_out: f64) -> f64 {
        match self {
            TanhCap => d_out * (1.0 - (score / 8.0).tanh().powi(2)),
            Fields => d_out * (1.0 + 0.1 * at.head as f64),
            _ => d_out,
        }
    }

    pub(super) fn sees(self, case: &AttentionCase, values: &[f32], at: At) -> bool {
        match self {
            Documents(_) => {
                let first = at.batch * (values.len() / case.pair_shape()[0].max(1));
                values[first + at.query] == values[first + at.key]
            }
            Prefix => at.key < 20 || at.key <= at.query,
            Stripes => at.query % 7 != 3 + at.head % 2 && !(at.key / 10 + at.batch + at.head).is_multiple_of(3),
            Checks => {
                let (q, k) = (coordinates(case, at.query), coordinates(case, at.key));
                (q[0] + 2 * q[1] + k[0] + k[1] + 3 * k[2] + q[2]) % 4 != 1
            }
            _ => unreachable!("{}: {self:?} is no mask", case.label),
        }
    }
}

/// Where a token lies in the case's space, the first axis first.
fn coordinates(case: &AttentionCase, token: usize) -> [usize; 3] {
    let mut rest = token;
    let mut at = [0; 3];
    for (a, axis) in case.axes.iter().enumerate().rev() {
        at[a] = rest % axis.length;
        rest /= axis.length;
    }
    at
}

impl KnownHook {
    /// What it reads: its name, and the tensor.
    async fn upload(self, gpu: &Gpu, case: &AttentionCase) -> Result<Option<(&'static str, Tensor)>> {
        let Some((name, values)) = self.buffer(case) else { return Ok(None) };
        let tensor = match self {
            Documents(_) => {
                let numbers: Vec<u32> = values.iter().map(|&x| x as u32).collect();
                Tensor::upload_u32(gpu, &numbers).await?
            }
            _ => Tensor::upload(gpu, [1, 1, 1, values.len()], DType::F32, &values).await?,
        };
        Ok(Some((name, tensor)))
    }
}

impl AttentionCase {
    /// The params with the hooks of the case, as far as they read nothing.
    pub(super) fn params_without_buffers(&self) -> FlashParams {
        let (masks, scores): (Vec<KnownHook>, Vec<KnownHook>) = self.hooks.iter().partition(|hook| hook.is_mask());
        let hooks = |all: Vec<KnownHook>| {
            all.into_iter().filter(|hook| hook.buffer(self).is_none()).map(|hook| hook.hook(self)).collect()
        };
        FlashParams { score_mod: hooks(scores), mask_mod: hooks(masks), ..self.params.clone() }
    }

    /// The buffers of the hooks, by the names of a call.
    pub(super) async fn buffers_on(&self, gpu: &Gpu) -> Result<Vec<(Name, Tensor)>> {
        let mut all = vec![];
        for known in &self.hooks {
            all.extend(known.upload(gpu, self).await?.map(|(name, tensor)| (tensor_name(name), tensor)));
        }
        Ok(all)
    }

    /// The params with the hooks of the case and their buffers.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn params_on(&self, gpu: &Gpu) -> Result<FlashParams> {
        let mut params = self.params.clone();
        for &known in &self.hooks {
            let mut hook = known.hook(self);
            if let Some((name, tensor)) = known.upload(gpu, self).await? {
                hook = hook.with_buffer(name, &tensor);
            }
            if known.is_mask() { &mut params.mask_mod } else { &mut params.score_mod }.push(hook);
        }
        Ok(params)
    }
}
