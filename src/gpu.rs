//! A device to compute on: requested, or borrowed from the caller's program.

pub(crate) mod call;
pub(crate) mod calls;
mod caps;
pub(crate) mod forward;
mod health;
pub(crate) mod parts;
pub(crate) mod pipeline;
pub(crate) mod prepared;
mod relation;
pub(crate) mod tensor;
pub(crate) mod timing;

use crate::small_map::SmallMap;
use crate::{Caps, Engine, Error, Result};
use futures::channel::oneshot;
use pipeline::Pipelines;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// How long a read waits for the GPU before it gives up with [`Error::Timeout`].
const PATIENCE: Duration = Duration::from_secs(300);

/// How to choose and set up a device.
///
/// ```
/// # pollster::block_on(async {
/// use wgpu_attention::{Gpu, GpuOptions};
/// let options = GpuOptions { checked_shaders: true, ..GpuOptions::default() };
/// println!("{}", Gpu::request_with(&options).await?.caps());
/// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// Part of the adapter's name, ignoring the case of ASCII letters. Unset: the system's high-performance adapter.
    pub adapter: Option<String>,
    /// Ask for WebGPU's default limits and no optional feature, whatever the adapter has.
    pub core_limits: bool,
    /// Keep the compiler's bounds checks and loop guards. Off: this crate's own shaders are compiled as trusted (on
    /// native), since every index in them is checked on the host or clamped.
    pub checked_shaders: bool,
    /// The engine for tiles and tokens. Unset: [`Engine::Processor`] on adapters whose shaders run on a CPU, else
    /// [`Engine::Portable`].
    pub engine: Option<Engine>,
    /// How much of the memory that the driver grants this program may be used, in percent. An allocation beyond it fails with
    /// [`Error::OutOfMemory`]. Unset: 95. It applies only where the driver tells how much it grants (Vulkan's memory budget, DX12).
    pub memory_percent: Option<u8>,
}

/// How much of the granted memory is used where nothing else is asked for.
const MEMORY_PERCENT: u8 = 95;

fn instance(options: &GpuOptions) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    let percent = options.memory_percent.unwrap_or(MEMORY_PERCENT).min(100);
    descriptor.memory_budget_thresholds.for_resource_creation = Some(percent);
    // wgpu's default in debug builds: lines and names in shaders, which software drivers take a quarter longer to compile with.
    if std::env::var_os("WGPU_DEBUG").is_none() {
        descriptor.flags.remove(wgpu::InstanceFlags::DEBUG);
    }
    wgpu::Instance::new(descriptor)
}

/// A device, its queue, what it can do, and the pipelines that were built for it so far, with the buffers of the last mask conversions and
/// training steps of a gate. Cloning is cheap and shares all of them.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

/// The name of a table, and what it was made from.
pub(crate) type TableKey = (&'static str, [u64; 2]);

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    caps: Caps,
    checked_shaders: bool,
    lost: Arc<OnceLock<String>>,
    tables: Mutex<SmallMap<TableKey, wgpu::Buffer>>,
    pipelines: Mutex<Pipelines>,
    cache: forward::Cache,
}

impl Gpu {
    /// A device of the system's high-performance adapter, with all the limits that it has. The environment variable `WGPU_BACKEND` and
    /// those of the Vulkan loader choose among drivers; `WGPU_DEBUG=1` keeps lines and names in shaders.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], [`Error::NoDevice`].
    pub async fn request() -> Result<Self> {
        Self::request_with(&GpuOptions::default()).await
    }

    /// A device chosen and set up by `options`.
    ///
    /// # Errors
    /// [`Error::NoAdapter`], which lists the adapters present; [`Error::NoDevice`].
    pub async fn request_with(options: &GpuOptions) -> Result<Self> {
        let instance = instance(options);
        let adapter = match &options.adapter {
            None => instance
                .request_adapter(&wgpu::RequestAdapterOptions {
                    power_preference: wgpu::PowerPreference::HighPerformance,
                    ..Default::default()
                })
                .await
                .map_err(|e| Error::NoAdapter { reason: e.to_string() })?,
            Some(name) => {
                let all = instance.enumerate_adapters(wgpu::Backends::all()).await;
                let names: Vec<String> = all.iter().map(|a| format!("\"{}\"", a.get_info().name)).collect();
                all.into_iter()
                    .find(|a| a.get_info().name.to_ascii_lowercase().contains(&name.to_ascii_lowercase()))
                    .ok_or_else(|| Error::NoAdapter {
                        reason: format!("none is named \"{name}\"; present: [{}]", names.join(", ")),
                    })?
            }
        };
        Self::open(&adapter, options).await
    }

