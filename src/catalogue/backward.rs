//! Cases of the gradients.

use super::ready::{Owned, Ready};
use super::{
    AttentionCase, Case, KernelParams, Outcome, Problem, Scores, Tolerance, flash_cases, normal, poisoned,
    random_flash_cases,
};
use crate::program::Kernel;
use crate::reference::{Gradients as Expected, flash_backward, place_of};
use crate::{Attention, AttentionParams, Caps, DType, Gpu, GpuTime, Program, Result, Shapes, Tensor};
use futures::future::LocalBoxFuture;
use std::sync::OnceLock;

/// The gradients of one flash attention problem.
#[derive(Debug)]
pub struct BackwardCase {
    /// The forward pass.
    pub forward: AttentionCase,
    /// Whether the log-sum-exp has a gradient.
    pub dlse: bool,
    /// Filled at first use: leave it empty.
    pub expected: OnceLock<Expected>,
}

/// Gradients by name.
const GRADIENTS: [&str; 6] = ["dq", "dk", "dv", "dbias", "d_additional_k", "d_additional_v"];

impl BackwardCase {
    /// The gradients of this problem.
    pub fn of(forward: AttentionCase) -> Self {
        Self { dlse: forward.seed.is_multiple_of(2), forward, expected: OnceLock::new() }
    }

    fn rows(&self) -> [usize; 4] {
        [self.forward.batch, self.forward.heads.0, self.forward.lengths.0, self.forward.dims.1]
    }

    /// The output as it is stored.
    fn out(&self) -> Vec<f32> {
        let dtype = self.forward.dtypes[2];
        self.forward.reference().out.iter().map(|&x| dtype.round(x as f32)).collect()
    }

    fn dout(&self) -> Vec<f32> {
        normal(self.forward.seed + 20, self.rows().iter().product(), 1.0, self.forward.dtypes[2])
    }

    fn dlse(&self) -> Option<Vec<f32>> {
        let count = self.rows()[..3].iter().product();
        self.dlse.then(|| normal(self.forward.seed + 21, count, 1.0, DType::F32))
    }

    fn expected(&self) -> &Expected {
        self.expected.get_or_init(|| {
            let (dout, dlse) = (self.dout(), self.dlse());
            self.forward.with_problem(|problem, score_mod_grad| {
                flash_backward(&self.forward.params, problem, &self.out(), &dout, dlse.as_deref(), Some(score_mod_grad))
            })
        })
    }

    fn shapes(&self) -> Shapes {
        let case = &self.forward;
        let [q, k, v] = case.shapes();
        let [tq, tk, to] = case.dtypes;
        let rows = self.rows();
        let [d_additional_k, d_additional_v] =
            case.additional_shapes().map(|shape| (case.additional > 0).then(|| case.layout(3, tk, shape)));
        case.plan_shapes()
            .tensor("dout", case.layout(0, to, rows))
            .tensor_if("dlse", self.dlse.then(|| case.layout(1, DType::F32, [rows[0], rows[1], rows[2], 1])))
            .tensor("dq", case.layout(3, tq, q))
            .tensor("dk", case.layout(3, tk, k))
            .tensor("dv", case.layout(3, tk, v))
            .tensor_if("dbias", case.bias_layout().map(|bias| case.layout(4, DType::F32, bias.shape)))
            .tensor_if("d_additional_k", d_additional_k)
            .tensor_if("d_additional_v", d_additional_v)
    }

    /// What would run on a device, except for hooks that read buffers.
    ///
    /// # Errors
    /// Those of [`AttentionParams::plan_backward`].
    pub fn plan(&self, caps: &Caps) -> Result<Program> {
        self.forward.in_family(self.forward.params_without_buffers()).plan_backward(caps, &self.shapes())
    }

    /// The gradient of a bias that is repeated nowhere, summed along what is repeated.
    fn reduced(&self, whole: &[f64], shape: [usize; 4]) -> Vec<f64> {
        let (pairs, mut sums) = (self.forward.pair_shape(), vec![0.0; shape.iter().product()]);
        whole.iter().enumerate().for_each(|(index, value)| sums[place_of(index, pairs, shape)] += value);
        sums
    }

    /// The gradients that come out, by name.
    fn results(&self, ready: &Ready) -> Vec<(&'static str, Vec<f64>)> {
        let Expected { dq, dk, dv, dbias, d_additional_k, d_additional_v, .. } = self.expected();
        let all = GRADIENTS.into_iter().zip([dq, dk, dv, dbias, d_additional_k, d_additional_v]);
        all.filter_map(|(name, expected)| {
            let shape = ready.tensor(name)?.shape();
            Some((name, if name == "dbias" { self.reduced(expected, shape) } else { expected.clone() }))
        })
        .collect()
    }

