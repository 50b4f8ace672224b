//! The command line: what the adapters can do, and whether every kernel is right on them.

mod check;
mod info;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use wgpu_attention::{Error, GpuOptions};

#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the adapters, what each can do, which kernel variants run and why not the others.
    Info {
        #[command(flatten)]
        device: Device,
    },
    /// Run every kernel against its float64 reference on every adapter present. Exits with 1 if a case fails.
    Check(check::Options),
    /// Write the WGSL text of every kernel variant to a folder, to be read or given to other compilers.
    Shaders {
        /// The folder; made if it is not there.
        folder: PathBuf,
    },
}

/// Which adapters, and how to set them up.
#[derive(clap::Args)]
struct Device {
    /// Only adapters whose name contains this, in any case.
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Ask for WebGPU's default limits and no optional feature.
    #[arg(long)]
    core: bool,
    /// Keep bounds checks and loop guards in the shaders.
    #[arg(long)]
    checked: bool,
}

impl Device {
    fn options(&self) -> GpuOptions {
        GpuOptions { adapter: self.adapter.clone(), core_limits: self.core, checked_shaders: self.checked }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Info { device } => info::info(&device.options()),
        Command::Check(options) => check::check(&options),
        Command::Shaders { folder } => info::shaders(&folder),
    };
    result.unwrap_or_else(|e| {
        eprintln!("wgpu-attention: {e}");
        ExitCode::from(2)
    })
}

/// What there is to say where no adapter is.
fn no_adapter(options: &GpuOptions) -> Error {
    let wanted = options.adapter.as_ref().map_or(String::new(), |name| format!(" named \"{name}\""));
    let reason = format!(
        "none{wanted} found; install the GPU's Vulkan driver, or a software one (Debian, Ubuntu: mesa-vulkan-drivers; \
         Fedora: mesa-vulkan-drivers vulkan-loader; Arch: vulkan-swrast)"
    );
    Error::NoAdapter { reason }
}
