//! Repository chores: `cargo xtask check`, `cargo xtask test [--matrix]`, `cargo xtask browser`.

mod browser;
mod drivers;
mod stages;

use clap::{Parser, Subcommand};
use stages::Stage;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

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
        Task::Test { matrix: false } => drivers::ensure_any().and_then(|()| all_tests().into_iter().try_for_each(run)),
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
fn all_tests() -> Vec<Command> {
    ["--all-targets", "--doc"].map(|what| cargo(&["test", "--workspace", CLI, what, "--", "--nocapture"])).into()
}

/// The test programs that use a GPU.
const GPU_TESTS: [&str; 17] = [
    "--test=flash",
    "--test=neighborhood",
    "--test=block_sparse",
    "--test=block_masks",
    "--test=score_reduction",
    "--test=rotary",
    "--test=gate",
    "--test=gate_decode",
    "--test=linear",
    "--test=linear_golden",
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
    run(cargo(&["test", "--workspace", CLI, "--all-targets", "--no-run"]))?;
    let gpu = |tests: &[&str], mode: &str, on: &dyn Fn(&mut Command)| {
        let mut command = cargo(&["test", CLI]);
        command.args(tests).env("WGPU_ATTENTION_MODE", mode).args(["--", "--nocapture"]);
        on(&mut command);
        vec![command]
    };
    let on = |driver: &Path| {
        let driver = driver.to_path_buf();
        move |command: &mut Command| {
            drivers::only(command, &driver);
        }
    };
    let on_cooperative = |command: &mut Command| {
        cooperative.only(command);
    };
    let mut all = all_tests();
    all.iter_mut().for_each(on(&lavapipe));
    // A software driver compiles on one core: two stages at a time.
    let together = vec![
        Stage::of("every shader through a browser's compiler", |_| browser::compile(&shaders()?)),
        Stage::new("lavapipe, all tests, trusted shaders", all),
        Stage::new("lavapipe, checked shaders", gpu(&GPU_TESTS, "checked", &on(&lavapipe))),
        Stage::new("Mesa's lavapipe with cooperative matrices", gpu(&GPU_TESTS, "", &on_cooperative)),
        Stage::new("lavapipe, core WebGPU features and default limits", gpu(&GPU_TESTS, "core", &on(&lavapipe))),
        Stage::new("SwiftShader, trusted shaders", gpu(&GPU_TESTS, "", &on(&swiftshader))),
        Stage::new(
            "SwiftShader, checked shaders, core features and limits",
            gpu(&GPU_TESTS, "checked,core", &on(&swiftshader)),
        ),
        Stage::new("the library as WebAssembly", wasm()),
    ];
    let mut done = stages::two_at_a_time(together);
    // Others would use the memory that it counts.
    let memory = gpu(&["--test=memory"], "budget", &on_cooperative);
    done.extend(stages::two_at_a_time(vec![Stage::new("a driver that says how much memory it grants", memory)]));
    println!("== summary");
    done.iter().for_each(|done| println!("{done}"));
    done.into_iter().try_for_each(|done| done.result)
}

/// The library for browsers, checked by the compiler.
fn wasm() -> Vec<Command> {
    let mut target = Command::new("rustup");
    target.args(["target", "add", "wasm32-unknown-unknown"]);
    vec![target, cargo(&["check", "--target=wasm32-unknown-unknown", "--features=catalogue"])]
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
    eprintln!("$ {}", shown(command));
    run_quietly(command)
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{program} {}", words.join(" "))
}

fn run_quietly(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|e| format!("{}: {e}", command.get_program().to_string_lossy()))?;
    if status.success() { Ok(()) } else { Err(format!("the command ended with {status}")) }
}
