//! `run`: a kernel on the tensors of a file.

mod attention;
mod block_sparse;
pub mod call;
mod causal;
pub mod file;
mod flash;
mod gate;
mod gradients;
mod linear;
mod linear_gate;
mod linear_heads;
mod neighborhood;
mod rows;
mod sequences;
mod token_lists;

use file::{Destination, Inputs, Order};
use std::path::PathBuf;
use std::process::ExitCode;
use wgpu_attention::{DType, Result};

#[derive(clap::Args)]
pub struct Options {
    /// What to compute.
    kernel: Kernel,
    /// A safetensors file with the tensors by name: see `wgpu-attention run --help`.
    input: PathBuf,
    /// Where the results go: a safetensors file too.
    output: PathBuf,
    /// Parameters: the fields of the kernel's params struct, such as '{"causal": true, "softcap": 30}'. causal is true, false,
    /// "bottom_right" (the same as true) or "top_left"; for neighborhoods, one for all axes or an array of these.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    params: String,
    /// [B, H, N, D] or [B, N, H, D], for inputs and outputs.
    #[arg(long, default_value = "heads-first")]
    layout: Order,
    /// Convert the floating-point inputs to this type first.
    #[arg(long)]
    dtype: Option<Type>,
    /// What computes: the kernel, or the float64 reference on the CPU.
    #[arg(long, default_value = "gpu")]
    backend: Backend,
    /// Use the adapter whose name contains this, ignoring case.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Compute the gradients: reads dout too and, if it is there, dlse; writes the gradients instead of the output.
    #[arg(long)]
    backward: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kernel {
    /// Reads q k v and, if they are there, bias mask seqlens_q seqlens_k cu_seqlens_q cu_seqlens_k alibi_slopes additional_k
    /// additional_v; writes out lse. With --backward, it also reads dout and, if it is there, dlse; it writes dq dk dv dbias
    /// d_additional_k d_additional_v.
    Flash,
    /// Reads q k v, the mask [B or 1, H, key heads or 1, blocks of queries, blocks of keys] and, if they are there, seqlens_q
    /// seqlens_k cu_seqlens_q cu_seqlens_k additional_k additional_v; writes the same. Parameters: block, an array of queries and
    /// keys, by default [64, 64]; causal; scale; softcap. Instead of a mask, it takes SeerAttention's gate: q_pre k_pre gate_wk
    /// [H, features, width] and optionally gate_wq; with gate_wq [key heads, group, D, width] the gate for decoding, with
    /// gate_qnorm gate_knorm. It then writes mask gate_logits gate_scores too. Parameters: selector, {"threshold": t},
    /// {"density": r}, {"top_p": p} or {"budget": keys}; sink; diagonal; last_rows_dense; pool_q and pool_k, arrays of "max" "min"
    /// "avg"; rope_theta; target, true for the training target.
    BlockSparse,
    /// Reads q k v and, if they are there, g (the log-space gate of each token and head), slopes (one per head), h0, cu_seqlens;
    /// writes o ht. Parameters: rule, "linear"; algorithm, "auto", "recurrent", "one_pass" or "three_pass"; scale; causal, by
    /// default true; reverse. With --backward, it also reads do and, if it is there, dht; it writes dq dk dv dg dslopes dh0.
    Linear,
    /// Reads q k v and, if they are there, additional_k additional_v; writes the same. The tokens are a grid in row-major order.
    /// Parameters: the arrays space and window and, if wanted, stride and dilation, with one entry per axis; causal; scale.
    Neighborhood,
    /// Reads x [B, H, N, D] and index, u32 [B or 1, H or 1, L], of its rows (4294967295: none), and writes out [B, H, L, D]; or reads y [B, H, L,
    /// D] and index and writes out [B, H, n, D]: the rows of y with the same index put together, 0 where there is none. Parameters:
    /// n; reduce, "sum", the default, or "mean".
    Rows,
    /// Reads a problem that `check --problems` wrote: the kernel, its params and its layouts are in the file, and options other
    /// than --adapter are refused. Writes what the kernel writes, and prints how far that is from the float64 reference.
    Problem,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Type {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    Gpu,
    Reference,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let dtype = options.dtype.map(|dtype| match dtype {
        Type::F32 => DType::F32,
        Type::F16 => DType::F16,
        Type::Bf16 => DType::Bf16,
    });
    if let Kernel::Problem = options.kernel {
        return problem(options);
    }
    let inputs = Inputs::read(&options.input, options.layout, dtype)?;
    let destination = Destination::new(&options.output, &options.input)?;
    let outputs = match options.kernel {
        Kernel::Flash => flash::problem(options, &inputs)?.run(options, &inputs)?,
        Kernel::BlockSparse => block_sparse::run(options, &inputs)?,
        Kernel::Linear => linear::run(options, &inputs)?,
        Kernel::Neighborhood => neighborhood::problem(options, &inputs)?.run(options, &inputs)?,
        Kernel::Rows => rows::run(options, &inputs)?,
        Kernel::Problem => unreachable!("it has its own way"),
    };
    destination.write(&outputs)?;
    for output in &outputs {
        println!("{} {:?} {}", output.name, output.shape, output.dtype);
    }
    let converted = inputs.converted();
    if !converted.is_empty() {
        println!("taken as F32, not F64: {}", converted.join(", "));
    }
    let unread = inputs.unread();
    if !unread.is_empty() {
        println!("not read: {}", unread.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

fn problem(options: &Options) -> Result<ExitCode> {
    let given = [
        ("--params", options.params != "{}"),
        ("--layout", options.layout != Order::HeadsFirst),
        ("--dtype", options.dtype.is_some()),
        ("--backend", options.backend != Backend::Gpu),
        ("--backward", options.backward),
    ];
    if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
        return Err(file::error(name, "set", "unset: the file says what runs"));
    }
    let destination = Destination::new(&options.output, &options.input)?;
    let outputs = pollster::block_on(async {
        let gpu = attention::request(options.adapter.as_deref()).await?;
        crate::problem::run(&options.input, &gpu).await
    })?;
    destination.write_tensors(&outputs, None)?;
    for (name, dtype, shape, _) in &outputs {
        println!("{name} {shape:?} {dtype:?}");
    }
    Ok(ExitCode::SUCCESS)
}
