//! Problems as files: a kernel with its params, where its tensors lie and what is in them, and what must come out.
//!
//! A safetensors file. Its metadata have `kernel`, `params`, `shapes` and `backward` as `plan` takes them, and `case`, the problem in
//! words; its tensors are those of the call, and `expected.NAME`.

use super::plan::{self, Kernel};
use super::run::call::Uploaded;
use super::run::file::{Destination, Encoded, decode, encode, error};
use clap::ValueEnum;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use wgpu_attention::catalogue::{Problem, poisoned_bytes};
use wgpu_attention::plan::Shapes;
use wgpu_attention::{DType, Gpu, Result, Tensor};

/// Names of what must come out begin so.
const EXPECTED: &str = "expected.";

/// Writes a problem, whole or not at all.
pub async fn write(path: &Path, case: &str, problem: &Problem) -> Result<()> {
    let destination = Destination::of(path)?;
    let (mut shapes, mut tensors) = (serde_json::Map::new(), vec![]);
    for (name, tensor) in problem.ready.tensors() {
        shapes.insert(name.to_string(), serde_json::to_value(tensor.layout()).expect("plain data"));
        tensors.push(read(name, tensor).await?);
    }
    for (name, numbers) in &problem.ready.plan().numbers {
        shapes.insert(name.to_string(), json!(numbers));
    }
    for (name, values) in &problem.expected {
        let (dtype, bytes) = encode(DType::F32, &values.iter().map(|&x| x as f32).collect::<Vec<_>>());
        tensors.push((format!("{EXPECTED}{name}"), dtype, vec![values.len()], bytes));
    }
    let metadata = HashMap::from([
        ("kernel".into(), problem.params.kernel().into()),
        ("params".into(), serde_json::to_string(&problem.params).expect("plain data")),
        ("shapes".into(), serde_json::Value::Object(shapes).to_string()),
        ("backward".into(), problem.backward.to_string()),
        ("case".into(), case.into()),
    ]);
    destination.write_tensors(&tensors, Some(metadata))
}

/// A tensor as a file has it.
async fn read(name: &str, tensor: &Tensor) -> Result<Encoded> {
    let (dtype, bytes) = match tensor.layout().dtype {
        DType::U32 => (Dtype::U32, bytemuck::cast_slice(&tensor.read_u32().await?).to_vec()),
        dtype => encode(dtype, &tensor.read().await?),
    };
    Ok((name.into(), dtype, tensor.shape().into(), bytes))
}

/// Runs the problem of a file, and says how far its results are from what is expected.
pub async fn run(path: &Path, gpu: &Gpu) -> Result<Vec<Encoded>> {
    let file = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|e| error(&file, format!("\"{e}\""), "a readable file"))?;
    let broken = |e: safetensors::SafeTensorError| error(&file, format!("\"{e}\""), "a safetensors file");
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let found = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let said = |name: &str| {
        let said = metadata.metadata().as_ref().and_then(|all| all.get(name)).map(String::as_str);
        said.ok_or_else(|| error(&file, format!("without \"{name}\" in its metadata"), "a problem that `check` wrote"))
    };
    let kernel = said("kernel")?;
    let bound = || "a kernel that `plan` takes: see `wgpu-attention plan --help`";
    let kernel = Kernel::from_str(kernel, false).map_err(|_| error("kernel", kernel, bound()))?;
    let shapes: Shapes = plan::parse("shapes", said("shapes")?)?;
    let (params, backward) = (said("params")?, said("backward")?);
    let backward = backward.parse().map_err(|_| error("backward", backward, "true or false"))?;
    // What the layouts say is wrong is told before anything is made of them.
    let program = kernel.plan(params, backward, gpu.caps(), &shapes)?;
    let mut call = Uploaded::empty(gpu);
    for spec in &program.tensors {
        let Some(layout) = shapes.layout(&spec.name) else { continue };
        let view =
            found.tensor(&spec.name).map_err(|e| error(&file, format!("\"{e}\""), format!("with {}", spec.name)))?;
        let (dtype, _) = encode(layout.dtype, &[]);
        let dtype = if layout.dtype == DType::U32 { Dtype::U32 } else { dtype };
        if view.shape() != layout.shape || view.dtype() != dtype {
            let value = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(error(&spec.name, value, format!("{dtype:?} {:?}, to match shapes", layout.shape)));
        }
        let tensor = poisoned_bytes(gpu, layout.clone(), view.data()).await?;
        call.tensors.insert(spec.name.clone(), tensor);
    }
    println!("{}\n{}", said("case")?, gpu.caps());
    let prepared = kernel.prepare(params, backward, gpu, &shapes).await?;
    println!("{}", prepared.plan());
    if let Some(spec) = program.tensors.iter().find(|spec| !spec.written && !call.tensors.contains_key(&spec.name)) {
        return Err(error(&file, format!("without {}", spec.name), "a file with all that the kernel reads"));
    }
    call.run(&prepared).await?;
    let mut outputs = vec![];
    for spec in program.tensors.iter().filter(|spec| spec.written) {
        let tensor = &call.tensors[&spec.name];
        outputs.push(read(&spec.name, tensor).await?);
        let name = format!("{EXPECTED}{}", spec.name);
        if let Ok(view) = found.tensor(&name) {
            let values = tensor.read().await?;
            if view.dtype() != Dtype::F32 || view.shape() != [values.len()] {
                let value = format!("{:?} {:?}", view.dtype(), view.shape());
                return Err(error(name, value, format!("F32 [{}], like {}", values.len(), spec.name)));
            }
            let expected = decode(Dtype::F32, view.data());
            println!("{}: {:.1e} from the reference at most", spec.name, largest_difference(&values, &expected));
        }
    }
    Ok(outputs)
}

/// NaN where one of them has a NaN and the other has not.
fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    let differs = |(a, b): &(&f32, &f32)| a != b && !(a.is_nan() && b.is_nan());
    let differences = found.iter().zip(expected).filter(differs).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, x| if most.is_nan() || x.is_nan() { f32::NAN } else { most.max(x) })
}
