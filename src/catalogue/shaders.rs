//! The shader texts that the cases of softmax attention lead to.

use super::flash_cases::DTYPES;
use super::{AttentionCase, BackwardCase, block_sparse_cases, flash_backward_cases, flash_cases, neighborhood_cases};
use crate::{AttentionPlan, AttentionShapes, Caps, DType, Result};

/// A flash case of a typical size.
pub fn flash() -> AttentionCase {
    AttentionCase { heads: (8, 8), lengths: (1024, 1024), dims: (128, 128), ..AttentionCase::default() }
}

/// Distinct texts by name.
#[derive(Default)]
struct Texts(Vec<(String, String)>);

impl Texts {
    fn add(&mut self, name: &str, texts: Vec<(&str, String)>) {
        for (kernel, text) in texts {
            if self.0.iter().all(|(_, known)| *known != text) {
                let name = format!("{name}_{}", kernel.replace(' ', "_"));
                let alike = self.0.iter().filter(|(known, _)| known.starts_with(&name)).count();
                self.0.push((if alike == 0 { name } else { format!("{name}_{}", alike + 1) }, text));
            }
        }
    }

    fn forward(&mut self, caps: &Caps, room: &str, cases: Vec<AttentionCase>) {
        for case in cases {
            self.add(&text_name(&case, room), valid(case.plan(caps)).wgsl());
        }
    }

    /// Other types are reached by the accessors that the forward pass has shown.
    fn backward(&mut self, caps: &Caps, cases: Vec<BackwardCase>) {
        for case in cases.into_iter().filter(|case| case.forward.dtypes == [DType::F32; 3]) {
            let plan = case.plan(caps).expect("the catalogue has valid cases");
            self.add(&text_name(&case.forward, "backward"), plan.wgsl());
        }
    }
}

fn valid(plan: Result<AttentionPlan>) -> AttentionPlan {
    plan.expect("the catalogue has valid cases")
}

fn roomy() -> Caps {
    Caps { workgroup_memory: 32 << 10, ..Caps::core() }
}

/// The distinct shaders of the catalogue, and of tensors that share a buffer with an output: in a browser with WebGPU's default
/// limits, and with more workgroup memory; and of typical shapes in other programs, where loops stay loops.
pub fn of_flash() -> Vec<(String, String)> {
    let mut found = Texts::default();
    for (caps, room) in [(Caps::core(), "16k"), (roomy(), "32k")] {
        found.forward(&caps, room, flash_cases());
        if room == "16k" {
            found.backward(&caps, flash_backward_cases());
        }
        for dtype in DTYPES {
            for (d, layout) in [(64, "wide"), (31, "narrow")] {
                let case = AttentionCase { dims: (d, d), ..AttentionCase::default() }.of_type(dtype);
                let near = AttentionShapes { buffers: [0, 0, 1, 0, 0, 5, 6, 7, 8, 9, 10], ..case.plan_shapes() };
                let plan = AttentionPlan::new(&caps, &case.params, &near);
                found.add(&format!("flash_d{d}_{dtype}_one_buffer_near_{layout}_{room}"), valid(plan).wgsl());
                let far =
                    AttentionShapes { out: near.out.clone().at(1 << 20), lse: near.lse.clone().at(1 << 22), ..near };
                let plan = AttentionPlan::new(&caps, &case.params, &far);
                found.add(&format!("flash_d{d}_{dtype}_one_buffer_far_{layout}_{room}"), valid(plan).wgsl());
            }
        }
    }
    let native = Caps { backend: wgpu::Backend::Noop, ..Caps::core() };
    for dims in [(32, 32), (64, 64), (128, 128), (256, 256)] {
        let case = || AttentionCase { dims, ..flash() };
        found.forward(&native, "native", vec![case()]);
        found.backward(&native, vec![BackwardCase::of(case())]);
    }
    found.0
}

/// The distinct shaders of the catalogue of neighborhoods. How types and layouts are reached, flash attention shows.
pub fn of_neighborhood() -> Vec<(String, String)> {
    let mut found = Texts::default();
    let simple = |case: &AttentionCase| case.dtypes == [DType::F32; 3] && !case.strided && case.additional == 0;
    let cases = || neighborhood_cases().into_iter().filter(simple).collect::<Vec<_>>();
    found.forward(&Caps::core(), "16k", cases());
    found.backward(&Caps::core(), cases().into_iter().map(BackwardCase::of).collect());
    found.0
}

/// The distinct shaders of the catalogue of block masks. How types and layouts are reached, flash attention shows.
pub fn of_block_sparse() -> Vec<(String, String)> {
    let mut found = Texts::default();
    let simple = |case: &AttentionCase| case.dtypes == [DType::F32; 3] && !case.strided && case.additional == 0;
    let cases = || block_sparse_cases().into_iter().filter(simple).collect::<Vec<_>>();
    found.forward(&Caps::core(), "16k", cases());
    found.backward(&Caps::core(), cases().into_iter().map(BackwardCase::of).collect());
    let conversions = crate::block_sparse::conversions(&Caps::core()).expect("a valid grid");
    found.add("core", conversions.iter().map(|(name, text)| (name.as_str(), text.clone())).collect());
    found.0
}

/// What tells a shader text from others.
fn text_name(case: &AttentionCase, room: &str) -> String {
    let ([q, k, out], (d, dv)) = (case.dtypes, case.dims);
    let family = match (&case.blocks, case.axes.len()) {
        (Some(_), _) => "block_sparse".into(),
        (None, 0) => "flash".into(),
        (None, axes) => format!("neighborhood_{axes}d"),
    };
    let layout = if case.strided { "_strided" } else { "" };
    let softcap = if case.params.softcap.is_some() { "_softcap" } else { "" };
    let alibi = if case.params.alibi_slopes.is_some() { "_alibi" } else { "" };
    let bias = if case.bias.is_some() { "_bias" } else { "" };
    let mask = if case.mask.is_some() { "_mask" } else { "" };
    let packed = if case.cu_seqlens.is_some() { "_packed" } else { "" };
    let additional = if case.additional > 0 { "_additional" } else { "" };
    let hooks: String = case.hooks.iter().map(|hook| format!("_{hook:?}").replace(['(', ')'], "")).collect();
    format!("{family}_{room}_d{d}_v{dv}_{q}_{k}_{out}{layout}{softcap}{alibi}{bias}{mask}{packed}{additional}{hooks}")
}
