//! `check`: the case catalogue on every adapter present.

mod fuzz;

use super::Device;
use super::run::file::error;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wgpu_attention::catalogue::{Case, FAMILIES, Outcome, activations};
use wgpu_attention::{Error, Gpu, GpuTime, Result};

#[derive(clap::Args)]
pub struct Options {
    /// Kernel families; all if none is named.
    kernels: Vec<String>,
    #[command(flatten)]
    device: Device,
    /// Write the figures to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run N random problems in addition to the catalogue, of all families in turn, on all adapters at the same time.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = at_most_a_million)]
    fuzz: usize,
    /// Which random problems; the same number gives the same ones.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Start no further random problem after M minutes.
    #[arg(long, value_name = "M", requires = "fuzz")]
    minutes: Option<u32>,
    /// Run the random problems without the catalogue and --data.
    #[arg(long, requires = "fuzz")]
    random_only: bool,
    /// Write each random problem that fails, if it is one call, to a file in this folder, which `run problem` takes.
    #[arg(long, value_name = "DIR", requires = "fuzz")]
    problems: Option<PathBuf>,
    /// Multiply every tolerance by X, 0 or more.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    tolerance: f64,
    /// A real model's activations (safetensors with q, k, v, seqlens_k, out, lse) as one more case.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    adapter: String,
    driver: String,
    backend: String,
    kernel: &'static str,
    case: String,
    passed: bool,
    /// Largest absolute difference from the reference; null if it is not finite.
    error: Option<f64>,
    /// The same over what is allowed.
    over_tolerance: Option<f64>,
    gpu_seconds: Option<f64>,
    by_timestamps: Option<bool>,
    flops: f64,
    failure: Option<String>,
}

pub fn check(options: &Options) -> Result<ExitCode> {
    let tolerance = options.tolerance;
    if !(tolerance.is_finite() && tolerance >= 0.0) {
        return Err(error("--tolerance", tolerance, "finite, at least 0"));
    }
    let cases = cases(options)?;
    let device = options.device.options();
    let adapters = pollster::block_on(Gpu::request_all(&device));
    if adapters.is_empty() {
        return Err(super::no_adapter(&device));
    }
    let mut reports = Vec::new();
    let (gpus, refused): (Vec<_>, Vec<_>) = adapters.into_iter().partition(Result::is_ok);
    let gpus: Vec<Gpu> = gpus.into_iter().flatten().collect();
    refused.iter().filter_map(|refused| refused.as_ref().err()).for_each(|e| eprintln!("not checked: {e}"));
    for gpu in gpus.iter().filter(|_| !options.random_only) {
        let of_adapter = run(gpu, &cases, tolerance);
        print(gpu, &of_adapter);
        reports.extend(of_adapter);
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
        write(path, &reports)?;
    }
    let failed = reports.iter().filter(|r| !r.passed).count();
    println!("{} passed, {failed} failed{}", reports.len() - failed, note(refused.len()));
    Ok(ExitCode::from(u8::from(failed > 0 || reports.is_empty())))
}

fn at_most_a_million(text: &str) -> std::result::Result<usize, String> {
    let count: usize = text.parse().map_err(|e| format!("{e}"))?;
    if count <= 1_000_000 { Ok(count) } else { Err("at most 1000000".into()) }
}

fn note(refused: usize) -> String {
    if refused == 0 { String::new() } else { format!(" ({refused} adapters gave no device)") }
}

fn cases(options: &Options) -> Result<Vec<Box<dyn Case>>> {
    let names: Vec<&str> = FAMILIES.iter().map(|f| f.name).collect();
    if let Some(unknown) = options.kernels.iter().find(|k| !names.contains(&k.as_str())) {
        return Err(error("KERNEL", unknown, format!("one of {}", names.join(", "))));
    }
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for family in FAMILIES.iter().filter(|family| chosen(options, family.name)) {
        cases.extend((family.cases)());
    }
    if let Some(path) = options.data.as_ref().filter(|_| chosen(options, "flash")) {
        cases.push(Box::new(activations(path)?));
    }
    Ok(cases)
}

fn chosen(options: &Options, name: &str) -> bool {
    options.kernels.is_empty() || options.kernels.iter().any(|kernel| kernel == name)
}

