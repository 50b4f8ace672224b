//! The shader texts that the cases lead to.

use super::data::DTYPES;
use super::{
    AttentionCase, BackwardCase, Case, block_sparse_cases, flash_backward_cases, flash_cases, linear_backward_cases,
    linear_cases, linear_gate_cases, linear_momentum_cases, linear_summary_cases, merge_cases, neighborhood_cases,
    rotary_cases, rows_cases, score_reduction_cases, seer_decode_cases, seer_gate_cases, token_list_cases,
};
use crate::program::Kernel;
use crate::{AttentionParams, Backend, BlockGrid, Caps, DType, Engine, Hook, Layout, Result, Shapes};

/// A flash case of a typical size.
pub fn flash() -> AttentionCase {
    AttentionCase { heads: (8, 8), lengths: (1024, 1024), dims: (128, 128), ..AttentionCase::default() }
}

/// Distinct texts by name.
#[derive(Default)]
struct Texts(Vec<(String, String)>);

impl Texts {
    /// Two texts of one name are told apart by a number.
    fn add(&mut self, name: &str, texts: impl IntoIterator<Item = (String, String)>) {
        for (kernel, text) in texts {
            if self.0.iter().all(|(_, known)| *known != text) {
                let name = format!("{name}_{}", kernel.replace(' ', "_"));
                let numbered = (2..).map(|n| format!("{name}_{n}"));
                let free = |name: &String| self.0.iter().all(|(known, _)| known != name);
                let name = std::iter::once(name.clone()).chain(numbered).find(free).expect("endless");
                self.0.push((name, text));
            }
        }
    }

    fn forward(&mut self, caps: &Caps, room: &str, cases: Vec<AttentionCase>) {
        for case in cases {
            self.add(&text_name(&case, room), texts(case.kernels(caps)));
        }
    }

    /// Other types are reached by the accessors that the forward pass has shown.
    fn backward(&mut self, caps: &Caps, cases: Vec<BackwardCase>) {
        for case in cases.into_iter().filter(|case| is_f32(&case.forward)) {
            self.add(&text_name(&case.forward, "backward"), texts(case.kernels(caps)));
        }
    }
}

fn texts(kernels: Result<Vec<Kernel>>) -> impl Iterator<Item = (String, String)> {
    kernels.expect("the catalogue has valid cases").into_iter().map(|kernel| (kernel.name, kernel.wgsl))
}

fn roomy() -> Caps {
    Caps { workgroup_memory: 32 << 10, ..Caps::core() }
}

/// Where a processor runs the shaders, in a browser.
fn software() -> Caps {
    Caps { engine: Engine::Processor, ..Caps::core() }
}

fn is_f32(case: &AttentionCase) -> bool {
    case.dtypes == [DType::F32; 3]
}

/// The distinct shaders of the catalogue, and of tensors that share a buffer with an output: in a browser with WebGPU's default
/// limits, with more workgroup memory, and on a software adapter; and of typical shapes in other programs, where loops stay loops.
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
                let near = case.plan_shapes().in_one_buffer(&["q", "k", "out", "lse"]).expect("tensors of the case");
                let plan = case.params.plan(&caps, &near).map(|plan| plan.kernels);
                found.add(&format!("flash_d{d}_{dtype}_one_buffer_near_{layout}_{room}"), texts(plan));
                let at = |name: &str, offset| near.layout(name).expect("a tensor of the case").clone().at(offset);
                let far = near.clone().tensor("out", at("out", 1 << 20)).tensor("lse", at("lse", 1 << 22));
                let plan = case.params.plan(&caps, &far).map(|plan| plan.kernels);
                found.add(&format!("flash_d{d}_{dtype}_one_buffer_far_{layout}_{room}"), texts(plan));
            }
        }
    }
    found.forward(&software(), "software", flash_cases().into_iter().filter(is_f32).collect());
    let native = Caps { backend: Backend::Noop, ..Caps::core() };
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
    let simple = |case: &AttentionCase| is_f32(case) && !case.strided && case.additional == 0;
    let cases = || neighborhood_cases().into_iter().filter(simple).collect::<Vec<_>>();
    found.forward(&Caps::core(), "16k", cases());
    found.forward(&software(), "software", cases());
    found.backward(&Caps::core(), cases().into_iter().map(BackwardCase::of).collect());
    found.0
}

/// The distinct shaders of the catalogue of block masks. How types and layouts are reached, flash attention shows.
pub fn of_block_sparse() -> Vec<(String, String)> {
    let mut found = Texts::default();
    let simple = |case: &AttentionCase| is_f32(case) && !case.strided && case.additional == 0;
    let cases = || block_sparse_cases().into_iter().filter(simple).collect::<Vec<_>>();
    found.forward(&Caps::core(), "16k", cases());
    found.forward(&software(), "software", cases());
    found.backward(&Caps::core(), cases().into_iter().map(BackwardCase::of).collect());
    found.add("core", texts(conversions(&Caps::core())));
    found.0
}

