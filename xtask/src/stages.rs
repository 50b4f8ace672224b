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
    name: &'static str,
    work: Work,
}

/// What became of a stage.
pub struct Done {
    name: &'static str,
    pub result: Result<()>,
    seconds: f64,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.result.is_ok() { "passed" } else { "FAILED" };
        write!(f, "{verdict}  {:>5.0} s  {}", self.seconds, self.name)
    }
}

impl Stage {
    /// Commands that run one after another.
    pub fn new(name: &'static str, commands: Vec<Command>) -> Self {
        Self::of(name, |log| commands.into_iter().try_for_each(|command| into_file(command, log)))
    }

    /// Anything else.
    pub fn of(name: &'static str, work: impl FnOnce(&Path) -> Result<()> + Send + 'static) -> Self {
        Self { name, work: Box::new(work) }
    }

    fn run(self, log: &Path) -> Done {
        let Self { name, work } = self;
        println!("== {name}");
        let start = Instant::now();
        let result = work(log).map_err(|e| format!("{name}: {e}"));
        Done { name, result, seconds: start.elapsed().as_secs_f64() }
    }
}

/// Runs stages two at a time. What each prints goes to a file, and is shown once the stage is done.
pub fn two_at_a_time(stages: Vec<Stage>) -> Vec<Done> {
    let (waiting, done) = (Mutex::new(stages.into_iter().enumerate().collect::<VecDeque<_>>()), Mutex::new(vec![]));
    let next = || waiting.lock().expect("no panic under this lock").pop_front();
    let worker = || {
        while let Some((i, stage)) = next() {
            let log = std::env::temp_dir().join(format!("wgpu-attention-stage-{i}-{}.log", std::process::id()));
            let finished = stage.run(&log);
            // Shown whole, not mixed with that of the other.
            let mut done = done.lock().expect("no panic under this lock");
            println!("== {finished}\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            let _ = std::fs::remove_file(&log);
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
