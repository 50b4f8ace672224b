//! `plan`: what would run for shapes and limits, in words or as JSON. No GPU is needed.

use serde::de::DeserializeOwned;
use std::path::Path;
use std::process::ExitCode;
use wgpu_attention::{
    AttentionParams, BlockSparseParams, Caps, Error, FlashParams, LinearParams, NeighborhoodParams, Program, Result,
    RotaryParams, ScoreReductionParams, SeerDecodeGateParams, SeerGateParams, Shapes,
};

#[derive(clap::Args)]
pub struct Options {
    /// What to plan.
    kernel: Kernel,
    /// Tensors and numbers by the names of the call, such as '{"q": {"dtype": "f16", "shape": [1, 8, 1024, 64]}, ..., "seqlens_k":
    /// [700]}'; a tensor may have strides and offset, in elements, and a buffer's name, where it shares one. "wanted" has the names
    /// of outputs that may be left out. Or the name of a file with such JSON.
    #[arg(long, value_name = "JSON|FILE")]
    shapes: String,
    /// Parameters: the fields of the kernel's params struct, such as '{"causal": "bottom_right", "softcap": 30}'.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    params: String,
    /// The limits of the device: those that WebGPU promises, or of a file that `info --json` wrote.
    #[arg(long, value_name = "core|FILE", default_value = "core")]
    caps: String,
    /// The gradients.
    #[arg(long)]
    backward: bool,
    /// The whole program as JSON, as the documentation of `Program` describes it, instead of words.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kernel {
    /// `FlashParams`
    Flash,
    /// `NeighborhoodParams`
    Neighborhood,
    /// `BlockSparseParams`
    BlockSparse,
    /// `ScoreReductionParams`
    ScoreReduction,
    /// `SeerGateParams`
    Gate,
    /// `SeerDecodeGateParams`
    DecodeGate,
    /// `LinearParams`
    Linear,
    /// No params
    Merge,
    /// `RotaryParams`
    Rotary,
}

pub fn plan(options: &Options) -> Result<ExitCode> {
    let text = if options.shapes.trim_start().starts_with('{') {
        options.shapes.clone()
    } else {
        read("--shapes", &options.shapes)?
    };
    let shapes: Shapes = parse("--shapes", &text)?;
    let caps = match &*options.caps {
        "core" => Caps::core(),
        file => parse::<Caps>("--caps", &read("--caps", file)?)?,
    };
    let program = program(options, &caps, &shapes)?;
    if options.json {
        println!("{}", serde_json::to_string(&program).expect("a program is plain data"));
    } else {
        println!("{program}");
    }
    Ok(ExitCode::SUCCESS)
}

fn program(options: &Options, caps: &Caps, shapes: &Shapes) -> Result<Program> {
    let (params, backward) = (&options.params, options.backward);
    let forward_only = |plan: Result<Program>| match backward {
        true => Err(error("--backward", "set", "unset: this kernel has no gradients of its own")),
        false => plan,
    };
    match options.kernel {
        Kernel::Flash => attention::<FlashParams>(params, backward, caps, shapes),
        Kernel::Neighborhood => attention::<NeighborhoodParams>(params, backward, caps, shapes),
        Kernel::BlockSparse => attention::<BlockSparseParams>(params, backward, caps, shapes),
        Kernel::ScoreReduction => forward_only(parse::<ScoreReductionParams>("--params", params)?.plan(caps, shapes)),
        Kernel::Gate => forward_only(parse::<SeerGateParams>("--params", params)?.plan(caps, shapes)),
        Kernel::DecodeGate => forward_only(parse::<SeerDecodeGateParams>("--params", params)?.plan(caps, shapes)),
        Kernel::Merge => forward_only(shapes.plan_merge(caps)),
        Kernel::Linear => {
            let params: LinearParams = parse("--params", params)?;
            if backward { params.plan_backward(caps, shapes) } else { params.plan(caps, shapes) }
        }
        Kernel::Rotary => {
            let params: RotaryParams = parse("--params", params)?;
            if backward { params.plan_backward(caps, shapes) } else { params.plan(caps, shapes) }
        }
    }
}

fn attention<P: AttentionParams + DeserializeOwned>(
    params: &str,
    backward: bool,
    caps: &Caps,
    shapes: &Shapes,
) -> Result<Program> {
    let params: P = parse("--params", params)?;
    if backward { params.plan_backward(caps, shapes) } else { params.plan(caps, shapes) }
}

fn read(argument: &str, file: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(file)).map_err(|e| error(argument, file, format!("a file that can be read: {e}")))
}

fn parse<T: DeserializeOwned>(argument: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| error(argument, text, format!("JSON of what is described in --help: {e}")))
}

fn error(argument: &str, value: &str, bound: impl Into<String>) -> Error {
    Error::Argument { argument: argument.into(), value: value.into(), bound: bound.into() }
}
