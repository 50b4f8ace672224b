//! The variants of flash attention, and the shader texts that its cases lead to.

use super::flash_cases::DTYPES;
use super::{FlashCase, flash_backward_cases, flash_cases};
use crate::{AttentionPlan, AttentionShapes, Caps, DType, Result};

/// The variants at head dim 128, in words.
pub fn variants(caps: &Caps) -> Vec<Result<String>> {
    let case = FlashCase { heads: (8, 8), lengths: (1024, 1024), dims: (128, 128), ..FlashCase::default() };
    vec![case.plan(caps).map(|plan| plan.to_string())]
}

/// The distinct shaders of the catalogue, and of tensors that share a buffer with an output: on a device with WebGPU's
/// default limits, and on one with more workgroup memory.
pub fn shaders() -> Vec<(String, String)> {
    let roomy = Caps { workgroup_memory: 32 << 10, ..Caps::core() };
    let mut found: Vec<(String, String)> = Vec::new();
    let mut add = |name: String, texts: Vec<(&str, String)>| {
        for (kernel, text) in texts {
            if found.iter().all(|(_, known)| *known != text) {
                found.push((format!("{name}_{}", kernel.replace(' ', "_")), text));
            }
        }
    };
    let valid = |plan: Result<AttentionPlan>| plan.expect("the catalogue has valid cases");
    for (caps, room) in [(Caps::core(), "16k"), (roomy, "32k")] {
        for case in flash_cases() {
            add(text_name(&case, room), valid(case.plan(&caps)).wgsl());
        }
        if room == "16k" {
            // Other types are reached by the accessors that the forward pass has shown.
            for case in flash_backward_cases().into_iter().filter(|case| case.forward.dtypes == [DType::F32; 3]) {
                let plan = case.plan(&caps).expect("the catalogue has valid cases");
                add(text_name(&case.forward, "backward"), plan.wgsl());
            }
        }
        for dtype in DTYPES {
            for (d, layout) in [(64, "wide"), (31, "narrow")] {
                let case = FlashCase { dims: (d, d), ..FlashCase::default() }.of_type(dtype);
                let near = AttentionShapes { buffers: [0, 0, 1, 0, 0, 5, 6], ..case.plan_shapes() };
                let plan = AttentionPlan::new(&caps, &case.params, &near);
                add(format!("flash_d{d}_{dtype}_one_buffer_near_{layout}_{room}"), valid(plan).wgsl());
                let far =
                    AttentionShapes { out: near.out.clone().at(1 << 20), lse: near.lse.clone().at(1 << 22), ..near };
                let plan = AttentionPlan::new(&caps, &case.params, &far);
                add(format!("flash_d{d}_{dtype}_one_buffer_far_{layout}_{room}"), valid(plan).wgsl());
            }
        }
    }
    found
}

/// What tells a shader text from others.
fn text_name(case: &FlashCase, room: &str) -> String {
    let ([q, k, out], (d, dv)) = (case.dtypes, case.dims);
    let layout = if case.strided { "_strided" } else { "" };
    let softcap = if case.params.softcap.is_some() { "_softcap" } else { "" };
    let alibi = if case.params.alibi_slopes.is_some() { "_alibi" } else { "" };
    let bias = if case.bias.is_some() { "_bias" } else { "" };
    let mask = if case.mask.is_some() { "_mask" } else { "" };
    let packed = if case.cu_seqlens.is_some() { "_packed" } else { "" };
    let hooks: String = case.hooks.iter().map(|hook| format!("_{hook:?}").replace(['(', ')'], "")).collect();
    format!("flash_{room}_d{d}_v{dv}_{q}_{k}_{out}{layout}{softcap}{alibi}{bias}{mask}{packed}{hooks}")
}
