//! Chores that need a browser: every shader through its compiler, and the web example, built, served and tested.

mod build;
mod page;
mod peer;
mod serve;
mod shaders;
mod tests;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "Chores that need a browser")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Compile every WGSL file of a folder in Chromium.
    Shaders { folder: PathBuf, chromium: PathBuf },
    /// Build the web example into a folder, and serve it.
    Web {
        /// Where its files go.
        #[arg(long)]
        out: PathBuf,
        /// Serve them after that, at this port (0: any).
        #[arg(long)]
        serve: Option<u16>,
    },
    /// Show a page of a folder in Chromium, and print what it writes.
    Page { folder: PathBuf, chromium: PathBuf, name: String },
    /// Drive the built example in Chromium.
    Test {
        folder: PathBuf,
        chromium: PathBuf,
        /// Where screenshots go.
        #[arg(long)]
        screenshots: PathBuf,
        /// Every case of the catalogue, not some of each family.
        #[arg(long)]
        all: bool,
    },
}

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Shaders { folder, chromium } => shaders::compile(&folder, &chromium),
        Task::Web { out, serve: port } => build::web(&out).and_then(|()| match port {
            Some(port) => serve::forever(&out, port),
            None => Ok(()),
        }),
        Task::Page { folder, chromium, name } => peer::run(&folder, &chromium, &name),
        Task::Test { folder, chromium, screenshots, all } => tests::run(&folder, &chromium, &screenshots, all),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What went wrong with a file.
fn of_file(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{}: {e}", path.display())
}
