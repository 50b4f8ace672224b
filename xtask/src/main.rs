//! Repository chores: `cargo xtask check`, `cargo xtask test [--matrix]`, `cargo xtask fuzz`, `cargo xtask portable`,
//! `cargo xtask spell`, `cargo xtask web`, `cargo xtask browser`.

mod drivers;
mod dxc;
mod portable;
mod stages;

use clap::{Parser, Subcommand};
use stages::{Shown, Stage};
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
    /// Compare every kernel with its float64 reference on the adapters present, and show times. First makes sure that there is a
    /// Vulkan driver.
    #[command(disable_help_flag = true)]
    Check {
        /// Passed on to `wgpu-attention check`; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Run the tests. First makes sure that there is a Vulkan driver. From the lists of cases, it takes only a few, which run every kernel
    /// and have every feature at least once.
    Test {
        /// Run every case of the lists.
        #[arg(long, conflicts_with = "matrix")]
        all: bool,
        /// Run the tests on three software drivers, with trusted and checked shaders, and with core limits; take every shader
        /// through a browser's compiler, and drive the web example in a browser. Installs what it needs on Debian and Ubuntu.
        #[arg(long)]
        matrix: bool,
    },
    /// Check what can be checked for other platforms: compile for Windows, macOS, Linux on Arm and Android; take every shader's HLSL
    /// through Microsoft's compiler; run some tests as Windows programs under Wine. Installs what it needs on Debian and Ubuntu.
    Portable {
        /// Do only this part.
        #[arg(value_enum)]
        part: Option<portable::Part>,
    },
    /// Make random calls of the public API, many of them wrong, for some minutes.
    Fuzz {
        /// For how many minutes.
        #[arg(long, value_name = "M", default_value_t = 30)]
        minutes: u64,
        /// The number of the first attempt; each attempt is made from its number.
        #[arg(long, value_name = "N", default_value_t = 0)]
        first: u64,
    },
    /// Look for misspelled words in documentation, comments and texts. Installs codespell on Debian and Ubuntu.
    Spell,
    /// Take every shader through a browser's compiler. Installs Chromium on Debian and Ubuntu.
    Browser,
    /// Show a page from a folder in headless Chromium, and print what it writes: for pages that measure.
    Page { folder: PathBuf, name: String },
    /// Build the web example and serve it.
    Web {
        /// Write the static files to this folder instead of serving them.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// The port to serve on; 0 takes any that is free.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// Drive it in headless Chromium instead. Screenshots go to target/screenshots. Installs Chromium on Debian and Ubuntu.
        #[arg(long, conflicts_with = "out")]
        test: bool,
        /// With --test, run every case of the catalogue instead of some of each family.
        #[arg(long, requires = "test")]
        all: bool,
    },
}

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Check { options } => check(&options),
        Task::Test { matrix: true, .. } => matrix(),
        Task::Test { all, .. } => test(all),
        Task::Portable { part } => portable::all(part),
        Task::Fuzz { minutes, first } => drivers::ensure_any().and_then(|()| fuzz(minutes, first)),
        Task::Spell => spell(),
        Task::Browser => browser_compiles().and_then(run_all),
        Task::Page { folder, name } => page(&folder, &name),
        Task::Web { out: Some(out), .. } => web_target().and_then(|()| run(build_web(&out))),
        Task::Web { test: true, all, .. } => web_target().and_then(|()| web_tests(all)).and_then(run_all),
        Task::Web { port, .. } => {
            web_target().and_then(|()| run(build_web(&web_folder()).arg(format!("--serve={port}"))))
        }
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
    let mut command = cargo(&["run", "--quiet", CLI, "--", "check"]);
    if options.iter().any(|option| option == "--help" || option == "-h") {
        return run_quietly(command.args(options));
    }
    drivers::ensure_any()?;
    if !options.iter().any(|option| option.starts_with("--data")) {
        command.args(["--data", "tests/data/minilm_layer3_s256.safetensors"]);
    }
    run_quietly(command.args(options))
}

