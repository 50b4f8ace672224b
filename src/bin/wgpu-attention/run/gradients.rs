//! `run --backward`: the gradients of a kernel that is softmax attention.

use super::attention::{Problem, request, row_of, up};
use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use wgpu_attention::reference;
use wgpu_attention::{Attention, AttentionParams, DType, OutputGradients, Result, Tensor};

impl<P: AttentionParams> Problem<P> {
    /// dq dk dv, and dbias where there is a bias.
    pub(super) fn gradients(&self, options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
        let packed = self.cu_seqlens.is_some();
        let dout = inputs.tokens("dout", packed)?;
        let rows = [self.q.shape[0], self.q.shape[1], self.q.shape[2], self.v.shape[3]];
        if dout.shape != rows {
            return Err(error("dout.shape", format!("{:?}", dout.shape), format!("{rows:?}, by q and v")));
        }
        let dlse = inputs.rows("dlse", if packed { &rows[1..3] } else { &rows[..3] })?;
        let gradients = match options.backend {
            Backend::Gpu => pollster::block_on(self.gradients_on_gpu(options.adapter.as_deref(), &dout, dlse))?,
            Backend::Reference => self.gradients_on_cpu(&dout, dlse)?,
        };
        let like = |floats: &Floats, values| Floats { dtype: floats.dtype, shape: floats.shape, values };
        let mut outputs = Vec::new();
        for (name, floats, values) in [
            ("dq", Some(&self.q), gradients.dq),
            ("dk", Some(&self.k), gradients.dk),
            ("dv", Some(&self.v), gradients.dv),
            ("d_additional_k", self.additional[0].as_ref(), gradients.d_additional_k),
            ("d_additional_v", self.additional[1].as_ref(), gradients.d_additional_v),
        ] {
            outputs.extend(floats.map(|floats| inputs.output(name, like(floats, values), packed)));
        }
        if let Some(bias) = &self.bias {
            let shape = bias.shape.into();
            outputs.push(Output { name: "dbias", dtype: DType::F32, shape, values: gradients.dbias });
        }
        Ok(outputs)
    }

    async fn gradients_on_gpu(
        &self,
        adapter: Option<&str>,
        dout: &Floats,
        dlse: Option<Vec<f32>>,
    ) -> Result<Gradients> {
        let gpu = request(adapter).await?;
        println!("{}", gpu.caps());
        let shapes = self.shapes()?;
        let attention = Attention::new(&gpu, self.params.clone())?;
        let uploaded = self.upload(&gpu, &shapes).await?;
        let (_, saved) = attention.forward_for_training(&self.inputs(&uploaded)).await?;
        let dout = up(&gpu, dout).await?;
        let dlse = match dlse {
            Some(values) => Some(Tensor::upload(&gpu, shapes.lse.shape, DType::F32, &values).await?),
            None => None,
        };
        let from = OutputGradients { dlse: dlse.as_ref(), ..OutputGradients::new(&dout) };
        let g = attention.backward_with_lse(&saved, &from).await?;
        let some = async |tensor: &Option<Tensor>| match tensor {
            Some(tensor) => tensor.read().await,
            None => Ok(vec![]),
        };
        Ok(Gradients {
            dq: g.dq.read().await?,
            dk: g.dk.read().await?,
            dv: g.dv.read().await?,
            dbias: some(&g.dbias).await?,
            d_additional_k: some(&g.d_additional_k).await?,
            d_additional_v: some(&g.d_additional_v).await?,
        })
    }

    fn gradients_on_cpu(&self, dout: &Floats, dlse: Option<Vec<f32>>) -> Result<Gradients> {
        let (out, _) = self.on_cpu()?;
        let g = self.by_reference(|problem| {
            reference::flash_backward(&self.known, problem, &out, &dout.values, dlse.as_deref(), None)
        });
        let round = |values: &[f64], dtype: DType| values.iter().map(|&x| dtype.round(x as f32)).collect();
        let dbias = self.bias.as_ref().map(|bias| reduce(&g.dbias, self.pairs(), bias.shape)).unwrap_or_default();
        let [q, k, v] = [&self.q, &self.k, &self.v].map(|floats| floats.dtype);
        let (d_additional_k, d_additional_v) = (round(&g.d_additional_k, k), round(&g.d_additional_v, v));
        Ok(Gradients {
            dq: round(&g.dq, q),
            dk: round(&g.dk, k),
            dv: round(&g.dv, v),
            dbias,
            d_additional_k,
            d_additional_v,
        })
    }
}

/// Values to write; those of tensors that are not there are empty.
struct Gradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    dbias: Vec<f32>,
    d_additional_k: Vec<f32>,
    d_additional_v: Vec<f32>,
}

/// The gradient of a bias that is repeated nowhere, summed along what `shape` repeats.
fn reduce(whole: &[f64], pairs: [usize; 4], shape: [usize; 4]) -> Vec<f32> {
    let mut sums = vec![0.0; shape.iter().product()];
    for (index, values) in whole.chunks(pairs[3].max(1)).enumerate() {
        let row = row_of(index, pairs, shape) * pairs[3];
        sums[row..row + pairs[3]].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    sums.into_iter().map(|x| x as f32).collect()
}
