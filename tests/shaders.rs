//! Every shader variant through every back end of naga: SPIR-V, MSL, HLSL and, where the types allow, GLSL. With
//! `spirv-val` on the path, the SPIR-V is validated too.

use naga::back::{glsl, hlsl, msl, spv};
use naga::proc::BoundsCheckPolicies;
use naga::valid::{ModuleInfo, ValidationFlags};
use naga::{Module, ShaderStage};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use wgpu_attention::catalogue::{Case, FAMILIES, sample};
use wgpu_attention::plan::{AttentionParams, Caps, Engine, Shapes};
use wgpu_attention::{
    Causal, DType, FlashParams, Layout, LinearAlgorithm, LinearParams, NeighborhoodAxis, NeighborhoodParams,
};

/// What wgpu would allow in a shader on a device without optional features.
fn validate(name: &str, text: &str) -> (Module, ModuleInfo) {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)));
    let core = (wgpu::Features::empty(), wgpu::DownlevelFlags::all());
    let mut validator = wgpu_naga_bridge::create_validator(core.0, core.1, ValidationFlags::all());
    let info = validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)));
    (module, info)
}

/// A browser was seen to leave a variable without a value as it was when the code around it runs again. (Arrays are written whole before
/// they are read.)
#[test]
fn names_of_shaders_are_unique() {
    let mut known = std::collections::BTreeSet::new();
    for (name, _) in FAMILIES.iter().flat_map(|family| (family.shaders)()) {
        assert!(known.insert(name.clone()), "{name} is there twice");
    }
    assert!(known.len() > 600, "{}", known.len());
}

#[test]
fn variables_begin_with_a_value() {
    for (name, text) in FAMILIES.iter().flat_map(|family| (family.shaders)()) {
        for statement in text.split([';', '{', '}']).map(str::trim) {
            let bare = statement.strip_prefix("var ").filter(|rest| !rest.contains('='));
            assert!(bare.is_none_or(|rest| rest.contains(": array<")), "{name}: `{statement}`");
        }
    }
}

/// A page downloads no shader compiler but the browser's own.
#[test]
fn no_naga_and_no_wgpu_core_on_the_web() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["tree", "--package=wgpu-attention-web", "--target=wasm32-unknown-unknown", "--edges=normal"];
    let all = ["--features=catalogue", "--prefix=none", "--format={p}"];
    let tree = Command::new(cargo).args(arguments).args(all).output().expect("cargo runs");
    let text = String::from_utf8_lossy(&tree.stdout);
    let packages: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(packages.contains(&"wgpu"), "{text} {}", String::from_utf8_lossy(&tree.stderr));
    assert!(!packages.iter().any(|name| ["naga", "wgpu-core", "wgpu-hal"].contains(name)), "{text}");
}

/// Each text is parsed and validated once, and goes through all back ends.
#[test]
fn every_back_end() {
    let present = Command::new("spirv-val").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !present {
        eprintln!("spirv-val is not installed: SPIR-V is written, but not validated");
    }
    let all: Vec<(String, String)> = FAMILIES.iter().flat_map(|family| (family.shaders)()).collect();
    assert!(all.len() > 600, "only {} shaders found", all.len());
    let next = AtomicUsize::new(0);
    let go_on = || {
        while let Some((name, text)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (module, info) = validate(name, text);
            spirv(name, &module, &info, present);
            metal(name, &module, &info);
            direct_x(name, &module, &info);
            open_gl(name, &module, &info);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(go_on))));
}

