//! `check`: the case catalogue on every adapter present.

mod fuzz;
mod report;
mod work;

use super::Device;
use super::run::file::error;
use report::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use wgpu_attention::catalogue::{Case, FAMILIES, Family, activations, sample};
use wgpu_attention::plan::AdapterKind;
use wgpu_attention::{Gpu, GpuOptions, Result};

#[derive(clap::Args)]
pub struct Options {
    /// The kernel families to check; all if none is named.
    kernels: Vec<String>,
    #[command(flatten)]
    device: Device,
    /// Run every case of the catalogue. By default some run, which reach every kernel and every feature.
    #[arg(long)]
    all: bool,
    /// Show a row for each case.
    #[arg(long, short)]
    verbose: bool,
    /// Write the figures of each case to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run N random problems in addition to the catalogue, of all families in turn, on all adapters at the same time.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = at_most_a_million)]
    fuzz: usize,
    /// Which random problems to run; the same number gives the same ones.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Start no further random problem after M minutes.
    #[arg(long, value_name = "M", requires = "fuzz")]
    minutes: Option<u32>,
    /// Run the random problems without the catalogue and --data.
    #[arg(long, requires = "fuzz")]
    random_only: bool,
    /// Write each random problem that fails, if it is a single call, to a file in this folder, for `run problem`.
    #[arg(long, value_name = "DIR", requires = "fuzz")]
    problems: Option<PathBuf>,
    /// Multiply every tolerance by X, 0 or more.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    tolerance: f64,
    /// Check a real model's activations (safetensors with q, k, v, seqlens_k, out, lse) as one more case.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
}

/// The cases of a family, and how many its catalogue has.
struct Cases {
    family: &'static str,
    chosen: Vec<Box<dyn Case>>,
    known: usize,
}

pub fn check(options: &Options) -> Result<ExitCode> {
    let tolerance = options.tolerance;
    if !(tolerance.is_finite() && tolerance >= 0.0) {
        return Err(error("--tolerance", tolerance, "finite, at least 0"));
    }
    let families = families(options)?;
    let device = options.device.options();
    let adapters = pollster::block_on(Gpu::request_all(&device));
    let mut refused = 0;
    let mut gpus = vec![];
    for adapter in adapters {
        match adapter {
            Ok(gpu) => gpus.push(gpu),
            Err(e) => {
                refused += 1;
                eprintln!("not checked: {e}");
            }
        }
    }
    if gpus.is_empty() && refused == 0 {
        return Err(super::no_adapter(&device));
    }
    let mut reports: Vec<Report> = Vec::new();
    if !options.random_only {
        for devices in side_by_side(&gpus, &device) {
            let cases = cases(options, &families, &devices[0])?;
            reports.extend(work::run(&devices, &cases, options));
        }
    }
    if options.fuzz > 0 {
        for (gpu, found) in gpus.iter().zip(fuzz::run(&gpus, options)?) {
            found.print(gpu, options.seed);
            reports.extend(found.reports);
        }
    }
    if options.data.is_none() || options.random_only {
        println!("A real model's activations were not checked: give them with --data FILE.");
    }
    if let Some(path) = &options.json {
        report::write(path, &reports)?;
    }
    let failed = reports.iter().filter(|r| !r.passed).count();
    let note = if refused == 0 { String::new() } else { format!(" ({refused} adapters gave no device)") };
    println!("{} passed, {failed} failed{note}", reports.len() - failed);
    Ok(ExitCode::from(u8::from(failed > 0 || reports.is_empty())))
}

fn at_most_a_million(text: &str) -> std::result::Result<usize, String> {
    let count: usize = text.parse().map_err(|e| format!("{e}"))?;
    if count <= 1_000_000 { Ok(count) } else { Err("at most 1000000".into()) }
}

/// The devices that work on an adapter's cases: two where shaders run, and compile, on a processor.
fn side_by_side(gpus: &[Gpu], device: &GpuOptions) -> Vec<Vec<Gpu>> {
    let software = |gpu: &Gpu| gpu.caps().kind == AdapterKind::Software;
    let mut more = if gpus.iter().any(software) { pollster::block_on(Gpu::request_all(device)) } else { vec![] };
    let second = |gpu: &Gpu| {
        let same = |other: &Result<Gpu>| other.as_ref().is_ok_and(|other| other.caps() == gpu.caps());
        let found = more.iter().position(same).filter(|_| software(gpu))?;
        more.swap_remove(found).ok()
    };
    gpus.iter()
        .zip(gpus.iter().map(second))
        .map(|(gpu, second)| [vec![gpu.clone()], second.into_iter().collect()].concat())
        .collect()
}

fn families(options: &Options) -> Result<Vec<&'static Family>> {
    let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
    if let Some(unknown) = options.kernels.iter().find(|k| !names.contains(&k.as_str())) {
        return Err(error("KERNEL", unknown, format!("one of {}", names.join(", "))));
    }
    Ok(FAMILIES.iter().filter(|family| chosen(options, family.name)).collect())
}

fn chosen(options: &Options, name: &str) -> bool {
    options.kernels.is_empty() || options.kernels.iter().any(|kernel| kernel == name)
}

fn cases(options: &Options, families: &[&'static Family], gpu: &Gpu) -> Result<Vec<Cases>> {
    let mut all = vec![];
    for family in families {
        let mut chosen = (family.cases)();
        let mut known = chosen.len();
        if !options.all {
            let some = sample(chosen.iter().map(|case| &**case), gpu.caps())?;
            let all = chosen.into_iter().enumerate();
            chosen = all.filter(|(i, _)| some.contains(i)).map(|(_, case)| case).collect();
        }
        if let Some(path) = options.data.as_ref().filter(|_| family.name == "flash") {
            chosen.push(Box::new(activations(path)?));
            known += 1;
        }
        all.push(Cases { family: family.name, chosen, known });
    }
    Ok(all)
}