    /// A device of every adapter in the system (an adapter that several back ends offer appears once for each).
    pub async fn request_all(options: &GpuOptions) -> Vec<Result<Self>> {
        let instance = instance(options);
        let mut all = Vec::new();
        for adapter in instance.enumerate_adapters(wgpu::Backends::all()).await {
            let name = adapter.get_info().name.to_ascii_lowercase();
            if options.adapter.as_ref().is_none_or(|wanted| name.contains(&wanted.to_ascii_lowercase())) {
                all.push(Self::open(&adapter, options).await);
            }
        }
        all
    }

    /// For a program that makes its own device: the features and limits of the adapter that make kernels faster. All kernels also run with
    /// wgpu's defaults; natively, a plan says where that costs speed.
    ///
    /// ```
    /// # pollster::block_on(async {
    /// # use wgpu_attention::wgpu;
    /// use wgpu_attention::{DType, FlashAttention, FlashParams, Gpu, Tensor};
    /// let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
    /// let adapter = instance.request_adapter(&Default::default()).await.unwrap();
    /// let mut descriptor = Gpu::device_descriptor(&adapter);
    /// descriptor.label = Some("my program"); // and whatever else it needs
    /// let (device, queue) = adapter.request_device(&descriptor).await.unwrap();
    /// let gpu = Gpu::from_device(&device, &queue);
    /// let x = Tensor::upload(&gpu, [1, 1, 2, 4], DType::F32, &[1.0; 8]).await?;
    /// let out = FlashAttention::new(&gpu, FlashParams::causal())?.forward(&x, &x, &x).await?;
    /// assert_eq!(out.read().await?, [1.0; 8]);
    /// # Ok::<(), wgpu_attention::Error>(()) }).unwrap();
    /// ```
    pub fn device_descriptor(adapter: &wgpu::Adapter) -> wgpu::DeviceDescriptor<'static> {
        wgpu::DeviceDescriptor {
            label: Some("wgpu-attention"),
            required_features: adapter.features() & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP),
            required_limits: adapter.limits(),
            ..Default::default()
        }
    }

    async fn open(adapter: &wgpu::Adapter, options: &GpuOptions) -> Result<Self> {
        let descriptor =
            if options.core_limits { wgpu::DeviceDescriptor::default() } else { Self::device_descriptor(adapter) };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::NoDevice { adapter: adapter.get_info().name, reason: e.to_string() })?;
        let mut caps = Caps::of(&device.adapter_info(), &device.limits(), device.features());
        caps.engine = options.engine.unwrap_or(caps.engine);
        if caps.engine == Engine::Processor && !Caps::serves_processor(caps.subgroup) {
            let reason = format!("engine processor does not run in subgroups of {}", caps.subgroup);
            return Err(Error::NoDevice { adapter: caps.adapter, reason });
        }
        let lost = Arc::new(OnceLock::new());
        let cell = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            let _ = cell.set(health::reason(reason, message));
        });
        Ok(Self::build(device, queue, caps, options.checked_shaders, lost))
    }

    /// Wraps a device and queue that the caller owns. The device keeps the caller's callbacks, and its limits are respected as they are.
    /// Tensors and kernels made from the result work in the caller's own encoders. Wrap a device once, and clone the result: a second wrap
    /// counts as another device.
    pub fn from_device(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let caps = Caps::of(&device.adapter_info(), &device.limits(), device.features());
        Self::build(device.clone(), queue.clone(), caps, false, Arc::default())
    }

    fn build(
        device: wgpu::Device,
        queue: wgpu::Queue,
        caps: Caps,
        checked_shaders: bool,
        lost: Arc<OnceLock<String>>,
    ) -> Self {
        Self(Arc::new(Inner {
            device,
            queue,
            caps,
            checked_shaders,
            lost,
            tables: Mutex::default(),
            pipelines: Mutex::default(),
            cache: forward::Cache::default(),
        }))
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    /// Its queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    /// A buffer of at least `bytes` bytes (16 at the least: no binding is empty), with `contents` in it.
    pub(crate) async fn buffer(
        &self,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        contents: &[u8],
    ) -> Result<wgpu::Buffer> {
        self.alive()?;
        let size = bytes.max(16).next_multiple_of(16);
        self.0.caps.within(what, "maxBufferSize", size, self.0.caps.buffer_bytes)?;
        let (buffer, popped) = self.scoped(|device| {
            let mapped_at_creation = false;
            let buffer =
                device.create_buffer(&wgpu::BufferDescriptor { label: Some(what), size, usage, mapped_at_creation });
            if !contents.is_empty() {
                self.0.queue.write_buffer(&buffer, 0, contents);
            }
            buffer
        });
        self.refused(&format!("{what} of {size} bytes"), popped.await).await?;
        Ok(buffer)
    }

    /// The bytes `[start, end)` of a buffer, once all that was submitted before is done. Both are multiples of 4.
    pub(crate) async fn read(&self, buffer: &wgpu::Buffer, start: u64, end: u64) -> Result<Vec<u8>> {
        if start == end {
            return Ok(Vec::new());
        }
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let staging = self.buffer("read-back buffer", end - start, usage, &[]).await?;
        let (submission, popped) = self.scoped(|_| {
            let mut encoder = self.encoder();
            encoder.copy_buffer_to_buffer(buffer, start, &staging, 0, end - start);
            self.0.queue.submit([encoder.finish()])
        });
        self.refused("read", popped.await).await?;
        let (sender, receiver) = oneshot::channel();
        let ((), popped) = self.scoped(|_| {
            staging.map_async(wgpu::MapMode::Read, 0..end - start, move |mapped| {
                let _ = sender.send(mapped);
            });
        });
        if popped.await.is_some() {
            // The staging buffer was made without complaint: only the loss of its device makes it invalid.
            return Err(self.lost());
        }
        self.wait(submission)?;
        match receiver.await {
            Ok(Ok(())) => {}
            _ => return Err(self.lost()),
        }
        let view = staging.get_mapped_range(0..end - start);
        let bytes = view.map_err(|e| Error::Internal { what: "read".into(), message: e.to_string() })?.to_vec();
        staging.unmap();
        Ok(bytes)
    }

    /// On native, blocks until the submission is done; in a browser the event loop does that.
    fn wait(&self, submission: wgpu::SubmissionIndex) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: Some(PATIENCE) };
        match self.0.device.poll(wait) {
            Ok(_) => Ok(()),
            Err(wgpu::PollError::Timeout) => Err(Error::Timeout { seconds: PATIENCE.as_secs() }),
            Err(_) => Err(self.lost()),
        }
    }

    /// What is kept prepared of calls that no type keeps.
    pub(crate) fn cache(&self) -> &forward::Cache {
        &self.0.cache
    }

    /// To record into.
    pub(crate) fn encoder(&self) -> wgpu::CommandEncoder {
        self.0.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
    }

    /// Submits what was recorded.
    pub(crate) async fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<()> {
        let ((), popped) = self.scoped(|_| {
            self.0.queue.submit([encoder.finish()]);
        });
        self.queued("submit", popped.await).await
    }

    fn kept_pipelines(&self) -> &Mutex<Pipelines> {
        &self.0.pipelines
    }

    /// Whether the compiler's checks stay in this crate's own shaders.
    fn checks_shaders(&self) -> bool {
        self.0.checked_shaders
    }

    /// A table of constants for shaders: made once for each key, kept for the device's life.
    pub(crate) async fn table(&self, key: TableKey, contents: impl FnOnce() -> Vec<u8>) -> Result<wgpu::Buffer> {
        if let Some(found) = self.0.tables.lock().expect("no panic under this lock").get(&key) {
            return Ok(found.clone());
        }
        let contents = contents();
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(key.0, contents.len() as u64, usage, &contents).await?;
        self.0.tables.lock().expect("no panic under this lock").insert(key, buffer.clone());
        Ok(buffer)
    }
}

/// Two are equal if one is a clone of the other. (wgpu numbers devices anew in each instance, so comparing the numbers would take two
/// devices of two instances for one.)
impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("caps", &self.0.caps).field("checked_shaders", &self.0.checked_shaders).finish()
    }
}
