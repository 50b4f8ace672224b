//! Repository chores: `cargo xtask check`, `cargo xtask test [--matrix]`, `cargo xtask browser`.

mod browser;
mod drivers;

use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Repository chores")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every kernel against its float64 reference on the adapters present, with figures. Makes sure that there is a
    /// Vulkan driver first.
    Check {
        /// Passed on to `wgpu-attention check`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Run the tests. Makes sure that there is a Vulkan driver first.
    Test {
        /// On three software drivers, with trusted and checked shaders, with core limits, and every shader through a
        /// browser's compiler. Installs what it needs on Debian and Ubuntu.
        #[arg(long)]
        matrix: bool,
    },
    /// Take every shader through a browser's compiler. Installs Chromium on Debian and Ubuntu.
    Browser,
}

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Check { options } => check(&options),
        Task::Test { matrix: false } => drivers::ensure_any().and_then(|()| all_tests(|_| {})),
        Task::Test { matrix: true } => matrix(),
        Task::Browser => shaders().and_then(|shaders| browser::compile(&shaders)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e}");
            ExitCode::FAILURE
        }
    }
}

/// The feature set that everything is built with, so that one build serves all.
const CLI: &str = "--features=cli";

fn check(options: &[String]) -> Result<()> {
    drivers::ensure_any()?;
    let data = "tests/data/minilm_layer3_s256.safetensors";
    let mut command = cargo(&["run", "--quiet", CLI, "--", "check", "--data", data]);
    run_quietly(command.args(options))
}

/// Every test, each benchmark once, and the examples in the documentation.
fn all_tests(set_up: impl Fn(&mut Command)) -> Result<()> {
    for what in ["--all-targets", "--doc"] {
        let mut command = cargo(&["test", "--workspace", CLI, what, "--", "--nocapture"]);
        set_up(&mut command);
        run(command)?;
    }
    Ok(())
}

/// The test programs that use a GPU.
const GPU_TESTS: [&str; 9] = [
    "--test=flash",
    "--test=neighborhood",
    "--test=backward",
    "--test=hooks",
    "--test=packed",
    "--test=merge",
    "--test=promises",
    "--test=embedding",
    "--test=errors",
];

fn matrix() -> Result<()> {
    let lavapipe = drivers::lavapipe()?;
    let swiftshader = drivers::swiftshader()?;
    let cooperative = drivers::cooperative()?;
    drivers::spirv_val()?;
    let mut summary = Vec::new();
    let mut stage = |name: &str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        let done = work();
        let verdict = if done.is_ok() { "passed" } else { "FAILED" };
        summary.push(format!("{verdict}  {:>5.0} s  {name}", start.elapsed().as_secs_f64()));
        done.map_err(|e| format!("{name}: {e}"))
    };
    let gpu = |driver: &Path, mode: &str| {
        let mut command = cargo(&["test", CLI]);
        command.args(GPU_TESTS).env("WGPU_ATTENTION_MODE", mode).args(["--", "--nocapture"]);
        run(drivers::only(&mut command, driver))
    };
    let done = [
        stage("lavapipe, all tests, trusted shaders", &mut || {
            all_tests(|command| {
                drivers::only(command, &lavapipe);
            })
        }),
        stage("lavapipe, checked shaders", &mut || gpu(&lavapipe, "checked")),
        stage("lavapipe, core WebGPU features and default limits", &mut || gpu(&lavapipe, "core")),
        stage("SwiftShader, trusted shaders", &mut || gpu(&swiftshader, "")),
        stage("SwiftShader, checked shaders, core features and limits", &mut || gpu(&swiftshader, "checked,core")),
        stage("Mesa's lavapipe with cooperative matrices, and a memory budget", &mut || {
            let mut command = cargo(&["test", CLI, "--test=memory"]);
            command.args(GPU_TESTS).env("WGPU_ATTENTION_MODE", "budget").args(["--", "--nocapture"]);
            run(cooperative.only(&mut command))
        }),
        stage("the library as WebAssembly", &mut wasm),
        stage("every shader through a browser's compiler", &mut || browser::compile(&shaders()?)),
    ];
    println!("== summary\n{}", summary.join("\n"));
    done.into_iter().collect()
}

/// The library for browsers, checked by the compiler.
fn wasm() -> Result<()> {
    run(Command::new("rustup").args(["target", "add", "wasm32-unknown-unknown"]))?;
    run(cargo(&["check", "--target=wasm32-unknown-unknown", "--features=catalogue"]))
}

/// Every shader variant, by file name.
fn shaders() -> Result<Vec<(String, String)>> {
    let folder = root().join("target/shaders");
    let _ = std::fs::remove_dir_all(&folder);
    run(cargo(&["run", "--quiet", CLI, "--", "shaders"]).arg(&folder))?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        found.push((name, std::fs::read_to_string(&path).map_err(|e| e.to_string())?));
    }
    found.sort();
    Ok(found)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").into()
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // Without a desktop session, libraries that drivers load complain where this is not set.
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        command.env("XDG_RUNTIME_DIR", std::env::temp_dir());
    }
    command
}

/// Shows the command, runs it, and fails if it fails.
fn run(mut command: impl std::borrow::BorrowMut<Command>) -> Result<()> {
    let command = command.borrow_mut();
    let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    eprintln!("$ {program} {}", words.join(" "));
    run_quietly(command)
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
    if status.success() { Ok(()) } else { Err(format!("the command ended with {status}")) }
}