/// Builds, then runs every test program, each benchmark once, and the examples in the documentation.
fn test(all: bool) -> Result<()> {
    let start = Instant::now();
    drivers::ensure_any()?;
    run(cargo(&["test", CLI, "--all-targets", "--no-run"]))?;
    let built = start.elapsed();
    let mut parts: Vec<Vec<String>> = tests()?.into_iter().map(|name| vec![format!("--test={name}")]).collect();
    let others = [vec!["--doc".to_string()], ["--lib", "--bins", "--examples", "--benches"].map(String::from).into()];
    parts.splice(LONG_TESTS.len()..LONG_TESTS.len(), others);
    let stage = |part: Vec<String>| {
        let mut command = cargo(&["test", CLI]);
        command.args(&part).args(["--", "--nocapture"]);
        drivers::quickly(&mut command);
        if !all {
            command.env("WGPU_ATTENTION_SHARE", "sample");
        }
        Stage::new(part.join(" ").replace("--test=", "").replace("--", ""), vec![command])
    };
    let done = stages::two_at_a_time(parts.into_iter().map(stage).collect(), Shown::Failures);
    let tested = start.elapsed() - built;
    let passed: usize = done.iter().map(|done| done.tests).sum();
    println!("{passed} tests passed; built in {:.0} s, tested in {:.0} s", built.as_secs_f64(), tested.as_secs_f64());
    done.into_iter().try_for_each(|done| done.result)
}

/// Every test, each benchmark once, and the examples in the documentation.
fn all_tests() -> Vec<Command> {
    ["--all-targets", "--doc"].map(|what| cargo(&["test", CLI, what, "--", "--nocapture"])).into()
}

fn fuzz(minutes: u64, first: u64) -> Result<()> {
    let mut command = cargo(&["test", CLI, "--test=fuzz", "--", "--nocapture"]);
    run(command.env("WGPU_ATTENTION_FUZZ", format!("{},{first}", minutes.saturating_mul(60))))
}

/// All that people read, of what git knows or will.
fn spell() -> Result<()> {
    let program = drivers::codespell()?;
    let mut list = Command::new("git");
    list.current_dir(root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = list.args(["*.md", "*.rs", "*.wgsl", "*.html", "*.js", "*.toml"]).output();
    let listed = String::from_utf8(listed.map_err(|e| format!("git: {e}"))?.stdout).map_err(|e| e.to_string())?;
    let files: Vec<&str> = listed.lines().collect();
    if files.is_empty() {
        return Err("git lists no file: is this a clone?".into());
    }
    run_quietly(Command::new(program).current_dir(root()).args(&files))?;
    println!("{} files have no misspelled word that codespell knows", files.len());
    Ok(())
}

/// The test programs that use no GPU, or go by themselves.
const HOST_TESTS: [&str; 7] = ["cli", "floors", "memory", "run", "run_forms", "run_linear", "shaders"];

/// Those that take longest: they go first, so that none is left over for one core.
const LONG_TESTS: [&str; 6] = ["flash", "block_sparse", "neighborhood", "linear", "shaders", "score_reduction"];

/// The test programs.
fn tests() -> Result<Vec<String>> {
    let mut found = vec![];
    let folder = root().join("tests");
    let unreadable = |e: std::io::Error| format!("{}: {e}", folder.display());
    for entry in std::fs::read_dir(&folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(name.to_string());
        }
    }
    found.sort_by_key(|name| {
        (LONG_TESTS.iter().position(|long| long == name).unwrap_or(LONG_TESTS.len()), name.clone())
    });
    Ok(found)
}

