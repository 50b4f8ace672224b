//! Random problems, on all adapters at the same time.

use super::report::{Report, unwritable};
use super::{Options, chosen};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};
use wgpu_attention::catalogue::{Case, FAMILIES, Family};
use wgpu_attention::{Error, Gpu, Result};

/// What became of the problems on one adapter.
pub struct Found {
    pub reports: Vec<Report>,
    /// Files of what failed.
    files: Vec<String>,
}

/// So many problems, the families in turn.
fn problems(options: &Options) -> Vec<Box<dyn Case>> {
    let families: Vec<&Family> = FAMILIES.iter().filter(|family| chosen(options, family.name)).collect();
    let each = options.fuzz.div_ceil(families.len().max(1));
    let mut lists: Vec<Vec<Box<dyn Case>>> = families
        .into_iter()
        .map(|family| {
            let mut all = (family.random)(each, options.seed);
            all.shuffle(&mut SmallRng::seed_from_u64(options.seed));
            all
        })
        .collect();
    let mut found = vec![];
    while found.len() < options.fuzz && lists.iter().any(|list| !list.is_empty()) {
        found.extend(lists.iter_mut().filter_map(Vec::pop));
    }
    found.truncate(options.fuzz);
    found
}

/// Runs them on every adapter, each in a thread of its own.
pub fn run(gpus: &[Gpu], options: &Options) -> Result<Vec<Found>> {
    if let Some(folder) = &options.problems {
        std::fs::create_dir_all(folder).map_err(|e| unwritable("--problems", folder, &e))?;
    }
    let bars = MultiProgress::new();
    std::thread::scope(|scope| {
        let start = |(number, gpu): (usize, &Gpu)| {
            let bar = bars.add(ProgressBar::new(options.fuzz as u64));
            let gpu = gpu.clone();
            scope.spawn(move || on(&gpu, number, options, &bar))
        };
        let running: Vec<_> = gpus.iter().enumerate().map(start).collect();
        Ok(running.into_iter().map(|thread| thread.join().expect("panics are caught")).collect())
    })
}

fn on(gpu: &Gpu, number: usize, options: &Options, bar: &ProgressBar) -> Found {
    bar.set_style(
        ProgressStyle::with_template("{bar:32} {pos}/{len} {elapsed}  {wide_msg}").expect("a valid template"),
    );
    let (start, all) = (Instant::now(), problems(options));
    let mut found = Found { reports: vec![], files: vec![] };
    // Each is dropped with its values once it is done.
    for (i, case) in all.into_iter().enumerate() {
        if options.minutes.is_some_and(|minutes| start.elapsed() > Duration::from_secs(60 * u64::from(minutes))) {
            break;
        }
        bar.set_message(format!("{}  {}", gpu.caps().adapter, case.name()));
        // A defect of one problem is not the end of the others.
        let outcome = catch_unwind(AssertUnwindSafe(|| pollster::block_on(case.run(gpu))));
        let outcome =
            outcome.unwrap_or_else(|_| Err(Error::Internal { what: case.name(), message: "panicked".into() }));
        let report = Report::of(gpu, case.as_ref(), outcome, None, options.tolerance);
        if let (false, Some(folder)) = (report.passed, &options.problems) {
            let name = format!("{}-{}-{i}-{number}.safetensors", report.kernel, options.seed);
            found.files.push(save(gpu, case.as_ref(), &folder.join(name)));
        }
        found.reports.push(report);
        bar.inc(1);
    }
    bar.finish_and_clear();
    found
}

/// Writes a problem; says where, or why not.
fn save(gpu: &Gpu, case: &dyn Case, path: &Path) -> String {
    let written = pollster::block_on(async {
        match case.problem(gpu).await? {
            Some(problem) => crate::problem::write(path, &case.name(), &problem).await.map(|()| true),
            None => Ok(false),
        }
    });
    match written {
        Ok(true) => format!("wgpu-attention run problem {} OUT", path.display()),
        Ok(false) => format!("not written, since it is more than one call: {}", case.name()),
        Err(e) => format!("not written ({e}): {}", case.name()),
    }
}

impl Found {
    /// A row a family, and the failures.
    pub fn print(&self, gpu: &Gpu, seed: u64) {
        println!("Random problems, seed {seed}, on {}", gpu.caps());
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["kernel", "problems", "failed", "worst, of tolerance"]);
        for column in 1..4 {
            table.column_mut(column).expect("four columns").set_cell_alignment(CellAlignment::Right);
        }
        let mut failed = 0;
        for family in FAMILIES {
            let own: Vec<&Report> = self.reports.iter().filter(|report| report.kernel == family.name).collect();
            let wrong = own.iter().filter(|report| !report.passed).count();
            let worst = own.iter().filter_map(|report| report.over_tolerance).fold(0.0, f64::max);
            failed += wrong;
            if !own.is_empty() {
                let row = [own.len().to_string(), wrong.to_string(), format!("{:.1} %", 100.0 * worst)];
                table.add_row([vec![family.name.to_string()], row.to_vec()].concat());
            }
        }
        println!("{table}");
        for Report { case, failure, .. } in self.reports.iter().filter(|report| !report.passed) {
            println!("FAILED: {case}: {}", failure.as_deref().unwrap_or("beyond the tolerance"));
        }
        self.files.iter().for_each(|file| println!("{file}"));
        println!("{} random problems, {failed} failed\n", self.reports.len());
    }
}