fn run(gpu: &Gpu, cases: &[Box<dyn Case>], tolerance: f64) -> Vec<Report> {
    let style = "{bar:32} {pos}/{len} {elapsed}  {wide_msg}";
    let style = ProgressStyle::with_template(style).expect("a valid template");
    let bar = ProgressBar::new(cases.len() as u64).with_style(style);
    let mut reports = Vec::new();
    for case in cases {
        bar.set_message(format!("{}  {}", gpu.caps().adapter, case.name()));
        let outcome = pollster::block_on(case.run(gpu));
        let time = pollster::block_on(case.time(gpu));
        reports.push(judge(gpu, case.as_ref(), outcome, Some(time), tolerance));
        bar.inc(1);
    }
    bar.finish_and_clear();
    reports
}

fn judge(
    gpu: &Gpu,
    case: &dyn Case,
    outcome: Result<Outcome>,
    time: Option<Result<GpuTime>>,
    tolerance: f64,
) -> Report {
    let failure = match (&outcome, &time) {
        (Err(e), _) | (_, Some(Err(e))) => Some(e.to_string()),
        (Ok(Outcome { over_tolerance, .. }), _) if *over_tolerance <= tolerance => None,
        _ => Some("beyond the tolerance".into()),
    };
    let time = time.and_then(Result::ok);
    let caps = gpu.caps();
    let finite = |x: f64| x.is_finite().then_some(x);
    Report {
        adapter: caps.adapter.clone(),
        driver: caps.driver.clone(),
        backend: format!("{:?}", caps.backend),
        kernel: case.kernel(),
        case: case.name(),
        passed: failure.is_none(),
        error: outcome.as_ref().ok().and_then(|o| finite(o.error)),
        over_tolerance: outcome.ok().and_then(|o| finite(o.over_tolerance)),
        gpu_seconds: time.as_ref().map(|t| t.seconds),
        by_timestamps: time.map(|t| t.by_timestamps),
        flops: case.flops(),
        failure,
    }
}

fn print(gpu: &Gpu, reports: &[Report]) {
    println!("{}", gpu.caps());
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["kernel", "case", "worst error", "of tolerance", "GPU time", "TFLOP/s", ""]);
    for column in 2..6 {
        table.column_mut(column).expect("seven columns").set_cell_alignment(CellAlignment::Right);
    }
    let number = |x: Option<f64>| x.map_or("–".into(), |x| format!("{x:.1e}"));
    for r in reports {
        let speed = r.gpu_seconds.filter(|&s| s > 0.0 && r.flops > 0.0).map(|s| r.flops / s * 1e-12);
        let result = r.failure.as_ref().map_or("ok".into(), |f| format!("FAILED: {f}"));
        table.add_row([
            r.kernel.to_string(),
            r.case.clone(),
            number(r.error),
            r.over_tolerance.map_or("∞".into(), |x| format!("{:.1} %", 100.0 * x)),
            r.gpu_seconds.map_or("–".into(), |s| format!("{:.3} ms", 1e3 * s)),
            speed.map_or("–".into(), |s| format!("{s:.4}")),
            result,
        ]);
    }
    println!("{table}");
    let worst = reports.iter().filter_map(|r| r.over_tolerance).fold(0.0, f64::max);
    let failed = reports.iter().filter(|r| !r.passed).count();
    let clock =
        if gpu.caps().timestamps { "the GPU's timestamps" } else { "the clock: this adapter has no timestamps" };
    println!(
        "{} cases, {failed} failed, worst error {:.1} % of the tolerance; times by {clock}\n",
        reports.len(),
        100.0 * worst
    );
}

fn unwritable(argument: &str, path: &Path, e: &std::io::Error) -> Error {
    error(argument, format!("{} ({e})", path.display()), "a path that can be written")
}

/// Whole or not at all.
fn write(path: &Path, reports: &[Report]) -> Result<()> {
    let failed = |e: std::io::Error| unwritable("--json", path, &e);
    let text = serde_json::to_string_pretty(reports).expect("plain data");
    let part = path.with_extension("part");
    std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path)).map_err(failed)
}
