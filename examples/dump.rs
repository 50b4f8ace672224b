use wgpu_attention::*;
fn main() {
    let a: Vec<usize> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect();
    let (d, dv) = (a[0], a[1]);
    let l = |d| Layout::heads_first(DType::F32, [1, 8, 1024, d]);
    let mut caps = Caps::core();
    caps.workgroup_memory = 32768;
    let plan = FlashPlan::new(&caps, &FlashParams::default(), &FlashShapes::new(l(d), l(d), l(dv))).unwrap();
    eprintln!("{plan}");
    print!("{}", plan.wgsl());
}
