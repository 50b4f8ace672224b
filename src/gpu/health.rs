//! What the API objects to, and whether the device is still there.

use crate::{Error, Gpu, Result};
#[cfg(not(target_arch = "wasm32"))]
use futures::FutureExt;

/// Why a device is gone, where its driver does not say.
const LOST: &str = "it was destroyed, unplugged or reset";

/// Why a device is gone, as its callback says it.
pub(super) fn reason(lost: wgpu::DeviceLostReason, message: String) -> String {
    match lost {
        wgpu::DeviceLostReason::Destroyed => "it was destroyed".into(),
        _ if message.is_empty() => LOST.into(),
        _ => message,
    }
}

impl Gpu {
    /// Runs `make` so that what the API objects to becomes an `Error`. Scopes are per thread: pushed and popped before
    /// anything is awaited.
    pub(crate) fn scoped<T, F: FnOnce(&wgpu::Device) -> T>(
        &self,
        make: F,
    ) -> (T, impl Future<Output = Option<wgpu::Error>> + use<T, F>) {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let device = &self.0.device;
        let scopes = [OutOfMemory, Internal, Validation].map(|filter| device.push_error_scope(filter));
        let made = make(device);
        let [memory, internal, validation] = scopes;
        let [validation, internal, memory] = [validation, internal, memory].map(|scope| scope.pop());
        // Whatever else is wrong follows from a lack of memory, if there is one.
        (made, async move {
            let (validation, internal) = (validation.await, internal.await);
            memory.await.or(internal).or(validation)
        })
    }

    /// What the API objected to, as an `Error`: the loss of the device if that is the cause.
    pub(crate) async fn refused(&self, what: &str, popped: Option<wgpu::Error>) -> Result<()> {
        let Some(e) = popped else { return Ok(()) };
        self.alive()?;
        if self.hands_out_invalid_buffers().await {
            return Err(self.lost());
        }
        Err(match e {
            wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { what: what.into() },
            _ => Error::Internal { what: what.into(), message: e.to_string() },
        })
    }

    /// The same of what goes to the queue. On native, a lost device takes it without a word.
    pub(crate) async fn queued(&self, what: &str, popped: Option<wgpu::Error>) -> Result<()> {
        self.refused(what, popped).await?;
        #[cfg(not(target_arch = "wasm32"))]
        if self.hands_out_invalid_buffers().await {
            return Err(self.lost());
        }
        Ok(())
    }

    /// A lost device makes buffers without complaint; mapping one is refused. (A borrowed device has no other sign.)
    async fn hands_out_invalid_buffers(&self) -> bool {
        let (buffer, made) = self.scoped(|device| {
            let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("probe"),
                size: 4,
                usage,
                mapped_at_creation: false,
            })
        });
        let made = made.await.is_none();
        let ((), mapped) = self.scoped(|_| buffer.map_async(wgpu::MapMode::Read, .., |_| {}));
        made && mapped.await.is_some()
    }

    /// What the API refused, by the name of the buffer that is to blame, if one is.
    pub(crate) fn blamed<'a>(&self, e: Error, mut buffers: impl Iterator<Item = (&'a str, &'a wgpu::Buffer)>) -> Error {
        let Error::Internal { .. } = e else { return e };
        let found = buffers.find_map(|(name, buffer)| Some((name, self.unusable(buffer)?)));
        found.map_or(e, |(name, why)| Error::argument(format!("{name}.buffer"), why, "one that can be used"))
    }

    /// Why a buffer cannot be used; a browser tells it in a console.
    #[cfg(target_arch = "wasm32")]
    fn unusable(&self, _: &wgpu::Buffer) -> Option<&'static str> {
        None
    }

    /// Why a buffer cannot be used, where that shows.
    #[cfg(not(target_arch = "wasm32"))]
    fn unusable(&self, buffer: &wgpu::Buffer) -> Option<&'static str> {
        if buffer.get_mapped_range(0..buffer.size().min(8)).is_ok() {
            return Some("a mapped buffer");
        }
        let (_, popped) = self.scoped(|device| {
            let ty = wgpu::BufferBindingType::Storage { read_only: true };
            let entry = wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            };
            let layout =
                device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &[entry] });
            let size = wgpu::BufferSize::new(4);
            let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: 0, size });
            let entries = &[wgpu::BindGroupEntry { binding: 0, resource }];
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries })
        });
        popped.now_or_never().flatten().map(|_| "a destroyed or invalid buffer")
    }

    /// An `Error` if the device is known to be lost.
    pub(crate) fn alive(&self) -> Result<()> {
        self.0.lost.get().map_or(Ok(()), |reason| Err(Error::DeviceLost { reason: reason.clone() }))
    }

    pub(super) fn lost(&self) -> Error {
        Error::DeviceLost { reason: self.0.lost.get().cloned().unwrap_or_else(|| LOST.into()) }
    }
}
