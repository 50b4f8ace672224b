//! Vulkan drivers: whether there is one, and software ones from the system's packages.

use crate::{CLI, Result, cargo, run, run_quietly};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes sure that some adapter is there: where there is none, Debian and Ubuntu get Mesa's software driver, others are
/// told what to install.
pub fn ensure_any() -> Result<()> {
    run(cargo(&["build", CLI]))?;
    if any()? {
        return Ok(());
    }
    eprintln!("No GPU adapter found.");
    if cfg!(not(target_os = "linux")) {
        return Err("wgpu finds no adapter; macOS and Windows come with a driver: update the system".into());
    }
    install(&["mesa-vulkan-drivers", "libvulkan1"])?;
    if any()? { Ok(()) } else { Err("still no GPU adapter after Mesa's software driver was installed".into()) }
}

fn any() -> Result<bool> {
    let status = cargo(&["run", "--quiet", CLI, "--", "info"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    Ok(status.map_err(|e| e.to_string())?.success())
}

/// Mesa's software driver: its manifest.
pub fn lavapipe() -> Result<PathBuf> {
    manifest(
        &[
            "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json",
            "/usr/share/vulkan/icd.d/lvp_icd.aarch64.json",
            "/usr/share/vulkan/icd.d/lvp_icd.json",
        ],
        &["mesa-vulkan-drivers", "libvulkan1"],
    )
}

/// The browser's software driver, which comes with it.
pub fn swiftshader() -> Result<PathBuf> {
    manifest(&["/usr/lib/chromium/vk_swiftshader_icd.json"], &["chromium", "libvulkan1"])
}

/// The program `chromium`.
pub fn chromium() -> Result<PathBuf> {
    manifest(&["/usr/bin/chromium"], &["chromium"])
}

/// Wine, a screen for it, without which it has no Vulkan, and what links programs for it.
pub fn wine() -> Result<()> {
    manifest(&["/usr/bin/wine"], &["wine", "wine64"])?;
    manifest(&["/usr/bin/xvfb-run"], &["xvfb", "xauth"])?;
    manifest(&["/usr/bin/x86_64-w64-mingw32-gcc"], &["gcc-mingw-w64-x86-64"]).map(|_| ())
}

/// Microsoft's HLSL compiler for Linux, which a package of Python's index has among its sources.
pub fn dxc() -> Result<PathBuf> {
    const PACKAGE: &str = "compushady-0.17.5";
    let folder = cache().join("dxc");
    let file = format!("{PACKAGE}/compushady/backends/libdxcompiler_{}.so.3.7", std::env::consts::ARCH);
    let library = folder.join(&file);
    if !library.exists() {
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mut download = Command::new("python3");
        download.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", "--dest"]);
        run(download.arg(&folder).arg(PACKAGE.replacen('-', "==", 1)))?;
        let archive = folder.join(format!("{PACKAGE}.tar.gz"));
        run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&folder).arg(&file))?;
    }
    Ok(library)
}

/// The spell checker.
pub fn codespell() -> Result<PathBuf> {
    manifest(&["/usr/bin/codespell"], &["codespell"])
}

/// The SPIR-V validator, which `tests/shaders.rs` uses where it is installed.
pub fn spirv_val() -> Result<PathBuf> {
    manifest(&["/usr/bin/spirv-val"], &["spirv-tools"])
}

/// Mesa's software driver of Debian unstable, in a folder of its own: it has cooperative matrices, and tells how much
/// memory it grants. Its C library is newer than the system's, so programs start through its own loader.
pub struct Cooperative {
    manifest: PathBuf,
    runner: String,
}

