//! burn's attention and wgpu-attention on the same adapter, in turns: forward, and forward and backward by each one's own gradients.
//! Each run is timed from the call to the end of the GPU's work. All runs of a row go round by round; figures are medians.
//!
//! `cargo run --release --manifest-path benches/peers/burn/Cargo.toml -- --help`

mod burns;
mod ours;
#[path = "../../../common/peaks.rs"]
mod peaks;

use burns::Burns;
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use ours::Ours;
use peaks::Peaks;
use std::time::Instant;
use wgpu_attention::plan::Engine;

/// burn's attention and wgpu-attention on the same adapter, in turns.
#[derive(Parser)]
struct Arguments {
    /// Lengths of queries and keys.
    #[arg(long, value_delimiter = ',', default_value = "256,1024,4096")]
    lengths: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "32,64,128")]
    head_dims: Vec<usize>,
    #[arg(long, default_value_t = 8)]
    heads: usize,
    /// With gradients up to this length.
    #[arg(long, default_value_t = 4096)]
    gradients: usize,
    /// Rounds of each row; a third of them where one takes longer than ten seconds.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// The size of a problem.
#[derive(Clone, Copy)]
pub struct Size {
    heads: usize,
    n: usize,
    d: usize,
    causal: bool,
}

impl Size {
    fn shape(self) -> [usize; 4] {
        [1, self.heads, self.n, self.d]
    }

    /// The values of tensor number `seed`: the same for both sides.
    fn values(self, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..self.heads * self.n * self.d).map(next).collect()
    }

    /// Multiply and add of every visible pair count as two; a backward pass has two and a half times those of the forward pass.
    fn flops(self, gradients: bool) -> f64 {
        let pairs = if self.causal { self.n * (self.n + 1) / 2 } else { self.n * self.n };
        4.0 * (self.heads * pairs * self.d) as f64 * if gradients { 3.5 } else { 1.0 }
    }
}

/// What both sides can do with a problem: out, or the gradients of q, k and v.
pub trait Side {
    fn name(&self) -> String;
    fn forward(&self) -> Vec<Vec<f32>>;
    fn gradients(&self) -> Vec<Vec<f32>>;
    fn run_forward(&self);
    fn run_gradients(&self);
}

fn main() {
    let arguments = Arguments::parse();
    let ours = [Engine::Portable, Engine::Processor].map(ours::gpu);
    let burn = burns::device();
    let gpu = ours.iter().flatten().next().expect("a GPU driver");
    println!("{}", gpu.caps());
    println!("burn 0.22.1 on {}; B 1, H {}, f32; milliseconds, medians of rounds in turns", burn.name, arguments.heads);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let ratios = ["burn / best", "portable / best", "% of FMA peak"];
    table.set_header(["N", "D", "", "pass", "burn", "portable", "processor"].into_iter().chain(ratios));
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for &n in &arguments.lengths {
        for (d, causal) in arguments.head_dims.iter().flat_map(|&d| [(d, false), (d, true)]) {
            let size = Size { heads: arguments.heads, n, d, causal };
            let mut sides: Vec<Box<dyn Side>> = vec![Box::new(Burns::new(&burn, size))];
            sides.extend(ours.iter().flatten().map(|gpu| Box::new(Ours::new(gpu, size)) as Box<dyn Side>));
            for gradients in [false, true].into_iter().filter(|gradients| !gradients || n <= arguments.gradients) {
                check(&sides, gradients);
                table.add_row(row(&sides, gpu, size, gradients, arguments.rounds));
                eprintln!("{}", table.lines().last().unwrap_or_default());
            }
        }
    }
    println!("{table}");
}

/// All sides must come to the same.
fn check(sides: &[Box<dyn Side>], gradients: bool) {
    let of = |side: &dyn Side| if gradients { side.gradients() } else { side.forward() };
    let want = of(&*sides[0]);
    for side in &sides[1..] {
        for (want, found) in want.iter().zip(of(&**side)) {
            let largest = want.iter().fold(1f32, |most, x| most.max(x.abs()));
            let apart = want.iter().zip(&found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart < 1e-4 * largest, "{} is {apart} apart from burn, of {largest} at most", side.name());
        }
    }
}

fn row(sides: &[Box<dyn Side>], gpu: &wgpu_attention::Gpu, size: Size, gradients: bool, rounds: usize) -> Vec<String> {
    let peaks = Peaks::new(gpu);
    let mut times = vec![vec![]; sides.len()];
    let (mut multiply_adds, mut taken) = (vec![], 0);
    while taken < rounds {
        for (side, times) in sides.iter().zip(&mut times) {
            let start = Instant::now();
            if gradients {
                side.run_gradients()
            } else {
                side.run_forward()
            }
            times.push(start.elapsed().as_secs_f64());
        }
        multiply_adds.push(peaks.multiply_adds());
        let longest = times.iter().flatten().fold(0f64, |most, &x| most.max(x));
        taken += if longest > 10.0 { 3 } else { 1 };
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    let best = medians[1..].iter().fold(f64::INFINITY, |least, &x| least.min(x));
    let mask = if size.causal { "causal" } else { "" };
    let pass = if gradients { "forward + backward" } else { "forward" };
    let ms = |seconds: f64| format!("{:.1}", 1e3 * seconds);
    let mut row = vec![size.n.to_string(), size.d.to_string(), mask.into(), pass.into()];
    row.extend((0..3).map(|i| medians.get(i).map_or("–".into(), |&seconds| ms(seconds))));
    row.extend([medians[0] / best, medians[1] / best].map(|ratio| format!("{ratio:.2}")));
    row.push(format!("{:.0}", 100.0 * size.flops(gradients) / best / median(multiply_adds)));
    row
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
