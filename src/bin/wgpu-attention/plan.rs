//! `plan`: what would run for shapes and limits, in words or as JSON. No GPU is needed.

use serde::de::DeserializeOwned;
use std::path::Path;
use std::process::ExitCode;
use wgpu_attention::gate::{SeerDecodeGate, SeerDecodeGateParams, SeerGate, SeerGateParams};
use wgpu_attention::plan::{AttentionParams, Caps, Program, Shapes};
use wgpu_attention::score_reduction::{ScoreReduction, ScoreReductionParams};
use wgpu_attention::token_lists::TokenListParams;
use wgpu_attention::{
    Attention, BlockSparseParams, Error, FlashParams, Gpu, LinearAttention, LinearParams, Merge, NeighborhoodParams,
    Prepared, Result, Rotary, RotaryParams, Rows, RowsParams,
};

#[derive(clap::Args)]
pub struct Options {
    /// What to plan.
    kernel: Kernel,
    /// Tensors and numbers by the names of the call, such as '{"q": {"dtype": "f16", "shape": [1, 8, 1024, 64]}, ..., "seqlens_k":
    /// [700]}'; a tensor may also have strides and an offset, in elements, and the name of a buffer that it shares. "wanted" lists
    /// the optional outputs that are wanted. Or the name of a file with such JSON.
    #[arg(long, value_name = "JSON|FILE")]
    shapes: String,
    /// Parameters: the fields of the kernel's params struct, such as '{"causal": "bottom_right", "softcap": 30}'.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    params: String,
    /// The limits of the device: those that WebGPU guarantees, or those in a file that `info --json` wrote.
    #[arg(long, value_name = "core|FILE", default_value = "core")]
    caps: String,
    /// Plan the gradients.
    #[arg(long)]
    backward: bool,
    /// Print the whole program as JSON, as the documentation of `Program` describes it, instead of words.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Kernel {
    /// `FlashParams`
    Flash,
    /// `NeighborhoodParams`
    Neighborhood,
    /// `BlockSparseParams`
    BlockSparse,
    /// `TokenListParams`
    TokenLists,
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
    /// `RowsParams`
    Rows,
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
    let program = options.kernel.plan(&options.params, options.backward, &caps, &shapes)?;
    if options.json {
        println!("{}", serde_json::to_string(&program).expect("a program is plain data"));
    } else {
        println!("{program}");
    }
    Ok(ExitCode::SUCCESS)
}

impl Kernel {
    /// What runs, with these params.
    pub fn plan(self, params: &str, backward: bool, caps: &Caps, shapes: &Shapes) -> Result<Program> {
        let forward_only = |plan: Result<Program>| match backward {
            true => Err(error("--backward", "set", "unset: this kernel has no gradients of its own")),
            false => plan,
        };
        match self {
            Self::Flash => attention::<FlashParams>(params, backward, caps, shapes),
            Self::Neighborhood => attention::<NeighborhoodParams>(params, backward, caps, shapes),
            Self::BlockSparse => attention::<BlockSparseParams>(params, backward, caps, shapes),
            Self::TokenLists => attention::<TokenListParams>(params, backward, caps, shapes),
            Self::ScoreReduction => forward_only(parse_params::<ScoreReductionParams>(params)?.plan(caps, shapes)),
            Self::Gate => forward_only(parse_params::<SeerGateParams>(params)?.plan(caps, shapes)),
            Self::DecodeGate => forward_only(parse_params::<SeerDecodeGateParams>(params)?.plan(caps, shapes)),
            Self::Rows => forward_only(parse_params::<RowsParams>(params)?.plan(caps, shapes)),
            Self::Merge => forward_only(shapes.plan_merge(caps)),
            Self::Linear => {
                let params: LinearParams = parse_params(params)?;
                if backward { params.plan_backward(caps, shapes) } else { params.plan(caps, shapes) }
            }
            Self::Rotary => {
                let params: RotaryParams = parse_params(params)?;
                if backward { params.plan_backward(caps, shapes) } else { params.plan(caps, shapes) }
            }
        }
    }

    /// The same, prepared on a device.
    pub async fn prepare(self, params: &str, backward: bool, gpu: &Gpu, shapes: &Shapes) -> Result<Prepared> {
        match self {
            Self::Flash => attention_on::<FlashParams>(params, backward, gpu, shapes).await,
            Self::Neighborhood => attention_on::<NeighborhoodParams>(params, backward, gpu, shapes).await,
            Self::BlockSparse => attention_on::<BlockSparseParams>(params, backward, gpu, shapes).await,
            Self::TokenLists => attention_on::<TokenListParams>(params, backward, gpu, shapes).await,
            Self::ScoreReduction => ScoreReduction::new(gpu, parse_params(params)?)?.prepare(shapes).await,
            Self::Gate => SeerGate::new(gpu, parse_params(params)?)?.prepare(shapes).await,
            Self::DecodeGate => SeerDecodeGate::new(gpu, parse_params(params)?)?.prepare(shapes).await,
            Self::Rows => Rows::new(gpu).prepare(&parse_params(params)?, shapes).await,
            Self::Merge => Merge::new(gpu).prepare(shapes).await,
            Self::Linear => {
                let linear = LinearAttention::new(gpu, parse_params(params)?)?;
                if backward { linear.prepare_backward(shapes).await } else { linear.prepare(shapes).await }
            }
            Self::Rotary => {
                let rotary = Rotary::new(gpu, parse_params(params)?)?;
                if backward { rotary.prepare_backward(shapes).await } else { rotary.prepare(shapes).await }
            }
        }
    }
}

fn attention<P: AttentionParams + DeserializeOwned>(
    params: &str,
    backward: bool,
    caps: &Caps,
    shapes: &Shapes,
) -> Result<Program> {
    let params: P = parse_params(params)?;
    if backward { params.plan_backward(caps, shapes) } else { params.plan(caps, shapes) }
}

async fn attention_on<P: AttentionParams + DeserializeOwned>(
    params: &str,
    backward: bool,
    gpu: &Gpu,
    shapes: &Shapes,
) -> Result<Prepared> {
    let attention = Attention::<P>::new(gpu, parse_params(params)?)?;
    if backward { attention.prepare_backward(shapes).await } else { attention.prepare(shapes).await }
}

fn parse_params<T: DeserializeOwned>(text: &str) -> Result<T> {
    parse("--params", text)
}

fn read(argument: &str, file: &str) -> Result<String> {
    std::fs::read_to_string(Path::new(file)).map_err(|e| error(argument, file, format!("a file that can be read: {e}")))
}

pub fn parse<T: DeserializeOwned>(argument: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| error(argument, text, format!("JSON as described in --help: {e}")))
}

fn error(argument: &str, value: &str, bound: impl Into<String>) -> Error {
    Error::Argument { argument: argument.into(), value: value.into(), bound: bound.into() }
}
