//! Vulkan drivers: whether there is one, and software ones from the system's packages.

use crate::{CLI, Result, cargo, run};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Makes sure that some adapter is there: where there is none, Debian and Ubuntu get Mesa's software driver, others are
/// told what to install.
pub fn ensure_any() -> Result<()> {
    run(cargo(&["build", "--quiet", CLI]))?;
    if any()? {
        return Ok(());
    }
    eprintln!("No GPU adapter found.");
    if cfg!(not(target_os = "linux")) {
        return Err("wgpu finds no adapter; macOS and Windows bring their own driver: update the system's".into());
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

/// The SPIR-V validator, which `tests/shaders.rs` uses where it is installed.
pub fn spirv_val() -> Result<PathBuf> {
    manifest(&["/usr/bin/spirv-val"], &["spirv-tools"])
}

fn manifest(places: &[&str], packages: &[&str]) -> Result<PathBuf> {
    let find = || places.iter().map(PathBuf::from).find(|p| p.exists());
    if let Some(found) = find() {
        return Ok(found);
    }
    install(packages)?;
    find().ok_or_else(|| format!("{} brought none of {}", packages.join(" "), places.join(", ")))
}

/// The command with only this driver in sight.
pub fn only<'a>(command: &'a mut Command, manifest: &Path) -> &'a mut Command {
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
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"));
    let apt = |arguments: &[&str]| {
        let mut command = if root { Command::new("apt-get") } else { Command::new("sudo") };
        if !root {
            command.arg("apt-get");
        }
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        run(command).map_err(|e| format!("{e}; install these packages by hand, then run this again: {list}"))
    };
    apt(&["update", "-qq"])?;
    apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat())
}
