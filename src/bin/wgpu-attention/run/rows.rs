//! `run rows`: rows of a file, gathered or scattered by its index.

use super::attention::{params, request};
use super::call::{Named, Uploaded};
use super::file::{Floats, Inputs, Output, error};
use super::{Backend, Options};
use serde::Deserialize;
use wgpu_attention::plan::{Caps, Shapes};
use wgpu_attention::reference::{RowsProblem, rows_gathered, rows_scattered};
use wgpu_attention::{DType, Layout, Result, RowReduction, Rows, RowsParams, Tensor};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Params {
    /// Rows of the result of a scatter.
    n: Option<usize>,
    reduce: Option<RowReduction>,
}

pub fn run(options: &Options, inputs: &Inputs) -> Result<Vec<Output>> {
    let Params { n, reduce } = params(options)?;
    if options.backward {
        let bound = "unset: the gradient of rows gathered is their scatter by sum, and the other way round";
        return Err(error("--backward", "set", bound));
    }
    // The params say which, where a file has both.
    let scatters = n.is_some() || reduce.is_some() || inputs.has("y") && !inputs.has("x");
    let name = if scatters { "y" } else { "x" };
    let given = inputs.tokens(name, false)?;
    let (index, of_index) = inputs.index("index")?;
    let params = RowsParams { reduce: scatters.then(|| reduce.unwrap_or(RowReduction::Sum)) };
    let missing = || error("n", "unset", "set: how many rows the result has");
    let rows = if scatters { Some(n.ok_or_else(missing)?) } else { None };
    let shapes = Shapes::new([(name, given.layout()), ("index", Layout::heads_first(DType::U32, of_index))])
        .numbers_if("rows", rows.map(|rows| [rows]));
    let program = params.plan(&Caps::unlimited(), &shapes)?;
    check(&index, of_index, rows.unwrap_or(given.shape[2]))?;
    let of_result = program.tensor(if scatters { "x" } else { "y" }).expect("a result").layout.clone();
    let values = match options.backend {
        Backend::Gpu => pollster::block_on(on_gpu(options, &params, &shapes, (name, &given), (&index, of_index)))?,
        Backend::Reference => on_cpu(&params, rows, &given, (&index, of_index), of_result.dtype),
    };
    let Layout { dtype, shape, .. } = of_result;
    Ok(vec![inputs.output("out", Floats { dtype, shape, values }, false)])
}

/// Every index is below the number of rows, or none.
fn check(index: &[u32], [_, heads, _, count]: [usize; 4], rows: usize) -> Result<()> {
    let wrong = |&n: &u32| n != u32::MAX && n as usize >= rows;
    let Some(i) = index.iter().position(wrong) else { return Ok(()) };
    let what = format!("index[{}][{}][{}]", i / count / heads, i / count % heads, i % count);
    Err(error(what, index[i], format!("below {rows}, the number of rows, or {} for none", u32::MAX)))
}

async fn on_gpu(
    options: &Options,
    params: &RowsParams,
    shapes: &Shapes,
    (name, given): (&'static str, &Floats),
    (index, of_index): (&[u32], [usize; 4]),
) -> Result<Vec<f32>> {
    let gpu = request(options.adapter.as_deref()).await?;
    println!("{}", gpu.caps());
    let rows = Rows::new(&gpu);
    println!("{}", rows.plan(params, shapes)?);
    let prepared = rows.prepare(params, shapes).await?;
    let mut call = Uploaded::new(&gpu, &Named::from([(name, given.clone())])).await?;
    let index = Tensor::upload_u32(&gpu, index).await?.view(Layout::heads_first(DType::U32, of_index))?;
    call.tensors.insert("index".into(), index);
    call.run(&prepared).await?;
    call.tensors[if name == "x" { "y" } else { "x" }].read().await
}

fn on_cpu(
    params: &RowsParams,
    rows: Option<usize>,
    given: &Floats,
    (index, [index_batch, index_heads, _, count]): (&[u32], [usize; 4]),
    dtype: DType,
) -> Vec<f32> {
    let [batch, heads, own, width] = given.shape;
    let of_index = [index_batch, index_heads];
    let problem = RowsProblem { index, of_index, heads: [batch, heads], rows: rows.unwrap_or(own), count, width };
    let found = match params.reduce {
        None => rows_gathered(&problem, &given.values, false),
        Some(reduce) => rows_scattered(&problem, &given.values, reduce).0,
    };
    found.into_iter().map(|x| dtype.round(x as f32)).collect()
}
