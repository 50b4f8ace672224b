//! Cases on the devices of one adapter, a row for each family as soon as it is done.

use super::report::{Report, percent};
use super::{Cases, Options};
use crate::text::{clipped, wrapped};
use indicatif::{ProgressBar, ProgressStyle};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;
use wgpu_attention::Gpu;
use wgpu_attention::catalogue::Case;

/// Characters of the column that says which case was the worst.
const CASE: usize = 36;

/// Runs the cases, each device in a thread of its own.
pub fn run(devices: &[Gpu], families: &[Cases], options: &Options) -> Vec<Report> {
    println!("{}\n", wrapped(&devices[0].caps().to_string(), ""));
    header(options);
    let start = Instant::now();
    let all: Vec<&dyn Case> = families.iter().flat_map(|family| &family.chosen).map(|case| &**case).collect();
    let style = "{bar:24} {pos}/{len} {elapsed}  {wide_msg}";
    let style = ProgressStyle::with_template(style).expect("a valid template");
    let bar = ProgressBar::new(all.len() as u64).with_style(style);
    let (next, (sender, receiver)) = (AtomicUsize::new(0), channel());
    let work = |gpu: &Gpu, sender: std::sync::mpsc::Sender<(usize, Report)>| {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = all.get(i) else { break };
            bar.set_message(case.name());
            let outcome = pollster::block_on(case.run(gpu));
            let time = pollster::block_on(case.time(gpu));
            let _ = sender.send((i, Report::of(gpu, *case, outcome, Some(time), options.tolerance)));
            bar.inc(1);
        }
    };
    let reports = std::thread::scope(|scope| {
        for gpu in devices {
            let (sender, work) = (sender.clone(), &work);
            scope.spawn(move || work(gpu, sender));
        }
        drop(sender);
        collect(families, &receiver, |family, reports| {
            bar.suspend(|| if options.verbose { each(reports) } else { row(family, reports) });
        })
    });
    bar.finish_and_clear();
    for report in reports.iter().filter(|report| !report.passed) {
        let failure = report.failure.as_deref().unwrap_or("failed");
        println!("{}", wrapped(&format!("FAILED {}: {}: {failure}", report.kernel, report.case), "  "));
    }
    summary(devices, families, &reports, start);
    reports
}

/// All reports in the order of the cases; `done` gets those of a family once it and those before it are complete.
fn collect(families: &[Cases], from: &Receiver<(usize, Report)>, done: impl Fn(&Cases, &[Report])) -> Vec<Report> {
    let count = families.iter().map(|family| family.chosen.len()).sum();
    let mut found: Vec<Option<Report>> = std::iter::repeat_with(|| None).take(count).collect();
    let (mut reports, mut shown): (Vec<Report>, usize) = (vec![], 0);
    let mut show = |reports: &[Report]| {
        while let Some(family) = families.get(shown) {
            let start: usize = families[..shown].iter().map(|family| family.chosen.len()).sum();
            let Some(own) = reports.get(start..start + family.chosen.len()) else { break };
            done(family, own);
            shown += 1;
        }
    };
    show(&reports);
    for (i, report) in from {
        found[i] = Some(report);
        while let Some(report) = found.get_mut(reports.len()).and_then(Option::take) {
            reports.push(report);
        }
        show(&reports);
    }
    reports
}

fn header(options: &Options) {
    if options.verbose {
        println!("{:>9} {:>10}  case", "tolerance", "GPU time");
    } else {
        println!(
            "{:<15} {:>10}  {:>7}  {:<CASE$} {:>9}  {:>13}",
            "kernel", "passed", "worst", "worst case", "median", "largest case"
        );
    }
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or("–".into(), |s| format!("{:.2} ms", 1e3 * s))
}

/// A row for a family.
fn row(family: &Cases, reports: &[Report]) {
    let passed = reports.iter().filter(|report| report.passed).count();
    let over = |report: &&Report| report.over_tolerance.unwrap_or(f64::INFINITY);
    let worst = reports.iter().max_by(|a, b| over(a).total_cmp(&over(b)));
    let mut times: Vec<f64> = reports.iter().filter_map(|report| report.gpu_seconds).collect();
    times.sort_by(f64::total_cmp);
    let largest = reports.iter().max_by(|a, b| a.flops.total_cmp(&b.flops));
    println!(
        "{:<15} {:>10}  {:>7}  {:<CASE$} {:>9}  {:>13}",
        family.family,
        format!("{passed} of {}", reports.len()),
        worst.map_or("–".into(), |worst| percent(worst.over_tolerance)),
        clipped(worst.map_or("", |worst| &worst.case), CASE),
        milliseconds(times.get(times.len() / 2).copied()),
        largest.and_then(Report::rate).unwrap_or("–".into()),
    );
}

/// A row for each case.
fn each(reports: &[Report]) {
    for report in reports {
        let failed = if report.passed { "" } else { "FAILED " };
        let (over, time) = (percent(report.over_tolerance), milliseconds(report.gpu_seconds));
        let indent = " ".repeat(22);
        println!("{}", wrapped(&format!("{over:>9} {time:>10}  {failed}{}: {}", report.kernel, report.case), &indent));
    }
}

fn summary(devices: &[Gpu], families: &[Cases], reports: &[Report], start: Instant) {
    let known: usize = families.iter().map(|family| family.known).sum();
    let failed = reports.iter().filter(|report| !report.passed).count();
    let worst = reports.iter().map(|report| report.over_tolerance.unwrap_or(f64::INFINITY)).fold(0.0, f64::max);
    let of = if reports.len() < known { format!(" of {known} (--all runs every one)") } else { String::new() };
    let clock = if devices[0].caps().timestamps { "the GPU's timestamps" } else { "the clock, for want of timestamps" };
    let two = if devices.len() > 1 { ", with two devices at work" } else { "" };
    let text = format!(
        "{} cases{of}, {failed} failed, worst {} of the tolerance, {:.0} s; times by {clock}{two}",
        reports.len(),
        percent(Some(worst)),
        start.elapsed().as_secs_f64()
    );
    println!("\n{}\n", wrapped(&text, ""));
}
