//! Tensors that hooks carry.

use crate::gpu::prepared::check_device;
use crate::program::Name;
use crate::program::hook::{Carried, Carry, Placed, tensor_name};
use crate::{Gpu, Hook, Result, Tensor};
use std::any::Any;
use std::sync::Arc;

impl Carry for Tensor {
    fn is_same(&self, other: &dyn Any) -> bool {
        other.downcast_ref::<Tensor>().is_some_and(|other| self == other)
    }
}

impl Hook {
    /// The same with one more buffer, which the source reads by this name: a tensor with this tensor's layout. Calls that bring none use
    /// this tensor.
    pub fn with_buffer(self, name: impl Into<String>, buffer: &Tensor) -> Self {
        let name = name.into();
        let mut hook = self.declaring(name.clone(), buffer.layout().clone());
        hook.carried.push((name, Carried(Arc::new(buffer.clone()))));
        hook
    }
}

/// The tensors that hooks carry, by the names of a call.
pub(crate) fn defaults(hooks: &[Placed]) -> Vec<(Name, Tensor)> {
    let carried = hooks.iter().flat_map(|placed| &placed.hook.carried);
    let tensor = |(name, Carried(carried)): &(String, Carried)| {
        let any: &dyn Any = &**carried;
        Some((tensor_name(name), any.downcast_ref::<Tensor>()?.clone()))
    };
    carried.filter_map(tensor).collect()
}

/// Buffers of the kernel's own device.
pub(crate) fn check_devices(gpu: &Gpu, hooks: &[Placed]) -> Result<()> {
    for Placed { place, hook } in hooks {
        for (name, Carried(carried)) in &hook.carried {
            let any: &dyn Any = &**carried;
            if let Some(tensor) = any.downcast_ref::<Tensor>() {
                check_device(&format!("{place}.buffers: {name}"), tensor, gpu)?;
            }
        }
    }
    Ok(())
}
