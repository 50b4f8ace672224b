//! `run --backward`: the gradients of a kernel that is softmax attention.

use super::attention::{Problem, request};
use super::call::Named;
use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use wgpu_attention::plan::{AttentionParams, Shapes};
use wgpu_attention::reference;
use wgpu_attention::{Attention, DType, Result};

/// Gradients, and what they are of.
const GRADIENTS: [(&str, &str); 6] = [
    ("dq", "q"),
    ("dk", "k"),
    ("dv", "v"),
    ("d_additional_k", "additional_k"),
    ("d_additional_v", "additional_v"),
    ("dbias", "bias"),
];

impl<P: AttentionParams> Problem<P> {
    /// The gradients of all tensors that are there.
    pub(super) fn gradients(&self, options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
        let packed = self.cu_seqlens.is_some();
        let dout = inputs.tokens("dout", packed)?;
        let rows @ [b, h, n, _] = self.rows();
        if dout.shape != rows {
            return Err(error("dout.shape", format!("{:?}", dout.shape), format!("{rows:?}, to match q and v")));
        }
        let dlse = inputs.rows("dlse", if packed { &rows[1..3] } else { &rows[..3] }, "like lse")?;
        let mut from = Named::from([("dout", dout)]);
        from.extend(dlse.map(|values| ("dlse", Floats { dtype: DType::F32, shape: [b, h, n, 1], values })));
        let found = match options.backend {
            Backend::Gpu => pollster::block_on(self.gradients_on_gpu(options.adapter.as_deref(), &from))?,
            Backend::Reference => self.gradients_on_cpu(&from)?,
        };
        let output = |((name, of), values): ((&'static str, &Floats), Vec<f32>)| match name {
            "dbias" => Output { name: name.into(), dtype: DType::F32, shape: of.shape.into(), values },
            _ => inputs.output(name, Floats { values, ..*of }, packed),
        };
        Ok(self.wanted().zip(found).map(output).collect())
    }

    /// The gradients that there are, each with what it is of.
    fn wanted(&self) -> impl Iterator<Item = (&'static str, &Floats)> {
        GRADIENTS.into_iter().filter_map(move |(name, of)| Some((name, self.tensors.get(of)?)))
    }

    async fn gradients_on_gpu(&self, adapter: Option<&str>, from: &Named) -> Result<Vec<Vec<f32>>> {
        let gpu = request(adapter).await?;
        println!("{}", gpu.caps());
        let shapes = self.shapes()?;
        let attention = Attention::new(&gpu, self.params.clone())?;
        let mut call = self.upload(&gpu, &shapes).await?;
        call.run(&attention.prepare(&shapes).await?).await?;
        call.upload(from).await?;
        let shapes = Shapes::of(&call);
        let shapes = if self.tensors.contains_key("bias") { shapes.wanted("dbias") } else { shapes };
        call.run(&attention.prepare_backward(&shapes).await?).await?;
        let mut found = vec![];
        for (name, _) in self.wanted() {
            found.push(call.tensors[name].read().await?);
        }
        Ok(found)
    }

    fn gradients_on_cpu(&self, from: &Named) -> Result<Vec<Vec<f32>>> {
        let (out, _) = self.on_cpu()?;
        let dlse = from.get("dlse").map(|dlse| &dlse.values[..]);
        let g = self.by_reference(|problem| {
            reference::flash_backward(&self.known, problem, &out, &from["dout"].values, dlse, None)
        });
        let gradient = |(name, of): (&str, &Floats)| {
            let values = match name {
                "dq" => &g.dq,
                "dk" => &g.dk,
                "dv" => &g.dv,
                "d_additional_k" => &g.d_additional_k,
                "d_additional_v" => &g.d_additional_v,
                _ => return reduce(&g.dbias, self.pairs(), of.shape),
            };
            values.iter().map(|&x| of.dtype.round(x as f32)).collect()
        };
        Ok(self.wanted().map(gradient).collect())
    }
}

/// The gradient of a bias that is repeated nowhere, summed along what `shape` repeats.
fn reduce(whole: &[f64], pairs: [usize; 4], shape: [usize; 4]) -> Vec<f32> {
    let mut sums = vec![0.0; shape.iter().product()];
    whole.iter().enumerate().for_each(|(index, value)| sums[reference::place_of(index, pairs, shape)] += value);
    sums.into_iter().map(|x| x as f32).collect()
}
