//! What a device can do, from what wgpu says of it.

use crate::{AdapterKind, Backend, Caps, Engine};

impl Caps {
    /// What a device with these limits and features can do.
    pub fn of(info: &wgpu::AdapterInfo, limits: &wgpu::Limits, features: wgpu::Features) -> Self {
        let size = info.subgroup_min_size;
        let adapter_subgroup = if size == info.subgroup_max_size { size } else { 0 };
        let subgroup = if features.contains(wgpu::Features::SUBGROUP) { adapter_subgroup } else { 0 };
        let processor = info.device_type == wgpu::DeviceType::Cpu && Self::serves_processor(subgroup);
        Self {
            adapter: if info.name.is_empty() { "an adapter without a name".into() } else { info.name.clone() },
            backend: match info.backend {
                wgpu::Backend::Noop => Backend::Noop,
                wgpu::Backend::Vulkan => Backend::Vulkan,
                wgpu::Backend::Metal => Backend::Metal,
                wgpu::Backend::Dx12 => Backend::Dx12,
                wgpu::Backend::Gl => Backend::Gl,
                wgpu::Backend::BrowserWebGpu => Backend::BrowserWebGpu,
            },
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            kind: match info.device_type {
                wgpu::DeviceType::Cpu => AdapterKind::Software,
                wgpu::DeviceType::DiscreteGpu => AdapterKind::Discrete,
                _ => AdapterKind::Integrated,
            },
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            invocations: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            binding_bytes: limits.max_storage_buffer_binding_size,
            buffer_bytes: limits.max_buffer_size,
            workgroups: limits.max_compute_workgroups_per_dimension,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
            uniform_alignment: limits.min_uniform_buffer_offset_alignment,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            subgroup,
            adapter_subgroup,
            engine: if processor { Engine::Processor } else { Engine::Portable },
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Caps;

    #[test]
    fn core_caps_are_the_default_limits() {
        let info = wgpu::AdapterInfo::new(wgpu::DeviceType::Other, wgpu::Backend::BrowserWebGpu);
        let found = Caps::of(&info, &wgpu::Limits::default(), wgpu::Features::empty());
        assert_eq!(Caps::core(), Caps { adapter: Caps::core().adapter, ..found });
    }
}