/// The distinct shaders of the catalogue of lists of tokens, likewise.
pub fn of_token_lists() -> Vec<(String, String)> {
    let mut found = Texts::default();
    let simple = |case: &AttentionCase| is_f32(case) && !case.strided && case.additional == 0;
    let cases = || token_list_cases().into_iter().filter(simple).collect::<Vec<_>>();
    found.forward(&Caps::core(), "16k", cases());
    found.forward(&software(), "software", cases());
    found.backward(&Caps::core(), cases().into_iter().map(BackwardCase::of).collect());
    found.0
}

/// Every conversion of block masks.
fn conversions(caps: &Caps) -> Result<Vec<Kernel>> {
    let grid = BlockGrid { batch: 1, heads: 2, queries: 200, keys: 300, block: [64, 32] };
    let mask = Hook::new("mask", "fn mask(at: Position) -> bool { return at.key <= at.query + at.head; }");
    let bitmap = || Layout::heads_first(DType::U32, grid.shape());
    let list = |count: usize| Layout::heads_first(DType::U32, [1, 1, 1, count]);
    let lists = Shapes::new([("offsets", list(2 * 4 + 1)), ("indices", list(30)), ("with", bitmap())]);
    let programs = [
        grid.plan_transposition(caps, &Shapes::new([("from", bitmap())]))?,
        grid.plan_from_list("partial", caps, &lists)?,
        grid.plan_to_list("partial", 30, caps, &Shapes::new([("from", bitmap()), ("without", bitmap())]))?,
        grid.plan_from_hooks(&[mask], caps, &Shapes::default())?,
    ];
    Ok(programs.into_iter().flat_map(|program| program.kernels).collect())
}

/// The distinct shaders of the catalogue of reductions.
pub fn of_score_reduction() -> Vec<(String, String)> {
    let mut found = Texts::default();
    for (i, case) in score_reduction_cases().iter().enumerate() {
        found.add(&format!("reduction_{i}"), texts(case.kernels(&Caps::core())));
    }
    found.0
}

/// The distinct shaders of the catalogues of gates.
pub fn of_gate() -> Vec<(String, String)> {
    let mut found = Texts::default();
    for (i, case) in seer_gate_cases().iter().enumerate() {
        found.add(&format!("gate_{i}"), texts(case.kernels(&Caps::core())));
    }
    for (i, case) in seer_decode_cases().iter().enumerate() {
        found.add(&format!("decode_gate_{i}"), texts(case.kernels(&Caps::core())));
    }
    found.0
}

/// The distinct shaders of the catalogue of linear attention.
pub fn of_linear() -> Vec<(String, String)> {
    let mut found = Texts::default();
    for (i, case) in linear_cases().iter().enumerate() {
        found.add(&format!("linear_{i}"), texts(case.kernels(&Caps::core())));
    }
    for (i, case) in linear_backward_cases().iter().enumerate() {
        found.add(&format!("linear_backward_{i}"), texts(case.kernels(&Caps::core())));
    }
    for (i, case) in linear_summary_cases().iter().enumerate() {
        found.add(&format!("linear_summary_{i}"), texts(case.kernels(&Caps::core())));
    }
    for (i, case) in linear_gate_cases().iter().enumerate() {
        found.add(&format!("linear_gate_{i}"), texts(case.kernels(&Caps::core())));
    }
    for (i, case) in linear_momentum_cases().iter().enumerate() {
        found.add(&format!("linear_momentum_{i}"), texts(case.kernels(&Caps::core())));
    }
    found.0
}

/// The distinct shaders of the catalogue of merges.
pub fn of_merge() -> Vec<(String, String)> {
    let mut found = Texts::default();
    for case in merge_cases() {
        let [from, to] = case.dtypes;
        let strided = if case.strided { "_strided" } else { "" };
        let name = format!("merge_{}_v{}_{from}_{to}{strided}", case.parts, case.shape[3]);
        found.add(&name, texts(case.kernels(&Caps::core())));
    }
    found.0
}

/// The distinct shaders of the catalogue of rows by index.
pub fn of_rows() -> Vec<(String, String)> {
    let mut found = Texts::default();
    for (i, case) in rows_cases().iter().enumerate() {
        found.add(&format!("rows_{i}"), texts(case.kernels(&Caps::core())));
    }
    found.0
}

/// The distinct shaders of the catalogue of rotary embeddings.
pub fn of_rotary() -> Vec<(String, String)> {
    let mut found = Texts::default();
    for (i, case) in rotary_cases().iter().enumerate() {
        found.add(&format!("rotary_{i}"), texts(case.kernels(&Caps::core())));
    }
    found.0
}

/// What tells a shader text from others.
fn text_name(case: &AttentionCase, room: &str) -> String {
    let ([q, k, out], (d, dv)) = (case.dtypes, case.dims);
    let family = match (&case.blocks, case.axes.len()) {
        _ if case.token_lists.is_some() => "token_lists".into(),
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
