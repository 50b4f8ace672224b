//! Random calls of the public API, many of them wrong: no panic, no defect reported, no hang, no allocation beyond bounds.
//!
//! `WGPU_ATTENTION_FUZZ=SECONDS,FIRST` says for how long and from which attempt on; each has a number, from which all of it is made.
//! Default: the first 300, as far as they come in 10 seconds.

mod common;
#[path = "fuzz/draft.rs"]
mod draft;
#[path = "fuzz/files.rs"]
mod files;
#[path = "fuzz/hooks.rs"]
mod hooks;
#[path = "fuzz/others.rs"]
mod others;
#[path = "fuzz/problems.rs"]
mod problems;
#[path = "common/program.rs"]
mod program;
#[path = "fuzz/softmax.rs"]
mod softmax;
#[path = "fuzz/source.rs"]
mod source;

use common::gpu;
use pollster::block_on;
use problems::Problem;
use program::Files;
use source::Source;
use std::alloc::{GlobalAlloc, Layout as Size, System};
use std::borrow::Cow;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use wgpu_attention::catalogue::poisoned;
use wgpu_attention::plan::Name;
use wgpu_attention::plan::{AdapterKind, AttentionParams, Caps, Program, Shapes};
use wgpu_attention::{
    BlockGrid, BlockMask, Call, DType, Error, FlashAttention, FlashParams, Hook, Layout, Prepared, Result, Tensor,
};

/// Bytes that planning may allocate in all, on the host: a call with the most batch entries, heads and dispatches has tables of them.
const PLANNING: usize = 1 << 30;
/// Longest time that planning may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest time of anything else: compiling shaders on a busy processor.
const HANG: Duration = Duration::from_secs(600);