/// Installs it with debootstrap, once.
pub fn cooperative() -> Result<Cooperative> {
    let machine = std::env::consts::ARCH;
    let (lib, loader) = match machine {
        "x86_64" => ("x86_64-linux-gnu", "lib64/ld-linux-x86-64.so.2"),
        "aarch64" => ("aarch64-linux-gnu", "lib/ld-linux-aarch64.so.1"),
        other => return Err(format!("Mesa's driver with cooperative matrices is not set up on {other}")),
    };
    let folder = cache().join("mesa-unstable");
    let manifest = folder.with_extension("json");
    if !manifest.exists() {
        if !Path::new("/usr/sbin/debootstrap").exists() {
            install(&["debootstrap", "debian-archive-keyring"])?;
        }
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let mut command = as_root("debootstrap");
        command.args(["--variant=minbase", "--include=mesa-vulkan-drivers,libvulkan1", "sid"]);
        run_quietly(command.arg(&folder).args(mirror()).stdout(Stdio::null()))?;
        let library = folder.join("usr/lib").join(lib).join("libvulkan_lvp.so");
        let text = format!(
            r#"{{"file_format_version":"1.0.0","ICD":{{"library_path":"{}","api_version":"1.3.0"}}}}"#,
            library.display()
        );
        std::fs::write(&manifest, text).map_err(|e| format!("{}: {e}", manifest.display()))?;
    }
    let libraries = ["usr/lib", "lib"].map(|part| folder.join(part).join(lib).display().to_string());
    let runner = format!("{} --library-path {}", folder.join(loader).display(), libraries.join(":"));
    Ok(Cooperative { manifest, runner })
}

/// Where what was downloaded stays.
fn cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("wgpu-attention")
}

impl Cooperative {
    /// The cargo command with only this driver in sight.
    pub fn only<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let target = format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
        // Only the system's Mesa was compared with and without optimizations.
        only(command, &self.manifest).env(target, &self.runner).env_remove("GALLIVM_PERF")
    }
}

/// Where the system's own packages come from; elsewhere debootstrap knows.
fn mirror() -> Option<String> {
    let sources = std::fs::read_to_string("/etc/apt/sources.list.d/debian.sources").unwrap_or_default();
    let old = std::fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let new_style = sources.lines().find_map(|line| line.strip_prefix("URIs:"));
    let old_style = old.lines().filter_map(|line| line.strip_prefix("deb ")).find(|line| line.contains("debian"));
    let words = new_style.or(old_style)?.split_whitespace();
    words.map(str::to_string).find(|word| word.contains("://"))
}

fn manifest(places: &[&str], packages: &[&str]) -> Result<PathBuf> {
    let find = || places.iter().map(PathBuf::from).find(|p| p.exists());
    if let Some(found) = find() {
        return Ok(found);
    }
    install(packages)?;
    find().ok_or_else(|| format!("{} installed none of {}", packages.join(" "), places.join(", ")))
}

/// The command in a software driver's quickest way for tests, whose shaders take a second to compile and a millisecond to run: without
/// lines and names in shaders, and on Mesa's llvmpipe without LLVM's optimizations, which change no bit of a result.
pub fn quickly(command: &mut Command) -> &mut Command {
    command.env("WGPU_DEBUG", "0").env("GALLIVM_PERF", "nopt")
}

/// The command with only this driver in sight, in its quickest way for tests.
pub fn only<'a>(command: &'a mut Command, manifest: &Path) -> &'a mut Command {
    quickly(command);
    command.env("VK_DRIVER_FILES", manifest).env("VK_ICD_FILENAMES", manifest).env("WGPU_BACKEND", "vulkan")
}

/// Installs Debian packages, as root or by sudo; elsewhere says what to install.
fn install(packages: &[&str]) -> Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let debian = release.lines().any(|line| {
        let ids = line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE="));
        ids.is_some_and(|ids| ids.contains("debian") || ids.contains("ubuntu"))
    });
    let list = packages.join(" ");
    if !debian {
        return Err(format!(
            "install what Debian calls {list} (Fedora: mesa-vulkan-drivers vulkan-loader chromium spirv-tools; Arch: \
             vulkan-swrast vulkan-icd-loader chromium spirv-tools), then run this again"
        ));
    }
    let apt = |arguments: &[&str]| {
        let mut command = as_root("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        run(command).map_err(|e| format!("{e}; install these packages by hand, then run this again: {list}"))
    };
    apt(&["update", "-qq"])?;
    apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat())
}

/// The command, by sudo where this is not root.
fn as_root(program: &str) -> Command {
    if Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n")) {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}