/// With and without bounds of loops, as wgpu writes them.
fn spirv(name: &str, module: &Module, info: &ModuleInfo, validates: bool) {
    let started = [false, true].map(|bounded| {
        let options = spv::Options { lang_version: (1, 3), force_loop_bounding: bounded, ..Default::default() };
        let words = spv::write_vec(module, info, &options, None).unwrap_or_else(|e| panic!("{name}: SPIR-V: {e}"));
        validates.then(|| {
            let mut validator = Command::new("spirv-val")
                .args(["--target-env", "vulkan1.1", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .expect("spirv-val starts");
            let mut input = validator.stdin.take().expect("it is piped");
            input.write_all(bytemuck::cast_slice(&words)).expect("spirv-val reads");
            validator
        })
    });
    for mut validator in started.into_iter().flatten() {
        assert!(validator.wait().expect("spirv-val ends").success(), "{name}: spirv-val rejects it");
    }
}

fn metal(name: &str, module: &Module, info: &ModuleInfo) {
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..Default::default() };
    let written = msl::write_string(module, info, &options, &msl::PipelineOptions::default());
    let (text, _) = written.unwrap_or_else(|e| panic!("{name}: MSL: {e}"));
    assert!(text.contains("kernel"), "{name}: MSL: no entry point");
}

/// HLSL. `WGPU_ATTENTION_HLSL` names a folder that the texts go to, for another compiler.
fn direct_x(name: &str, module: &Module, info: &ModuleInfo) {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_2,
        fake_missing_bindings: true,
        immediates_target: Some(hlsl::BindTarget::default()),
        ..Default::default()
    };
    let (pipeline, mut text) = (hlsl::PipelineOptions::default(), String::new());
    let written = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None);
    written.unwrap_or_else(|e| panic!("{name}: HLSL: {e}"));
    assert!(text.contains("numthreads"), "{name}: HLSL: no entry point");
    if let Some(folder) = std::env::var_os("WGPU_ATTENTION_HLSL").map(PathBuf::from) {
        std::fs::write(folder.join(format!("{name}.hlsl")), text).expect("a writable folder");
    }
}

fn open_gl(name: &str, module: &Module, info: &ModuleInfo) {
    let pipeline =
        glsl::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: "main".into(), multiview: None };
    let options = glsl::Options { version: glsl::Version::Desktop(430), ..Default::default() };
    let (policies, mut text) = (BoundsCheckPolicies::default(), String::new());
    let writer = glsl::Writer::new(&mut text, module, info, &options, &pipeline, policies);
    writer.and_then(|mut w| w.write()).unwrap_or_else(|e| panic!("{name}: GLSL: {e}"));
    assert!(text.contains("void main"), "{name}: GLSL: no entry point");
}

/// The paths and first lines of all WGSL files, by which they are known in a text.
fn files(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("the shaders") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "wgsl") {
            let text = std::fs::read_to_string(&path).expect("readable");
            let name = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders")).expect("a shader");
            let name = name.with_extension("").to_str().expect("a plain path").replace('\\', "/");
            found.push((name, format!("\n{}\n", text.lines().next().expect("a first line"))));
        }
    }
}

/// Whether files are those of a row of the list, in its order.
fn fits(row: &[&str], found: &[&str]) -> bool {
    let Some((token, rest)) = row.split_first() else { return found.is_empty() };
    if let Some(file) = token.strip_suffix('?') {
        return fits(rest, found) || (found.first() == Some(&file) && fits(rest, &found[1..]));
    }
    token.split('|').any(|all| {
        let all: Vec<&str> = all.split('+').collect();
        found.starts_with(&all) && fits(rest, &found[all.len()..])
    })
}

/// The kernels of engine `processor`, in subgroups of several sizes.
fn of_processor() -> Vec<(String, String)> {
    let mut all = vec![];
    for (subgroup, width) in [(4, 20), (8, 16), (8, 64), (8, 256), (16, 96)] {
        let caps = Caps::unlimited().with(|caps| (caps.engine, caps.subgroup) = (Engine::Processor, subgroup));
        let [batch, heads, rows] = [1, 2, 70];
        let like = |width| Layout::heads_first(DType::F16, [batch, heads, rows, width]);
        let shapes = ["q", "k", "v"].into_iter().fold(Shapes::default(), |all, name| all.tensor(name, like(width)));
        let outputs = shapes.clone().tensor("lse", Layout { dtype: DType::F32, ..like(1) });
        let training = ["out", "dout"].into_iter().fold(outputs, |all, name| all.tensor(name, like(width)));
        let with_gates = shapes.clone().tensor("g", Layout { dtype: DType::F32, ..like(1) });
        let by_token =
            |causal| LinearParams { causal, algorithm: Some(LinearAlgorithm::Recurrent), ..Default::default() };
        let of_state = Layout::heads_first(DType::F32, [batch, heads, width, width]);
        let with_states = ["h0", "ht"].into_iter().fold(shapes.clone(), |all, name| all.tensor(name, of_state.clone()));
        let masked = FlashParams { causal: Some(Causal::BottomRight), softcap: Some(3.0), ..FlashParams::default() };
        let axes = vec![NeighborhoodAxis::new(7, 3), NeighborhoodAxis::new(10, 5)];
        let neighborhood = NeighborhoodParams { axes, ..NeighborhoodParams::default() };
        // With too few buffers for both, dk and dv come apart.
        let few = caps.clone().with(|caps| caps.storage_buffers = 6);
        let programs = [
            FlashParams::default().plan(&caps, &shapes),
            masked.plan(&caps, &shapes),
            neighborhood.plan(&caps, &shapes),
            FlashParams::default().plan_backward(&caps, &training),
            masked.plan_backward(&few, &training),
            neighborhood.plan_backward(&caps, &training),
            by_token(true).plan(&caps, &with_states),
            by_token(false).plan(&caps, &shapes),
            LinearParams::default().plan_backward(&caps, &with_gates.tensor("dout", like(width))),
        ];
        let kernels = programs.into_iter().flat_map(|program| program.expect("a plan").kernels);
        all.extend(kernels.map(|kernel| (kernel.name.replace([' ', '-'], "_"), kernel.wgsl)));
    }
    all
}