fn matrix() -> Result<()> {
    let lavapipe = drivers::lavapipe()?;
    let swiftshader = drivers::swiftshader()?;
    let cooperative = drivers::cooperative()?;
    drivers::spirv_val()?;
    web_target()?;
    run(cargo(&["test", CLI, "--all-targets", "--no-run"]))?;
    run(cargo(&["build", BROWSER]))?;
    let tests: Vec<String> = tests()?
        .into_iter()
        .filter(|name| !HOST_TESTS.contains(&&**name))
        .map(|name| format!("--test={name}"))
        .collect();
    let tests: Vec<&str> = tests.iter().map(String::as_str).collect();
    // A mode, and the share of the cases that it takes.
    let gpu = |tests: &[&str], (mode, share): (&str, &str), on: &dyn Fn(&mut Command)| {
        let mut command = cargo(&["test", CLI]);
        command.args(tests).args(["--", "--nocapture"]);
        command.env("WGPU_ATTENTION_MODE", mode).env("WGPU_ATTENTION_SHARE", share);
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
    // Software drivers compile a shader for a second and run it for a millisecond. So all cases run on SwiftShader in the strictest mode,
    // a quarter of them on lavapipe, and shares of the others in the other modes. What is no list of cases runs in every mode.
    let mut all = all_tests();
    all.iter_mut().for_each(on(&lavapipe));
    all.iter_mut().for_each(|command| {
        command.env("WGPU_ATTENTION_SHARE", "0/4");
    });
    let attention = ["--test=flash", "--test=neighborhood", "--test=block_sparse"];
    // A software driver compiles on one core: two stages at a time.
    let together = vec![
        Stage::new("every shader through a browser's compiler", browser_compiles()?),
        Stage::new("lavapipe, all tests, trusted shaders, a quarter of the cases", all),
        Stage::new("lavapipe, checked shaders, an eighth", gpu(&tests, ("checked", "1/8"), &on(&lavapipe))),
        Stage::new(
            "lavapipe, core features and default limits, an eighth",
            gpu(&tests, ("core", "3/8"), &on(&lavapipe)),
        ),
        Stage::new(
            "Mesa's lavapipe with cooperative matrices, a sixteenth",
            gpu(&tests, ("", "5/16"), &on_cooperative),
        ),
        Stage::new("lavapipe, engine portable, an eighth", gpu(&attention, ("portable", "5/8"), &on(&lavapipe))),
        Stage::new(
            "SwiftShader, checked shaders, core features and limits",
            gpu(&tests, ("checked,core", "0/1"), &on(&swiftshader)),
        ),
        Stage::new("SwiftShader, trusted shaders, an eighth", gpu(&tests, ("", "7/8"), &on(&swiftshader))),
        Stage::new("planning without wgpu; the library and its JavaScript API as WebAssembly", wasm()),
        Stage::new("the web example, built", vec![build_web(&web_folder())]),
    ];
    let mut done = stages::two_at_a_time(together, Shown::All);
    // Others would use the memory that the one counts, and the time that the other takes.
    let memory = gpu(&["--test=memory"], ("budget", "0/1"), &on_cooperative);
    done.extend(stages::two_at_a_time(
        vec![Stage::new("a driver that says how much memory it grants", memory)],
        Shown::All,
    ));
    done.extend(stages::two_at_a_time(vec![Stage::new("the web example in a browser", web_tests(false)?)], Shown::All));
    println!("== summary");
    done.iter().for_each(|done| println!("{done}"));
    done.into_iter().try_for_each(|done| done.result)
}

/// The library for browsers, and planning without wgpu, checked by the compiler.
fn wasm() -> Vec<Command> {
    let planning = ["clippy", "--no-default-features", "--features=serde"];
    let denied = ["--", "--deny=warnings"];
    let web = ["--target=wasm32-unknown-unknown", "--package=wgpu-attention-web", "--features=catalogue"];
    vec![
        cargo(&[&planning[..], &denied].concat()),
        cargo(&[&planning[..], &["--target=wasm32-unknown-unknown"], &denied].concat()),
        cargo(&["check", "--target=wasm32-unknown-unknown", "--features=catalogue"]),
        cargo(
            &[&["clippy"], web.as_slice(), &["--", "--deny=warnings", "--allow=clippy::arc_with_non_send_sync"]]
                .concat(),
        ),
    ]
}

/// The chores that need a browser are a program of their own.
const BROWSER: &str = "--package=xtask-browser";

fn browser(arguments: &[&str]) -> Command {
    cargo(&[&["run", "--quiet", BROWSER, "--"], arguments].concat())
}

fn web_target() -> Result<()> {
    let mut rustup = Command::new("rustup");
    run(rustup.args(["target", "add", "wasm32-unknown-unknown"]))
}

fn web_folder() -> PathBuf {
    root().join("target/site")
}

fn build_web(out: &Path) -> Command {
    let mut command = browser(&["web", "--out"]);
    command.arg(std::path::absolute(out).unwrap_or_else(|_| out.into()));
    command
}

fn page(folder: &Path, name: &str) -> Result<()> {
    let mut command = browser(&["page"]);
    command.arg(std::path::absolute(folder).unwrap_or_else(|_| folder.into()));
    run(command.arg(drivers::chromium()?).arg(name))
}

/// Builds the web example and drives it.
fn web_tests(all: bool) -> Result<Vec<Command>> {
    let mut drive = browser(&["test"]);
    drive.arg(web_folder()).arg(drivers::chromium()?).arg("--screenshots").arg(root().join("target/screenshots"));
    drive.args(all.then_some("--all"));
    Ok(vec![build_web(&web_folder()), drive])
}

/// Writes every shader variant to a folder, and takes them through the browser.
fn browser_compiles() -> Result<Vec<Command>> {
    let folder = root().join("target/shaders");
    let _ = std::fs::remove_dir_all(&folder);
    let mut write = cargo(&["run", "--quiet", CLI, "--", "shaders"]);
    write.arg(&folder);
    let mut compile = browser(&["shaders"]);
    compile.arg(&folder).arg(drivers::chromium()?);
    Ok(vec![write, compile])
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

fn run_all(commands: Vec<Command>) -> Result<()> {
    commands.into_iter().try_for_each(run)
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
