//! What became of a case.

use super::super::run::file::error;
use serde::Serialize;
use std::path::Path;
use wgpu_attention::catalogue::{Case, Outcome};
use wgpu_attention::{Error, Gpu, GpuTime, Result};

#[derive(Serialize)]
pub struct Report {
    adapter: String,
    driver: String,
    backend: String,
    pub kernel: &'static str,
    pub case: String,
    pub passed: bool,
    /// Largest absolute difference from the reference; null if it is not finite.
    pub error: Option<f64>,
    /// The same over what is allowed.
    pub over_tolerance: Option<f64>,
    pub gpu_seconds: Option<f64>,
    by_timestamps: Option<bool>,
    pub flops: f64,
    pub failure: Option<String>,
}

impl Report {
    pub fn of(
        gpu: &Gpu,
        case: &dyn Case,
        outcome: Result<Outcome>,
        time: Option<Result<GpuTime>>,
        tolerance: f64,
    ) -> Self {
        let failure = match (&outcome, &time) {
            (Err(e), _) | (_, Some(Err(e))) => Some(e.to_string()),
            (Ok(Outcome { over_tolerance, .. }), _) if *over_tolerance <= tolerance => None,
            (Ok(Outcome { error, over_tolerance }), _) => {
                Some(format!("off by {error:.1e}, which is {} of the tolerance", percent(Some(*over_tolerance))))
            }
        };
        let time = time.and_then(Result::ok);
        let caps = gpu.caps();
        let finite = |x: f64| x.is_finite().then_some(x);
        Self {
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

    /// Its GFLOP/s, where there is enough to do for that to mean something.
    pub fn rate(&self) -> Option<String> {
        let seconds = self.gpu_seconds.filter(|&seconds| seconds > 0.0 && self.flops >= 1e6)?;
        let rate = self.flops / seconds * 1e-9;
        (rate >= 0.01).then(|| format!("{rate:.2} GFLOP/s"))
    }
}

/// Of a tolerance.
pub fn percent(over_tolerance: Option<f64>) -> String {
    match over_tolerance {
        Some(x) if x < 100.0 => format!("{:.1} %", 100.0 * x),
        Some(x) if x.is_finite() => format!("{x:.0} ×"),
        _ => "∞".into(),
    }
}

pub fn unwritable(argument: &str, path: &Path, e: &std::io::Error) -> Error {
    error(argument, format!("{} ({e})", path.display()), "a path that can be written")
}

/// Whole or not at all.
pub fn write(path: &Path, reports: &[Report]) -> Result<()> {
    let failed = |e: std::io::Error| unwritable("--json", path, &e);
    let text = serde_json::to_string_pretty(reports).expect("plain data");
    let part = path.with_extension("part");
    std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path)).map_err(failed)
}
