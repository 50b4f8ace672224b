//! A host for programs as JSON: plain wgpu, and nothing of this crate. Each tensor has a buffer of its own.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use wgpu::util::{BufferInitDescriptor, DeviceExt};
use wgpu::{BindGroupEntry, BindGroupLayoutEntry, BindingType, Buffer, BufferBindingType, BufferUsages, Device, Queue};

fn int(value: &Value) -> u64 {
    value.as_u64().expect("a whole number")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

/// Records a program into a pass that is submitted. Returns the buffers of its tensors.
pub fn run(device: &Device, queue: &Queue, program: &Value, tensors: &BTreeMap<String, Vec<u8>>) -> Vec<Buffer> {
    let buffer = |mut contents: Vec<u8>| {
        contents.resize(contents.len().next_multiple_of(16).max(16), 0);
        let usage = BufferUsages::STORAGE | BufferUsages::UNIFORM | BufferUsages::COPY_SRC;
        device.create_buffer_init(&BufferInitDescriptor { label: None, contents: &contents, usage })
    };
    let all = |name: &str, contents: &dyn Fn(&Value) -> Vec<u8>| -> Vec<Buffer> {
        list(&program[name]).iter().map(|one| buffer(contents(one))).collect()
    };
    let bytes = |bytes: &Value| list(bytes).iter().map(|byte| int(byte) as u8).collect::<Vec<u8>>();
    let given = all("tensors", &|tensor| tensors[tensor["name"].as_str().expect("a name")].clone());
    let scratch = all("scratch", &|one| vec![0; int(&one["bytes"]) as usize]);
    let tables = all("tables", &|table| bytes(&table["bytes"]));
    let (uniforms, empty) = (all("dispatches", &|one| bytes(&one["uniform"])), buffer(vec![]));
    let first: BTreeSet<u64> = list(&program["slices"]).iter().flat_map(|s| list(&s["first"])).map(int).collect();
    let work = list(&program["slices"]).iter().flat_map(|s| int(&s["work"]["start"])..int(&s["work"]["end"]));
    let mut encoder = device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    for i in first.into_iter().chain(work).map(|i| i as usize) {
        let dispatch = &program["dispatches"][i];
        let kernel = &program["kernels"][int(&dispatch["kernel"]) as usize];
        let (mut kinds, mut entries) = ([vec![], vec![]], [vec![], vec![]]);
        for (bound, range) in list(&kernel["bindings"]).iter().zip(list(&dispatch["ranges"])) {
            let (group, binding) = (int(&bound["group"]) as usize, int(&bound["binding"]) as u32);
            let mut sources = [("tensor", &given), ("scratch", &scratch), ("table", &tables)].into_iter();
            let found = sources.find_map(|(kind, all)| all.get(bound["source"][kind].as_u64()? as usize));
            let size = wgpu::BufferSize::new(int(&range["end"]) - int(&range["start"]));
            let (buffer, offset) = size.map_or((&empty, 0), |_| (found.unwrap_or(&uniforms[i]), int(&range["start"])));
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
            let ty = match bound["access"].as_str() {
                Some("uniform") => BufferBindingType::Uniform,
                access => BufferBindingType::Storage { read_only: access == Some("read") },
            };
            let (visibility, ty) = (
                wgpu::ShaderStages::COMPUTE,
                BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            );
            kinds[group].push(BindGroupLayoutEntry { binding, visibility, ty, count: None });
            entries[group].push(BindGroupEntry { binding, resource });
        }
        let layout =
            |entries| device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries });
        let layouts = kinds.each_ref().map(|kinds| layout(kinds));
        let bind_group_layouts = &layouts.each_ref().map(Some);
        let layout = wgpu::PipelineLayoutDescriptor { bind_group_layouts, ..Default::default() };
        let source = wgpu::ShaderSource::Wgsl(kernel["wgsl"].as_str().expect("a text").into());
        pass.set_pipeline(&device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&device.create_pipeline_layout(&layout)),
            module: &device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source }),
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        }));
        for (group, (layout, entries)) in (0..).zip(layouts.iter().zip(&entries)) {
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout, entries };
            pass.set_bind_group(group, &device.create_bind_group(&descriptor), &[]);
        }
        let [x, y, z] = std::array::from_fn(|axis| int(&dispatch["workgroups"][axis]) as u32);
        pass.dispatch_workgroups(x, y, z);
    }
    drop(pass);
    queue.submit([encoder.finish()]);
    given
}
