//! The web example as static files.

use crate::{Result, of_file};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use wasm_bindgen_cli_support::Bindgen;

const TARGET: &str = "wasm32-unknown-unknown";
/// What the module that every visitor downloads may have after gzip, in bytes: 256 KiB.
const MOST: usize = 288 << 10;

/// Builds the module of kernels, the larger one that also has the cases and their reference, and puts the page beside them.
pub fn web(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).map_err(of_file(out))?;
    for (name, features) in [("wgpu_attention", ""), ("wgpu_attention_check", "catalogue")] {
        let module = compile(features)?;
        let mut bindgen = Bindgen::new();
        let web = bindgen.input_path(&module).out_name(name).web(true).map_err(|e| e.to_string())?;
        web.typescript(true).omit_default_module_path(false).remove_name_section(true).remove_producers_section(true);
        web.generate(out).map_err(|e| format!("{}: {e:?}", module.display()))?;
        let bytes = downloaded(&out.join(format!("{name}_bg.wasm")))?;
        println!("{name}: {bytes} bytes after gzip");
        if features.is_empty() && bytes > MOST {
            return Err(format!("{name} is to have {MOST} bytes at most"));
        }
    }
    let page = root().join("examples/web/page");
    let mut files = vec![root().join("benches/flash/unfused.wgsl")];
    for entry in std::fs::read_dir(&page).map_err(of_file(&page))? {
        files.push(entry.map_err(of_file(&page))?.path());
    }
    for from in files {
        let to = out.join(from.file_name().unwrap_or_default());
        std::fs::copy(&from, &to).map_err(of_file(&from))?;
    }
    let index = out.join("index.html");
    let text = std::fs::read_to_string(&index).map_err(of_file(&index))?;
    std::fs::write(&index, text.replace("<!-- links -->", &links()?)).map_err(of_file(&index))?;
    println!("written to {}", out.display());
    Ok(())
}

/// Links to what the package says of itself: where its source and its documentation are.
fn links() -> Result<String> {
    let manifest = root().join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).map_err(of_file(&manifest))?;
    let package = text.split("\n[").find(|part| part.starts_with("package]")).unwrap_or_default();
    let field = |name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='))?;
        Some(line.trim().trim_matches('"').to_string())
    };
    let link = |(name, text): (&str, &str)| Some(format!("<a href=\"{}\">{text}</a>", field(name)?));
    let links: String =
        [("repository", "Source"), ("documentation", "Documentation")].into_iter().filter_map(link).collect();
    Ok(if links.is_empty() { links } else { format!("<nav>{links}</nav>") })
}

/// The module before its JavaScript is made.
fn compile(features: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    // Messages of panics name files: not where they lay on this machine.
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    let flags = format!("--remap-path-prefix={}= --remap-path-prefix={}=", home.unwrap_or_default(), root().display());
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root())
        .args(["build", "--quiet", "--package=wgpu-attention-web", "--profile=web", "--target", TARGET])
        .args((!features.is_empty()).then(|| format!("--features={features}")))
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", &target)
        .status();
    match status.map_err(|e| format!("cargo: {e}"))?.success() {
        true => Ok(target.join(TARGET).join("web/wgpu_attention_web.wasm")),
        false => Err(format!("the example does not compile; is the target installed (rustup target add {TARGET})?")),
    }
}

/// Bytes of a file after gzip, as a web server sends it.
fn downloaded(path: &Path) -> Result<usize> {
    let bytes = std::fs::read(path).map_err(of_file(path))?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&bytes).and_then(|()| gzip.finish()).map(|zipped| zipped.len()).map_err(of_file(path))
}

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).expect("this lies two folders deep in the repository").into()
}
