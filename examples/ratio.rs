use wgpu_attention::*;
fn main() {
    pollster::block_on(async {
        let n: usize = std::env::var("N").map_or(1024, |x| x.parse().unwrap());
        let d: usize = std::env::args().nth(1).map_or(64, |x| x.parse().unwrap());
        let gpu = Gpu::request().await.unwrap();
        let vals: Vec<f32> = (0..8 * n * d).map(|i| ((i * 7919 % 1000) as f32) / 500.0 - 1.0).collect();
        let q = Tensor::upload(&gpu, [1, 8, n, d], DType::F32, &vals).await.unwrap();
        let mut ps = vec![];
        for c in [None, Some(Causal::BottomRight)] {
            let a = FlashAttention::new(&gpu, FlashParams { causal: c, ..Default::default() }).unwrap();
            let (o, l) = a.forward_with_lse(&FlashInputs::new(&q, &q, &q)).await.unwrap();
            let t = std::time::Instant::now();
            let i = FlashInputs::new(&q, &q, &q);
            let to = FlashOutputs { out: &o, lse: &l };
            let p = a.prepare(&FlashShapes::of(&i, &to)).await.unwrap();
            gpu.time(|pass| p.encode_in(pass, &i, &to)).await.unwrap();
            eprintln!("first {:?}", t.elapsed());
            ps.push((p, o, l));
        }
        let mut ts = [vec![], vec![]];
        for _ in 0..7 {
            for (k, (p, o, l)) in ps.iter().enumerate() {
                let i = FlashInputs::new(&q, &q, &q);
                let to = FlashOutputs { out: o, lse: l };
                ts[k].push(gpu.time(|pass| p.encode_in(pass, &i, &to)).await.unwrap().seconds * 1e3);
            }
        }
        for t in &mut ts {
            t.sort_by(f64::total_cmp);
        }
        println!("full {:.1} ms causal {:.1} ms ratio {:.3}", ts[0][3], ts[1][3], ts[1][3] / ts[0][3]);
    })
}
