//! The command line: what the adapters can do, and whether every kernel is right on them.

mod check;
mod info;
mod plan;
mod problem;
mod run;
mod text;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use wgpu_attention::plan::Engine;
use wgpu_attention::{Error, Gpu, GpuOptions};

#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the adapters, what each can do, which kernel variants run, and why the others do not.
    Info {
        #[command(flatten)]
        device: Device,
        /// Print what planning looks at for each adapter, as JSON: with one adapter, a file for `plan --caps`.
        #[arg(long)]
        json: bool,
    },
    /// Say what would run for shapes and limits, in words or as JSON that any WebGPU program can run. No GPU is needed.
    Plan(plan::Options),
    /// Run every kernel against its float64 reference on every adapter present. Exits with 1 if a case fails.
    Check(check::Options),
    /// Run a kernel on the tensors of a file.
    ///
    /// Token tensors are [B, H, N, D], or [B, N, H, D] with --layout heads-last; packed ones are [total, H, D], with cu_seqlens_q
    /// and cu_seqlens_k. Lengths and offsets are I32 or U32, a mask is U8 or BOOL, and other tensors are F32, F16 or BF16; F64,
    /// numpy's default, is taken as F32. Outputs have the type of q; lse is f32, [B, H, N] or, if packed, [H, total]. An error is
    /// one line, with exit code 2, and leaves no output behind.
    Run(run::Options),
    /// Write the WGSL text of every kernel variant to a folder, for people and other compilers to read.
    Shaders {
        /// The folder; created if it does not exist.
        folder: PathBuf,
    },
}

/// Which adapters, and how to set them up.
#[derive(clap::Args)]
struct Device {
    /// Use only adapters whose name contains this, ignoring case.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Ask for WebGPU's default limits and no optional feature.
    #[arg(long)]
    core: bool,
    /// Keep bounds checks and loop guards in the shaders.
    #[arg(long)]
    checked: bool,
    /// What goes over tiles and tokens: portable (everywhere) or processor (adapters whose shaders run on a CPU).
    #[arg(long, value_name = "ENGINE", value_parser = engine)]
    engine: Option<Engine>,
}

fn engine(name: &str) -> Result<Engine, String> {
    let known = [Engine::Portable, Engine::Processor];
    let found = known.into_iter().find(|engine| engine.to_string() == name);
    found.ok_or_else(|| format!("it must be one of {}", known.map(|engine| engine.to_string()).join(", ")))
}

impl Device {
    fn options(&self) -> GpuOptions {
        GpuOptions {
            adapter: self.adapter.clone(),
            core_limits: self.core,
            checked_shaders: self.checked,
            engine: self.engine,
            ..GpuOptions::default()
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => return refuse(&one_line(&e.to_string())),
        Err(e) => e.exit(),
    };
    let result = match cli.command {
        Command::Info { device, json } => info::info(&device.options(), json),
        Command::Plan(options) => plan::plan(&options),
        Command::Check(options) => check::check(&options),
        Command::Shaders { folder } => info::shaders(&folder),
        Command::Run(options) => run::run(&options),
    };
    result.unwrap_or_else(|e| refuse(&one_line(&e.to_string())))
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("wgpu-attention: {message}");
    ExitCode::from(2)
}

/// What is wrong, without the hints on usage that follow it.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information")).collect();
    lines.join(" ").trim_start_matches("error: ").to_string()
}

/// The error of a device that was not given, with what there is to say where no adapter is.
fn no_gpu(options: &GpuOptions, error: Error) -> Error {
    match error {
        Error::NoAdapter { .. } if options.adapter.is_none() => no_adapter(options),
        other => other,
    }
}

/// What there is to say where no adapter is: which others there are, if a name was asked for.
fn no_adapter(options: &GpuOptions) -> Error {
    if options.adapter.is_some() && !pollster::block_on(Gpu::request_all(&GpuOptions::default())).is_empty() {
        let named = pollster::block_on(Gpu::request_with(options));
        return named.err().unwrap_or_else(|| Error::NoAdapter { reason: "it came and went".into() });
    }
    let reason = "none found; install the GPU's Vulkan driver, or a software one (Debian, Ubuntu: mesa-vulkan-drivers; Fedora: \
                  mesa-vulkan-drivers vulkan-loader; Arch: vulkan-swrast)";
    Error::NoAdapter { reason: reason.into() }
}
