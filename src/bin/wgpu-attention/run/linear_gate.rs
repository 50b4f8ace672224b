//! Gates and betas of `run linear` from what a model computes.

use super::file::{Floats, Inputs, Output};
use wgpu_attention::backward::LinearGateGradients;
use wgpu_attention::reference::{LinearGateProblem, linear_gate, linear_gate_backward};
use wgpu_attention::{DType, Gpu, LinearGate, LinearGateActivation, LinearGateInputs, Result, Tensor};

/// What gates or betas are made of.
pub struct Gate<'a> {
    activation: LinearGateActivation,
    x: Floats,
    a_log: Option<Vec<f32>>,
    dt_bias: Option<Vec<f32>>,
    cu_seqlens: Option<&'a [usize]>,
}

impl<'a> Gate<'a> {
    /// g = −exp(a_log) · softplus(x + dt_bias), with a_log [heads] and dt_bias, if it is there, [heads] or [heads, head_dim].
    pub fn softplus(inputs: &Inputs, x: Floats, cu_seqlens: Option<&'a [usize]>) -> Result<Self> {
        let [_, heads, _, width] = x.shape;
        let missing = || inputs.missing("a_log", ", the logarithm of each head's rate");
        let a_log = Some(inputs.rows("a_log", &[heads], "one per head of g")?.ok_or_else(missing)?);
        let of_heads = width == 1 && inputs.dimensions("dt_bias") == Some(1);
        let of_bias = if of_heads { vec![heads] } else { vec![heads, width] };
        let dt_bias = inputs.rows("dt_bias", &of_bias, "one per gate of a token")?;
        Ok(Self { activation: LinearGateActivation::Softplus, x, a_log, dt_bias, cu_seqlens })
    }

    /// β = factor / (1 + e^(−x)).
    pub fn sigmoid(factor: f32, x: Floats, cu_seqlens: Option<&'a [usize]>) -> Self {
        let activation = LinearGateActivation::Sigmoid { factor };
        Self { activation, x, a_log: None, dt_bias: None, cu_seqlens }
    }

    fn problem(&self) -> LinearGateProblem<'_> {
        let (a_log, dt_bias) = (self.a_log.as_deref(), self.dt_bias.as_deref());
        LinearGateProblem { x: &self.x.values, shape: self.x.shape, a_log, dt_bias }
    }

    /// What its tokens have, on a device or, without one, by the reference.
    pub fn forward(&self, gpu: Option<&Gpu>) -> Result<Floats> {
        let values = match gpu {
            None => linear_gate(self.activation, &self.problem()).into_iter().map(|x| x as f32).collect(),
            Some(gpu) => pollster::block_on(async {
                let uploaded = self.upload(gpu).await?;
                let gate = LinearGate::new(gpu, self.activation)?;
                gate.forward(&self.inputs(&uploaded)).await?.read().await
            })?,
        };
        Ok(Floats { dtype: DType::F32, shape: self.x.shape, values })
    }

    /// The gradient of x from that of what its tokens have, and those of a_log and dt_bias.
    pub fn backward(&self, gpu: Option<&Gpu>, dy: &[f32]) -> Result<(Floats, Vec<Output>)> {
        let [dx, da_log, ddt_bias] = match gpu {
            None => {
                let found = linear_gate_backward(self.activation, &self.problem(), dy);
                [found.dx, found.da_log, found.ddt_bias].map(|all| all.into_iter().map(|x| x as f32).collect())
            }
            Some(gpu) => pollster::block_on(async {
                let uploaded = self.upload(gpu).await?;
                let dy = Tensor::upload(gpu, self.x.shape, DType::F32, dy).await?;
                let gate = LinearGate::new(gpu, self.activation)?;
                let LinearGateGradients { dx, da_log, ddt_bias } = gate.backward(&self.inputs(&uploaded), &dy).await?;
                let mut all: [Vec<f32>; 3] = Default::default();
                for (values, tensor) in all.iter_mut().zip([Some(dx), da_log, ddt_bias]) {
                    if let Some(tensor) = tensor {
                        *values = tensor.read().await?;
                    }
                }
                Ok::<_, wgpu_attention::Error>(all)
            })?,
        };
        let [_, heads, _, width] = self.x.shape;
        let of_bias = if width == 1 { vec![heads] } else { vec![heads, width] };
        let shared = [("da_log", &self.a_log, vec![heads], da_log), ("ddt_bias", &self.dt_bias, of_bias, ddt_bias)];
        let output =
            |(name, _, shape, values): (&str, _, _, _)| Output { name: name.into(), dtype: DType::F32, shape, values };
        let outputs = shared.into_iter().filter(|(_, of, ..)| of.is_some()).map(output).collect();
        Ok((Floats { dtype: self.x.dtype, shape: self.x.shape, values: dx }, outputs))
    }

    async fn upload(&self, gpu: &Gpu) -> Result<[Option<Tensor>; 3]> {
        let [_, heads, _, width] = self.x.shape;
        let x = Tensor::upload(gpu, self.x.shape, self.x.dtype, &self.x.values).await?;
        let mut all = [Some(x), None, None];
        for (i, (values, width)) in [(&self.a_log, 1), (&self.dt_bias, width)].into_iter().enumerate() {
            if let Some(values) = values {
                all[i + 1] = Some(Tensor::upload(gpu, [1, heads, 1, width], DType::F32, values).await?);
            }
        }
        Ok(all)
    }

    fn inputs<'t>(&'t self, [x, a_log, dt_bias]: &'t [Option<Tensor>; 3]) -> LinearGateInputs<'t> {
        let (a_log, dt_bias) = (a_log.as_ref(), dt_bias.as_ref());
        let x = x.as_ref().expect("uploaded");
        LinearGateInputs { a_log, dt_bias, cu_seqlens: self.cu_seqlens.map(Into::into), ..LinearGateInputs::new(x) }
    }
}