/// They ask for subgroups, and for nothing else.
#[test]
fn kernels_of_engine_processor() {
    let features = wgpu::Features::SUBGROUP;
    for (name, text) in of_processor() {
        let module =
            naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&text)));
        let mut validator =
            wgpu_naga_bridge::create_validator(features, wgpu::DownlevelFlags::all(), ValidationFlags::all());
        validator.validate(&module).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&text)));
    }
}

/// `shaders/README.md` says which files make which kernel, and every file is in one.
#[test]
fn files_of_kernels_are_as_listed() {
    let (mut all, readme) = (vec![], include_str!("../shaders/README.md"));
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders"), &mut all);
    let rows: Vec<(String, Vec<&str>)> = readme
        .split("```text\n")
        .nth(1)
        .expect("the list")
        .lines()
        .take_while(|line| *line != "```")
        .map(|line| line.split_once(": ").expect("a kernel and its files"))
        .map(|(kernel, files)| (kernel.replace(' ', "_"), files.split(' ').collect()))
        .collect();
    let (mut used, mut met) = (BTreeSet::new(), BTreeSet::new());
    for (name, text) in FAMILIES.iter().flat_map(|family| (family.shaders)()).chain(of_processor()) {
        let mut found: Vec<(usize, &str)> =
            all.iter().filter_map(|(file, line)| Some((text.find(line)?, file.as_str()))).collect();
        found.sort_unstable();
        let found: Vec<&str> = found.into_iter().map(|(_, file)| file).collect();
        used.extend(found.iter().copied());
        // Without the number that tells texts of one name apart.
        let plain = name.rsplit_once('_').filter(|(_, n)| n.parse::<u32>().is_ok()).map_or(&*name, |(plain, _)| plain);
        let of_name = rows.iter().filter(|(kernel, _)| plain == kernel || plain.ends_with(&format!("_{kernel}")));
        let (kernel, row) =
            of_name.max_by_key(|(kernel, _)| kernel.len()).unwrap_or_else(|| panic!("{name} is not listed"));
        assert!(fits(row, &found), "{name} is {found:?}");
        met.insert(kernel);
    }
    rows.iter().for_each(|(kernel, _)| assert!(met.contains(kernel), "no plan has {kernel}"));
    all.iter().for_each(|(file, _)| assert!(used.contains(file.as_str()), "no plan has {file}"));
}

/// What `check` and `cargo xtask test` run by default.
#[test]
fn a_sample_runs_every_kernel() {
    let mut count = 0;
    for family in FAMILIES {
        let cases = (family.cases)();
        for caps in [Caps::core(), Caps::core().with(|caps| (caps.engine, caps.subgroup) = (Engine::Processor, 8))] {
            let kernels = |case: &dyn Case| case.kernels(&caps).unwrap().into_iter().map(|kernel| kernel.name);
            let all: BTreeSet<String> = cases.iter().flat_map(|case| kernels(&**case)).collect();
            let some = sample(cases.iter().map(|case| &**case), &caps).unwrap();
            let reached: BTreeSet<String> = some.iter().flat_map(|&i| kernels(&*cases[i])).collect();
            assert_eq!(reached, all, "{}", family.name);
            assert!(!some.is_empty() && some.len() < cases.len());
            count += some.len();
        }
    }
    assert!(count / 2 < 160, "{count} for two kinds of device: a short check should have a hundred cases or so");
}
