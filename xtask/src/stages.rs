//! Stages of a long run: two at a time, each shown when it is done.

use crate::{Result, run_quietly, shown};
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

type Work = Box<dyn FnOnce(&Path) -> Result<()> + Send>;

/// Work under a name; what its commands print goes to a file.
pub struct Stage {
    name: String,
    work: Work,
}

/// What became of a stage.
pub struct Done {
    name: String,
    pub result: Result<()>,
    /// Tests that passed.
    pub tests: usize,
    seconds: f64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.result.is_ok() { "passed" } else { "FAILED" };
        let tests = if self.tests > 0 { format!("  ({} tests)", self.tests) } else { String::new() };
        write!(f, "{verdict}  {:>5.0} s  {}{tests}", self.seconds, self.name)
    }
}

impl Stage {
    /// Commands that run one after another.
    pub fn new(name: impl Into<String>, commands: Vec<Command>) -> Self {
        Self::of(name, |log| commands.into_iter().try_for_each(|command| into_file(command, log)))
    }

    /// Anything else.
    pub fn of(name: impl Into<String>, work: impl FnOnce(&Path) -> Result<()> + Send + 'static) -> Self {
        Self { name: name.into(), work: Box::new(work) }
    }

    fn run(self, log: &Path) -> (Done, String) {
        let Self { name, work } = self;
        let start = Instant::now();
        let result = work(log).map_err(|e| format!("{name}: {e}"));
        let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
        let _ = std::fs::remove_file(log);
        let tests = text.lines().filter_map(passed).sum();
        (Done { name, result, tests, seconds: start.elapsed().as_secs_f64() }, text)
    }
}

/// How many tests passed, of a line that says so.
fn passed(line: &str) -> Option<usize> {
    line.strip_prefix("test result: ")?.split_once(" passed")?.0.rsplit(' ').next()?.parse().ok()
}

/// What is shown of that which stages print.
#[derive(Clone, Copy, PartialEq)]
pub enum Shown {
    All,
    /// That of stages that fail.
    Failures,
}

/// Runs stages two at a time. What each prints goes to a file, and is shown, if at all, once the stage is done.
pub fn two_at_a_time(stages: Vec<Stage>, shown: Shown) -> Vec<Done> {
    let (waiting, done) = (Mutex::new(stages.into_iter().enumerate().collect::<VecDeque<_>>()), Mutex::new(vec![]));
    let next = || waiting.lock().expect("no panic under this lock").pop_front();
    let worker = || {
        while let Some((i, stage)) = next() {
            let log = std::env::temp_dir().join(format!("wgpu-attention-stage-{i}-{}.log", std::process::id()));
            if shown == Shown::All {
                println!("== {}", stage.name);
            }
            let (finished, text) = stage.run(&log);
            // Shown whole, not mixed with that of the other.
            let mut done = done.lock().expect("no panic under this lock");
            match shown {
                Shown::All => println!("== {finished}\n{text}"),
                Shown::Failures if finished.result.is_err() => println!("{finished}\n{text}"),
                Shown::Failures => println!("{finished}"),
            }
            done.push((i, finished));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(worker);
        scope.spawn(worker);
    });
    let mut done = done.into_inner().expect("no panic under this lock");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, done)| done).collect()
}

/// Runs a command; what it prints goes to the end of a file.
fn into_file(mut command: Command, log: &Path) -> Result<()> {
    let failed = |e: std::io::Error| format!("{}: {e}", log.display());
    let mut file = File::options().create(true).append(true).open(log).map_err(failed)?;
    std::io::Write::write_all(&mut file, format!("$ {}\n", shown(&command)).as_bytes()).map_err(failed)?;
    run_quietly(command.stdout(file.try_clone().map_err(failed)?).stderr(file))
}
