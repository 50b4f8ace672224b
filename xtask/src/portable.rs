//! What can be checked here of platforms that are elsewhere: other targets by the compiler, HLSL by Microsoft's, Windows by Wine.

use crate::{CLI, Result, cargo, drivers, dxc::Compiler, root, run};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Windows, macOS, Linux on Arm, Android.
const TARGETS: [&str; 4] = [WINDOWS, "aarch64-apple-darwin", "aarch64-unknown-linux-gnu", "aarch64-linux-android"];
const WINDOWS: &str = "x86_64-pc-windows-gnu";

/// Tests that run on Windows under Wine: those that take seconds there.
const ON_WINE: [&str; 6] = ["promises", "merge", "rotary", "seqlens", "errors", "memory"];

/// What is checked.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    Targets,
    Hlsl,
    Wine,
}

pub fn all(only: Option<Part>) -> Result<()> {
    let wanted = |part: Part| only.is_none_or(|only| only == part);
    if wanted(Part::Targets) {
        targets()?;
    }
    if wanted(Part::Hlsl) {
        hlsl()?;
    }
    if wanted(Part::Wine) {
        wine()?;
    }
    Ok(())
}

fn add(target: &str) -> Result<()> {
    run(Command::new("rustup").args(["target", "add", target]))
}

/// The library and the command line, checked for other targets.
fn targets() -> Result<()> {
    for target in TARGETS {
        add(target)?;
        run(cargo(&["check", CLI, "--target", target]))?;
    }
    Ok(())
}

/// Every shader as HLSL through Microsoft's compiler.
fn hlsl() -> Result<()> {
    let compiler = Compiler::load(&drivers::dxc()?)?;
    let folder = empty(&root().join("target/hlsl"))?;
    let mut write = cargo(&["test", CLI, "--test=shaders", "every_back_end"]);
    run(write.env("WGPU_ATTENTION_HLSL", &folder))?;
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    let (mut count, mut refused) = (0, vec![]);
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        count += 1;
        refused.extend(compiler.compile(&text).err().map(|said| format!("{}: {said}", path.display())));
    }
    // A wrong text must be refused, or this check proves nothing.
    let Err(said) = compiler.compile("[numthreads(1, 1, 1)] void main() { undeclared = 1; }") else {
        return Err("the HLSL compiler accepts what is not HLSL".into());
    };
    println!("{count} HLSL texts compiled, {} refused; of a wrong one it says: {}", refused.len(), said.trim());
    if count == 0 || !refused.is_empty() {
        return Err(format!("HLSL is refused:\n{}", refused.join("\n")));
    }
    Ok(())
}

/// A folder with nothing in it.
fn empty(folder: &Path) -> Result<PathBuf> {
    let _ = std::fs::remove_dir_all(folder);
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder.into())
}

/// Where Wine before version 9 lacks it: what Rust's programs take random bytes from.
const RANDOM_BYTES: &str = "#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) { return SystemFunction036(data, (ULONG)size); }
";

/// Some tests as Windows programs, under Wine, on its Vulkan over Mesa's software driver.
fn wine() -> Result<()> {
    let driver = drivers::lavapipe()?;
    drivers::wine()?;
    add(WINDOWS)?;
    let tests = ON_WINE.map(|name| format!("--test={name}"));
    let programs = || {
        let mut command = cargo(&["test", CLI, "--target", WINDOWS]);
        command.args(&tests);
        command
    };
    run(programs().arg("--no-run"))?;
    let folder = root().join("target").join(WINDOWS).join("debug/deps");
    let source = folder.join("random_bytes.c");
    std::fs::write(&source, RANDOM_BYTES).map_err(|e| format!("{}: {e}", source.display()))?;
    let mut library = Command::new("x86_64-w64-mingw32-gcc");
    library.arg("-shared").arg("-o").arg(folder.join("bcryptprimitives.dll"));
    run(library.arg(&source).arg("-ladvapi32"))?;
    let mut command = programs();
    command.args(["--", "--nocapture"]).env("WINEDEBUG", "-all").env("WINEPREFIX", root().join("target/wine"));
    command.env("CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER", "xvfb-run -a wine").env("WGPU_ATTENTION_SHARE", "0/16");
    run(drivers::only(&mut command, &driver))
}