    /// Uploads what the forward pass leaves, and prepares the backward one.
    ///
    /// # Errors
    /// A lack of memory, a lost device.
    pub async fn prepare(&self, gpu: &Gpu) -> Result<Ready> {
        let (case, shapes) = (&self.forward, self.shapes());
        let tensors = case.upload(gpu).await?;
        let (inputs, outputs) = case.arguments(&tensors);
        outputs.out.write(&self.out()).await?;
        let lse: Vec<f32> = case.reference().lse.iter().map(|&x| x as f32).collect();
        outputs.lse.write(&lse).await?;
        let mut call = Owned::of((&inputs, &outputs));
        for (name, values) in [("dout", Some(self.dout())), ("dlse", self.dlse())] {
            let (Some(values), Some(layout)) = (values, shapes.layout(name)) else { continue };
            let values = case.poison(&values, layout.shape, case.seqlens_q.as_deref());
            call.push(name, poisoned(gpu, layout.clone(), &values).await?);
        }
        for name in GRADIENTS {
            if let Some(layout) = shapes.layout(name) {
                call.push(name, Tensor::empty(gpu, layout.clone()).await?);
            }
        }
        let attention = Attention::new(gpu, case.in_family(case.params_on(gpu).await?))?;
        let prepared = attention.prepare_backward(&call).await?;
        Ok(Ready::new(call, prepared))
    }
}

impl Case for BackwardCase {
    fn kernel(&self) -> &'static str {
        self.forward.kernel()
    }

    fn name(&self) -> String {
        format!("backward, {}{}", self.forward.name(), if self.dlse { " dlse" } else { "" })
    }

    fn kernels(&self, caps: &Caps) -> Result<Vec<Kernel>> {
        Ok(self.plan(caps)?.kernels)
    }

    fn flops(&self) -> f64 {
        // Five products, two of them done twice.
        3.5 * self.forward.flops()
    }

    fn run<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            let ready = self.prepare(gpu).await?;
            ready.run().await?;
            let magnitude = self.forward.reference().magnitude;
            let mut outcome = Outcome { error: 0.0, over_tolerance: 0.0 };
            for (name, expected) in self.results(&ready) {
                let found = ready.tensor(name).expect("a result");
                let tolerance = Tolerance { dtype: found.layout().dtype, unit: 5e-5, magnitude };
                outcome = outcome.and(tolerance.compare(&found.read().await?, &expected));
            }
            Ok(outcome)
        })
    }

    fn problem<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<Option<Problem>>> {
        Box::pin(async move {
            let mut ready = self.prepare(gpu).await?;
            ready.extend(self.forward.buffers_on(gpu).await?);
            let expected = self.results(&ready);
            let params = KernelParams::Attention(self.forward.in_family(self.forward.params_on(gpu).await?));
            Ok(Some(Problem { params, backward: true, ready, expected }))
        })
    }

    fn time<'a>(&'a self, gpu: &'a Gpu) -> LocalBoxFuture<'a, Result<GpuTime>> {
        Box::pin(async move { self.prepare(gpu).await?.time(gpu).await })
    }
}

/// Within the eight storage buffers that every device has: q, k, v, dout, what is written, and the rows' statistics are six.
fn fits(case: &AttentionCase) -> bool {
    let read = case.hooks.iter().filter(|hook| hook.buffer(case).is_some()).count();
    let more = [case.cu_seqlens.is_some(), case.bias.is_some(), case.mask.is_some()];
    read + more.into_iter().filter(|&used| used).count() <= 2
}

/// The gradients of the forward catalogue's smaller cases.
pub fn flash_backward_cases() -> Vec<BackwardCase> {
    let small = |case: &AttentionCase| case.batch * case.heads.0 * case.lengths.0 * case.lengths.1 <= 200_000;
    // Scores so low that their rounding is all there is to see have no gradients worth comparing.
    let exact = |case: &AttentionCase| !matches!(case.scores, Scores::Around(_));
    let cases = flash_cases().into_iter().filter(|case| small(case) && exact(case) && fits(case));
    cases.map(BackwardCase::of).collect()
}

/// The gradients of random cases.
pub fn random_flash_backward_cases(count: usize, seed: u64) -> Vec<BackwardCase> {
    random_flash_cases(count, seed).into_iter().filter(fits).map(BackwardCase::of).collect()
}
