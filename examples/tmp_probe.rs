use pollster::block_on;
use wgpu_attention::catalogue::*;
use wgpu_attention::*;
fn main() {
    let gpu = block_on(Gpu::request()).unwrap();
    for d in [16usize, 64, 128, 256] {
        for log in [12, 13, 14, 15, 16] {
            let n = 1usize << log;
            if n * d > 1 << 23 {
                continue;
            }
            let c = AttentionCase { batch: 1, heads: (1, 1), lengths: (64, n), dims: (d, d), ..Default::default() };
            let f = block_on(c.run(&gpu)).unwrap().over_tolerance;
            let b = block_on(BackwardCase::of(c).run(&gpu)).unwrap().over_tolerance;
            let c = AttentionCase { batch: 1, heads: (1, 1), lengths: (n, 64), dims: (d, d), ..Default::default() };
            let t = block_on(BackwardCase::of(c).run(&gpu)).unwrap().over_tolerance;
            println!("D {d} N {n}: forward {f:.2}, dq {b:.2}, dkv {t:.2}");
        }
    }
}
