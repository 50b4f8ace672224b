//! How long work takes on the GPU.

use crate::{Gpu, Result};
use web_time::Instant;

/// How long the GPU took for some work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuTime {
    /// Seconds.
    pub seconds: f64,
    /// Whether the GPU's own timestamps measured it. If it has none, the clock did, with submit and wait included.
    pub by_timestamps: bool,
}

impl Gpu {
    /// Runs what `record` puts into a compute pass, waits for it and returns how long it took on the GPU.
    ///
    /// # Errors
    /// Those of `record`, [`crate::Error::DeviceLost`], [`crate::Error::Timeout`].
    pub async fn time(&self, record: impl FnOnce(&mut wgpu::ComputePass<'_>) -> Result<()>) -> Result<GpuTime> {
        let device = self.device();
        let queries = self.caps().timestamps.then(|| {
            let ty = wgpu::QueryType::Timestamp;
            device.create_query_set(&wgpu::QuerySetDescriptor { label: Some("time"), ty, count: 2 })
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let stamps = self.buffer("timestamps", 16, usage, &[]).await?;
        let mut encoder = self.encoder();
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("timed"),
            timestamp_writes: queries.as_ref().map(|query_set| wgpu::ComputePassTimestampWrites {
                query_set,
                beginning_of_pass_write_index: Some(0),
                end_of_pass_write_index: Some(1),
            }),
        });
        record(&mut pass)?;
        drop(pass);
        if let Some(queries) = &queries {
            encoder.resolve_query_set(queries, 0..2, &stamps, 0);
        }
        self.read(&stamps, 0, 16).await?;
        let start = Instant::now();
        self.submit(encoder).await?;
        let bytes = self.read(&stamps, 0, 16).await?;
        if queries.is_none() {
            return Ok(GpuTime { seconds: start.elapsed().as_secs_f64(), by_timestamps: false });
        }
        let ticks: [u64; 2] = bytemuck::pod_read_unaligned(&bytes);
        let seconds = ticks[1].wrapping_sub(ticks[0]) as f64 * f64::from(self.queue().get_timestamp_period()) * 1e-9;
        Ok(GpuTime { seconds, by_timestamps: true })
    }
}
