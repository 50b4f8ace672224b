//! Problems as files: a kernel with its params, where its tensors lie and what is in them, and what must come out.
//!
//! A safetensors file. Its metadata have `kernel`, `params`, `shapes` and `backward` as `plan` takes them, and `case`, the problem in
//! words; its tensors are those of the call, and `expected.NAME`.

use super::plan::{self, Kernel};
use super::run::call::Uploaded;
use super::run::file::{FLOATS, Output, decode, encode, error};
use clap::ValueEnum;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use wgpu_attention::catalogue::{Problem, poisoned};
use wgpu_attention::{DType, Error, Gpu, Layout, Result, Shapes, Tensor};

/// Names of what must come out begin so.
const EXPECTED: &str = "expected.";

/// Writes a problem, whole or not at all.
pub async fn write(path: &Path, case: &str, problem: &Problem) -> Result<()> {
    let program = problem.ready.plan();
    let (mut shapes, mut tensors) = (serde_json::Map::new(), vec![]);
    for (name, tensor) in problem.ready.tensors() {
        let (layout, shape) = (tensor.layout(), tensor.shape().to_vec());
        shapes.insert(name.to_string(), serde_json::to_value(layout).expect("plain data"));
        tensors.push(match layout.dtype {
            DType::U32 => {
                (name.to_string(), Dtype::U32, shape, bytemuck::cast_slice(&tensor.read_u32().await?).to_vec())
            }
            dtype => {
                let (dtype, bytes) = encode(dtype, &tensor.read().await?);
                (name.to_string(), dtype, shape, bytes)
            }
        });
    }
    program.numbers.iter().for_each(|(name, numbers)| drop(shapes.insert(name.to_string(), json!(numbers))));
    for (name, values) in &problem.expected {
        let (_, bytes) = encode(DType::F32, &values.iter().map(|&x| x as f32).collect::<Vec<_>>());
        tensors.push((format!("{EXPECTED}{name}"), Dtype::F32, vec![values.len()], bytes));
    }
    let metadata = HashMap::from([
        ("kernel".into(), problem.params.kernel().into()),
        ("params".into(), serde_json::to_string(&problem.params).expect("plain data")),
        ("shapes".into(), serde_json::Value::Object(shapes).to_string()),
        ("backward".into(), problem.backward.to_string()),
        ("case".into(), case.into()),
    ]);
    let failed = |e: &dyn std::fmt::Display| error(path.display(), format!("\"{e}\""), "a file that can be written");
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        Ok((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| failed(&e))?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata)).map_err(|e| failed(&e))?;
    let part = path.with_extension("part");
    std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path)).map_err(|e| failed(&e))
}

/// Runs the problem of a file, and says how far its results are from what is expected.
pub async fn run(path: &Path, gpu: &Gpu) -> Result<Vec<Output>> {
    let file = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| error(&file, format!("\"{e}\""), "a readable file"))?;
    let broken = |e: safetensors::SafeTensorError| error(&file, format!("\"{e}\""), "a safetensors file");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let found = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let said = |name: &str| {
        let said = metadata.metadata().as_ref().and_then(|all| all.get(name)).map(String::as_str);
        said.ok_or_else(|| error(&file, format!("without \"{name}\" in its metadata"), "a problem that `check` wrote"))
    };
    let kernel = Kernel::from_str(said("kernel")?, false).map_err(|e| error("kernel", e, "one of `plan`"))?;
    let shapes: Shapes = plan::parse("shapes", said("shapes")?)?;
    let (params, backward) = (said("params")?, said("backward")? == "true");
    kernel.plan(params, backward, gpu.caps(), &shapes)?;
    let mut call = Uploaded::empty(gpu);
    for (name, view) in found.tensors().into_iter().filter(|(name, _)| !name.starts_with(EXPECTED)) {
        let layout = shapes.layout(&name).ok_or_else(|| error(&name, "in the file", "one of its shapes"))?;
        if view.shape() != layout.shape || !of_file(layout.dtype).contains(&view.dtype()) {
            let value = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(error(name, value, format!("{} {:?}, by shapes", layout.dtype, layout.shape)));
        }
        let tensor = upload(gpu, layout.clone(), &view).await?;
        call.tensors.insert(name.into(), tensor);
    }
    println!("{}\n{}", said("case")?, gpu.caps());
    let prepared = kernel.prepare(params, backward, gpu, &shapes).await?;
    println!("{}", prepared.plan());
    for spec in prepared.plan().tensors.iter().filter(|spec| !spec.written) {
        if !call.tensors.contains_key(&spec.name) {
            return Err(error(&file, format!("without {}", spec.name), "with all that the kernel reads"));
        }
    }
    call.run(&prepared).await?;
    let mut outputs = vec![];
    for spec in prepared.plan().tensors.iter().filter(|spec| spec.written) {
        let tensor = &call.tensors[&spec.name];
        let values = match spec.layout.dtype {
            DType::U32 => tensor.read_u32().await?.iter().map(|&x| x as f32).collect(),
            _ => tensor.read().await?,
        };
        if let Ok(view) = found.tensor(&format!("{EXPECTED}{}", spec.name)) {
            let expected = decode(Dtype::F32, view.data());
            let differences = values.iter().zip(&expected).filter(|(a, b)| a != b).map(|(a, b)| (a - b).abs());
            let largest = differences.fold(0.0, |most: f32, x| if x.is_nan() { f32::NAN } else { most.max(x) });
            println!("{}: {largest:.1e} from the reference at most", spec.name);
        }
        outputs.push(Output {
            name: spec.name.to_string(),
            dtype: if spec.layout.dtype == DType::U32 { DType::F32 } else { spec.layout.dtype },
            shape: spec.layout.shape.into(),
            values,
        });
    }
    Ok(outputs)
}

/// The types in which a file has tensors of this one.
fn of_file(dtype: DType) -> Vec<Dtype> {
    match dtype {
        DType::U8 => vec![Dtype::U8],
        DType::U32 => vec![Dtype::U32],
        _ => FLOATS.to_vec(),
    }
}

/// A tensor that lies as it did, with NaN in its gaps.
async fn upload(gpu: &Gpu, layout: Layout, view: &TensorView<'_>) -> Result<Tensor, Error> {
    if layout.dtype != DType::U32 {
        let values = match view.dtype() {
            Dtype::U8 => view.data().iter().map(|&x| f32::from(x)).collect(),
            dtype => decode(dtype, view.data()),
        };
        return poisoned(gpu, layout, &values).await;
    }
    // Words keep all their bits.
    let words: Vec<u32> = bytemuck::pod_collect_to_vec(view.data());
    let [_, heads, rows, width] = layout.shape;
    let place = |i: usize| {
        let index = [i / width / rows / heads, i / width / rows % heads, i / width % rows];
        layout.offset + index.iter().zip(layout.strides).map(|(i, stride)| i * stride).sum::<usize>() + i % width
    };
    let mut all = vec![u32::MAX; (0..words.len()).map(place).max().map_or(layout.offset, |last| last + 1)];
    words.iter().enumerate().for_each(|(i, &word)| all[place(i)] = word);
    Tensor::upload_u32(gpu, &all).await?.view(layout)
}
