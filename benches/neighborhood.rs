//! Neighborhood attention on the GPU beside this crate's own dense kernel on the same tensors, forward and backward.
//! `cargo bench --features catalogue --bench neighborhood`; the lines with ratios say how many times faster it is than dense,
//! beside the number of tokens over the size of the window, and the plan says which share of the computed scores is useful.

mod common;

use common::{Gradients, Timed, ratios, testing};
use criterion::{Criterion, criterion_group, criterion_main};
use wgpu_attention::catalogue::AttentionCase;
use wgpu_attention::plan::AdapterKind;
use wgpu_attention::{Gpu, NeighborhoodAxis};

struct Space {
    heads: usize,
    head_dim: usize,
    axes: Vec<NeighborhoodAxis>,
}

fn space(heads: usize, head_dim: usize, lengths: &[usize], window: usize, stride: usize, dilation: usize) -> Space {
    let axis = |&length: &usize| NeighborhoodAxis { stride, dilation, ..NeighborhoodAxis::new(length, window) };
    Space { heads, head_dim, axes: lengths.iter().map(axis).collect() }
}

/// For a processor, for a GPU, or just large enough to see that it still works.
fn spaces(kind: AdapterKind) -> Vec<Space> {
    match kind {
        _ if testing() => vec![space(1, 16, &[12, 9], 3, 1, 1)],
        AdapterKind::Software => vec![
            space(1, 64, &[8192], 512, 1, 1),
            space(2, 64, &[64, 64], 13, 1, 1),
            space(2, 64, &[56, 56], 7, 1, 1),
            space(2, 32, &[56, 56], 7, 1, 1),
            space(2, 32, &[56, 56], 7, 1, 8),
            space(2, 64, &[64, 64], 16, 16, 1),
            space(2, 64, &[16, 16, 16], 5, 1, 1),
        ],
        _ => vec![
            space(1, 128, &[32768], 2048, 1, 1),
            space(1, 128, &[32768], 2048, 256, 1),
            space(1, 128, &[32768], 2048, 2048, 1),
            space(16, 64, &[8192], 512, 1, 1),
            space(16, 64, &[64, 64], 13, 1, 1),
            space(16, 64, &[56, 56], 7, 1, 1),
            space(12, 32, &[56, 56], 7, 1, 1),
            space(12, 32, &[56, 56], 7, 1, 8),
            space(4, 128, &[256, 256], 80, 1, 1),
            space(4, 128, &[256, 256], 80, 16, 1),
            space(16, 64, &[32, 32, 32], 8, 1, 1),
        ],
    }
}

fn bench(criterion: &mut Criterion) {
    let gpu = pollster::block_on(Gpu::request()).expect("a GPU driver");
    eprintln!("{}\nan element is a floating-point operation: thrpt is in FLOP/s and bytes/s", gpu.caps());
    for Space { heads, head_dim, axes } in spaces(gpu.caps().kind) {
        let case = |case: AttentionCase| AttentionCase { heads: (heads, heads), dims: (head_dim, head_dim), ..case };
        let tokens: usize = axes.iter().map(|axis| axis.length).product();
        let window: usize = axes.iter().map(|axis| axis.window).product();
        let numbers = |of: fn(&NeighborhoodAxis) -> usize| {
            axes.iter().map(|axis| of(axis).to_string()).collect::<Vec<_>>().join("×")
        };
        let (stride, dilation) = (axes[0].stride, axes[0].dilation);
        let name = format!(
            "{} window {} stride {stride} dilation {dilation} H {heads} D {head_dim}",
            numbers(|axis| axis.length),
            numbers(|axis| axis.window)
        );
        let dense = || case(AttentionCase { lengths: (tokens, tokens), ..AttentionCase::default() });
        let own = || case(AttentionCase::neighborhood(&axes));
        let dense_forward = Timed::new(&gpu, &format!("dense/{name}"), dense(), (tokens * tokens) as f64);
        let forward = Timed::new(&gpu, &format!("neighborhood/{name}"), own(), (tokens * window) as f64);
        dense_forward.measure(criterion);
        forward.measure(criterion);
        let (dense, own) = (Gradients::new(&gpu, dense()), Gradients::new(&gpu, own()));
        let medians = ratios(
            &name,
            &[
                ("neighborhood", &|| forward.seconds()),
                ("dense", &|| dense_forward.seconds()),
                ("neighborhood, backward", &|| own.seconds()),
                ("dense, backward", &|| dense.seconds()),
            ],
        );
        println!(
            "ratio    dense over neighborhood: forward {:.1}, backward {:.1}, {:.1} by the count of pairs",
            medians[1] / medians[0],
            medians[3] / medians[2],
            tokens as f64 / window as f64
        );
        println!("  {}", forward.plan());
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