/// Counts bytes, to know what an attempt allocates.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands on to the system's allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, size: Size) -> *mut u8 {
        let live = LIVE.fetch_add(size.size(), Relaxed) + size.size();
        PEAK.fetch_max(live, Relaxed);
        unsafe { System.alloc(size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, size: Size) {
        LIVE.fetch_sub(size.size(), Relaxed);
        unsafe { System.dealloc(at, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Seconds, and which attempts.
fn budget() -> (u64, Range<u64>) {
    let Ok(budget) = std::env::var("WGPU_ATTENTION_FUZZ") else { return (10, 0..300) };
    let parts =
        budget.split_once(',').and_then(|(time, first)| Some((time.parse().ok()?, first.parse().ok()?..u64::MAX)));
    parts.unwrap_or_else(|| panic!("WGPU_ATTENTION_FUZZ={budget}: SECONDS,FIRST"))
}

fn caps(s: &mut Source) -> Caps {
    let mut caps = s.pick(&[Caps::core(), Caps::unlimited(), gpu().caps().clone()]);
    if s.one_in(4) {
        caps.kind = s.pick(&[AdapterKind::Software, AdapterKind::Integrated, AdapterKind::Discrete]);
        caps.driver = s.pick(&["", "llvmpipe"]).into();
        let limit = s.number();
        match s.below(6) {
            0 => caps.workgroup_memory = limit as u32,
            1 => caps.invocations = limit as u32,
            2 => caps.storage_buffers = limit as u32,
            3 => caps.binding_bytes = limit as u64,
            4 => caps.buffer_bytes = limit as u64,
            _ => caps.workgroups = limit as u32,
        }
    }
    caps
}

/// How many attempts got so far.
static PLANNED: AtomicUsize = AtomicUsize::new(0);
static RUN: AtomicUsize = AtomicUsize::new(0);

/// What is no defect.
#[track_caller]
fn honest<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(e @ (Error::Internal { .. } | Error::Shader { .. } | Error::DeviceLost { .. } | Error::Timeout { .. })) => {
            panic!("{e}")
        }
        Err(_) => None,
    }
}

/// Plans, within bounds.
fn plan(problem: &Problem, caps: &Caps) -> Option<Program> {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let program = quick(|| honest((problem.plan)(caps, &problem.shapes)));
    let bytes = PEAK.load(Relaxed).saturating_sub(before);
    assert!(bytes < PLANNING, "planning allocated {bytes} bytes");
    PLANNED.fetch_add(usize::from(program.is_some()), Relaxed);
    program
}

/// What takes no time: a busy processor may make it wait once, not each time.
fn quick<T>(mut run: impl FnMut() -> T) -> T {
    for _ in 0..3 {
        let start = Instant::now();
        let found = run();
        if start.elapsed() < PATIENCE {
            return found;
        }
    }
    panic!("it takes more than {PATIENCE:?}");
}

/// The tensors and numbers of a program.
struct Filled {
    tensors: Vec<(Name, Tensor)>,
    numbers: Vec<(Name, Vec<usize>)>,
}

impl Call for Filled {
    fn tensors(&self) -> Vec<(Name, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect()
    }

    fn numbers(&self) -> Vec<(Name, Cow<'_, [usize]>)> {
        self.numbers.iter().map(|(name, numbers)| (name.clone(), numbers.into())).collect()
    }
}

fn elements(layout: &Layout) -> usize {
    let reach = (0..3).map(|i| layout.strides[i].saturating_mul(layout.shape[i].saturating_sub(1)));
    let all = reach.fold(layout.offset, usize::saturating_add).saturating_add(layout.shape[3]);
    all.max(layout.shape.iter().fold(1, |n, &of| n.saturating_mul(of)))
}

fn filled(s: &mut Source, layout: &Layout) -> Option<Tensor> {
    let count: usize = layout.shape.iter().product();
    let odd = s.one_in(4);
    let values: Vec<f32> = match layout.dtype {
        DType::U8 => (0..count).map(|_| s.below(2) as f32).collect(),
        DType::U32 => (0..count).map(|_| if odd { s.number() as f32 } else { s.below(9) as f32 }).collect(),
        _ => (0..count).map(|i| if odd && s.one_in(8) { s.float() } else { (i % 17) as f32 / 8.0 - 1.0 }).collect(),
    };
    honest(block_on(poisoned(gpu(), layout.clone(), &values)))
}

/// Runs what fits, on tensors of which some are others than were prepared for.
fn run(s: &mut Source, problem: &Problem) {
    let Some(program) = plan(problem, gpu().caps()) else { return };
    let bytes: usize =
        program.tensors.iter().map(|spec| elements(&spec.layout).saturating_mul(4)).fold(0, usize::saturating_add);
    let work = program.kernels.len() * program.dispatches.len();
    if bytes > 4 << 20 || work > 4000 {
        return;
    }
    let Some(prepared) = honest((problem.prepare)(gpu(), &problem.shapes)) else { return };
    let specs = prepared.plan().tensors.clone();
    let mut call = Filled { tensors: vec![], numbers: prepared.plan().numbers.clone() };
    for spec in specs {
        let mut layout = spec.layout;
        if s.one_in(60) {
            let which = s.below(4);
            layout.shape[which] = s.small().min(16);
        }
        if elements(&layout) > 1 << 20 {
            continue;
        }
        if let Some(tensor) = filled(s, &layout).filter(|_| !s.one_in(60)) {
            call.tensors.push((spec.name, tensor));
        }
    }
    if s.one_in(20) && call.tensors.len() > 1 {
        let (from, to) = (s.below(call.tensors.len()), s.below(call.tensors.len()));
        call.tensors[to].1 = call.tensors[from].1.clone();
    }
    finish(&prepared, &call);
}

fn finish(prepared: &Prepared, call: &Filled) {
    if honest(block_on(prepared.submit(call))).is_none() {
        return;
    }
    RUN.fetch_add(1, Relaxed);
    honest(block_on(prepared.check()));
    for (name, tensor) in &call.tensors {
        if prepared.plan().tensor(name).is_some_and(|spec| spec.written) {
            honest(block_on(async {
                if tensor.layout().dtype == DType::U32 {
                    tensor.read_u32().await.map(drop)
                } else {
                    tensor.read().await.map(drop)
                }
            }));
        }
    }
}

/// A call with hooks, whose texts are compiled.
fn hooked(s: &mut Source) {
    let score_mod: Vec<Hook> = (0..s.below(3)).map(|_| hooks::score(s)).collect();
    let mask_mod: Vec<Hook> = (0..s.below(3)).map(|_| hooks::mask(s)).collect();
    say(format!("{score_mod:?} {mask_mod:?}"));
    let layout = Layout::heads_first(DType::F32, [1, 1, 4, 4]);
    let shapes = Shapes::new(["q", "k", "v"].map(|name| (name, layout.clone())));
    let params = FlashParams { score_mod, mask_mod, ..FlashParams::default() };
    if quick(|| honest(params.plan(gpu().caps(), &shapes))).is_some() {
        honest(FlashAttention::new(gpu(), params).and_then(|attention| block_on(attention.prepare(&shapes)).map(drop)));
    }
}

/// Block masks of grids that fit and that do not.
fn masks(s: &mut Source) {
    let size = |s: &mut Source| if s.one_in(5) { s.number() } else { s.small() };
    let block = |s: &mut Source| if s.one_in(6) { s.number() } else { 1 << s.below(7) };
    let grid = BlockGrid {
        batch: size(s).min(1 << s.below(24)),
        heads: size(s).min(1 << s.below(24)),
        queries: size(s),
        keys: size(s),
        block: [block(s), block(s)],
    };
    let checked = honest(grid.check());
    let (blocks, shape) = (grid.blocks(), grid.shape());
    let row = s.number();
    assert!(grid.own(row).end <= blocks[1] && shape[2] == blocks[0]);
    // Larger ones take their time, as their documentation says.
    if checked.is_some() && grid.shape().iter().fold(32, |n: usize, &of| n.saturating_mul(of)) > 1 << 22 {
        return;
    }
    let counts = [(); 3].map(|()| s.number());
    let [sink, local, more] = counts;
    let made = block_on(async {
        match s.below(8) {
            0 => BlockMask::causal(gpu(), grid).await,
            1 => BlockMask::sliding_window(gpu(), grid, sink, local).await,
            2 => BlockMask::long_gen(gpu(), grid, sink, local).await,
            3 => BlockMask::s2_attention(gpu(), grid, sink, local).await,
            4 => BlockMask::big_bird(gpu(), grid, sink, local, more, 7).await,
            5 => BlockMask::random(gpu(), grid, s.float(), s.one_in(2), 3).await,
            6 => {
                let rows = grid.batch.min(3) * grid.heads.min(3) * blocks[0].min(9);
                let mut offsets: Vec<u32> = (0..rows as u32 + 1).map(|i| i.min(4)).collect();
                let mut lists: Vec<u32> = (0..4).map(|_| s.below(blocks[1].clamp(1, 99)) as u32).collect();
                if s.one_in(2) && !offsets.is_empty() {
                    let at = s.below(offsets.len());
                    offsets[at] = s.number() as u32;
                }
                lists.extend(s.maybe(3, |s| s.number() as u32));
                BlockMask::from_host_lists(gpu(), grid, (&offsets, &lists), None).await
            }
            _ => BlockMask::from_hooks(gpu(), grid, &[hooks::mask(s)]).await,
        }
    });
    let Some(mask) = honest(made) else { return };
    honest(block_on(mask.read()));
    honest(block_on(mask.transpose()).and_then(|turned| block_on(turned.read())));
    let capacity = s.number();
    honest(block_on(mask.to_lists(capacity)));
}

/// Views, buffers of the caller's, reads and writes.
fn tensors(s: &mut Source) {
    let shape = [(); 4].map(|()| s.pick(&[0, 1, 2, 5]));
    let dtype = s.pick(&[DType::F32, DType::F16, DType::Bf16, DType::U8, DType::U32]);
    let count: usize = shape.iter().product::<usize>() + usize::from(s.one_in(6));
    let values: Vec<f32> = (0..count).map(|_| s.float()).collect();
    let Some(tensor) = honest(block_on(Tensor::upload(gpu(), shape, dtype, &values))) else { return };
    let mut layout = s.layout(dtype, shape);
    for _ in 0..s.below(3) {
        let (which, n) = (s.below(4), s.number());
        match s.below(3) {
            0 => layout.shape[which] = n,
            1 => *layout.strides.get_mut(which).unwrap_or(&mut layout.offset) = n,
            _ => layout.dtype = s.pick(&[DType::F32, DType::F16, DType::U8, DType::U32]),
        }
    }
    let expanded = [(); 4].map(|()| s.number());
    honest(tensor.layout().clone().expand(expanded));
    honest(block_on(async { Tensor::empty(gpu(), layout.clone()).await.map(|_| ()) }).or_else(|e| match e {
        // Larger than any buffer, or than the memory that is left.
        Error::OutOfMemory { .. } => Ok(()),
        other => Err(other),
    }));
    let Some(view) = honest(tensor.view(layout)) else { return };
    let bytes = view.shape().iter().fold(4usize, |n, &of| n.saturating_mul(of));
    if bytes < 1 << 24 {
        if let Some(read) = honest(block_on(view.read())) {
            honest(block_on(view.write(&read)));
        }
        honest(block_on(view.read_u32()));
    } else {
        // Larger than what is ever read at once.
        if bytes > 1 << 31 {
            assert!(quick(|| block_on(view.read())).is_err());
        }
    }
}

/// What the attempt is, in words.
static WORDS: Mutex<String> = Mutex::new(String::new());

fn say(words: String) {
    *WORDS.lock().unwrap_or_else(PoisonError::into_inner) = words;
}

fn attempt(number: u64, files: &Files) {
    let bytes = source::bytes(number);
    let s = &mut Source::new(&bytes);
    match s.below(32) {
        0..3 => masks(s),
        3..6 => tensors(s),
        6 => files::attempt(s, files),
        7..11 => hooked(s),
        kind => {
            let problem = Problem::any(s);
            say(format!("{}, {:?}", problem.words, problem.shapes));
            if kind < 16 { run(s, &problem) } else { drop(plan(&problem, &caps(s))) }
        }
    }
}

#[test]
fn nothing_that_is_asked_breaks_it() {
    let (seconds, numbers) = budget();
    let first = numbers.start;
    let files = Files::new("fuzz");
    let (start, done) = (Instant::now(), AtomicBool::new(false));
    let current = Mutex::new((first, start));
    let now = || current.lock().expect("no panic under this lock");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                let (number, since) = *now();
                if since.elapsed() > HANG {
                    eprintln!("attempt {number} hangs: {}", WORDS.lock().unwrap_or_else(PoisonError::into_inner));
                    std::process::abort();
                }
            }
        });
        let mut failures = vec![];
        let mut number = first;
        while start.elapsed().as_secs() < seconds && numbers.contains(&number) && failures.len() < 20 {
            *now() = (number, Instant::now());
            say(String::new());
            if catch_unwind(AssertUnwindSafe(|| attempt(number, &files))).is_err() {
                eprintln!("attempt {number} failed: {}", WORDS.lock().unwrap_or_else(PoisonError::into_inner));
                failures.push(number);
            }
            number += 1;
        }
        done.store(true, Relaxed);
        let [planned, run] = [PLANNED.load(Relaxed), RUN.load(Relaxed)];
        eprintln!("{} attempts on {}, {planned} planned, {run} run", number - first, gpu().caps().adapter);
        assert!(failures.is_empty(), "attempts {failures:?} failed");
        assert!(number - first < 100 || (planned > 0 && run > 0), "what fits together is refused");
    });
}
