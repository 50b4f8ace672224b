//! `info` and `shaders`.

use crate::text::wrapped;
use std::path::Path;
use std::process::ExitCode;
use wgpu_attention::catalogue::FAMILIES;
use wgpu_attention::{Error, Gpu, GpuOptions, Result};

pub fn info(options: &GpuOptions, json: bool) -> Result<ExitCode> {
    let all = pollster::block_on(Gpu::request_all(options));
    if all.is_empty() {
        return Err(super::no_adapter(options));
    }
    for gpu in all {
        let gpu = match gpu {
            Ok(gpu) => gpu,
            Err(e) => {
                eprintln!("{e}");
                continue;
            }
        };
        if json {
            println!("{}", serde_json::to_string(gpu.caps()).expect("limits are plain data"));
            continue;
        }
        println!("{}", wrapped(&gpu.caps().to_string(), ""));
        for family in FAMILIES {
            for plan in (family.variants)(gpu.caps()) {
                match plan {
                    Ok(plan) => println!("{}", wrapped(&format!("  {plan}"), "    ")),
                    Err(e) => println!("{}", wrapped(&format!("  {} does not run: {e}", family.name), "    ")),
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn shaders(folder: &Path) -> Result<ExitCode> {
    let failed = |e: std::io::Error| Error::Argument {
        argument: "folder".into(),
        value: format!("{} ({e})", folder.display()),
        bound: "a folder that can be written to".into(),
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut count = 0;
    for family in FAMILIES {
        for (name, text) in (family.shaders)() {
            std::fs::write(folder.join(format!("{name}.wgsl")), text).map_err(failed)?;
            count += 1;
        }
    }
    println!("{count} shaders written to {}", folder.display());
    Ok(ExitCode::SUCCESS)
}
