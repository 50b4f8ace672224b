// The baseline: attention as three kernels with the scores in memory, those of the crate's flash bench (unfused.wgsl). They run on the
// device of our tensors, and read their buffers.

const TILE = 64;

export class UnfusedAttention {
  constructor(gpu) {
    this.device = gpu.device;
  }

  // Seconds a run for f32 tensors [1, heads, tokens, width]: the mean of `repeat`.
  async time(q, k, v, repeat = 1) {
    const { device } = this;
    const [, heads, n, d] = q.shape;
    const bytes = 4 * heads * n * n;
    const most = device.limits.maxStorageBufferBindingSize;
    if (bytes > most) throw Object.assign(new Error(`scores of ${bytes} bytes; a binding has ${most}`), { name: "Limit" });
    const stages = await this.stages();
    const storage = GPUBufferUsage.STORAGE;
    const sizes = device.createBuffer({ size: 16, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
    const words = new Uint32Array([n, d, 0, 0]);
    new Float32Array(words.buffer)[2] = 1 / Math.sqrt(d);
    device.queue.writeBuffer(sizes, 0, words);
    const made = [sizes, device.createBuffer({ size: bytes, usage: storage }), device.createBuffer({ size: 4 * heads * n * d, usage: storage })];
    const buffers = [sizes, q.buffer, k.buffer, v.buffer, made[1], made[2]];
    const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
    const group = device.createBindGroup({ layout: this.layout, entries });
    const [rows, cols] = [Math.ceil(n / TILE), Math.ceil(d / TILE)];
    const dispatches = [[rows, rows, heads], [n, 1, heads], [cols, rows, heads]];
    const seconds = await this.timed((pass) => {
      pass.setBindGroup(0, group);
      for (let i = 0; i < repeat; i++) {
        stages.forEach((pipeline, j) => {
          pass.setPipeline(pipeline);
          pass.dispatchWorkgroups(...dispatches[j]);
        });
      }
    });
    made.forEach((buffer) => buffer.destroy());
    return seconds / repeat;
  }

  async stages() {
    if (this.pipelines) return this.pipelines;
    const { device } = this;
    const type = (binding) => (binding === 0 ? "uniform" : binding < 4 ? "read-only-storage" : "storage");
    this.layout = device.createBindGroupLayout({
      entries: [0, 1, 2, 3, 4, 5].map((binding) => ({
        binding, visibility: GPUShaderStage.COMPUTE, buffer: { type: type(binding) },
      })),
    });
    const layout = device.createPipelineLayout({ bindGroupLayouts: [this.layout] });
    const module = device.createShaderModule({ code: await (await fetch("unfused.wgsl")).text() });
    this.pipelines = await Promise.all(["score", "soften", "weigh"].map((entryPoint) =>
      device.createComputePipelineAsync({ layout, compute: { module, entryPoint } })));
    return this.pipelines;
  }

  // By the GPU's timestamps where it has them, else by the clock.
  async timed(record) {
    const { device } = this;
    const stamped = device.features.has("timestamp-query");
    const querySet = stamped ? device.createQuerySet({ type: "timestamp", count: 2 }) : null;
    const timestampWrites = stamped ? { querySet, beginningOfPassWriteIndex: 0, endOfPassWriteIndex: 1 } : undefined;
    const { QUERY_RESOLVE, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;
    const resolved = device.createBuffer({ size: 16, usage: QUERY_RESOLVE | COPY_SRC });
    const read = device.createBuffer({ size: 16, usage: COPY_DST | MAP_READ });
    await device.queue.onSubmittedWorkDone();
    const start = performance.now();
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass({ timestampWrites });
    record(pass);
    pass.end();
    if (stamped) {
      encoder.resolveQuerySet(querySet, 0, 2, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, read, 0, 16);
    }
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    const took = (performance.now() - start) / 1000;
    if (!stamped) return took;
    await read.mapAsync(GPUMapMode.READ);
    const [from, to] = new BigUint64Array(read.getMappedRange().slice(0));
    [resolved, read, querySet].forEach((each) => each.destroy());
    return Number(to - from) * 1e-9;
  }
}
