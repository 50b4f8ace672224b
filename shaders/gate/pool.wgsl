// Pooling of tokens to blocks: of block m, for each part p and each place d of the head dimension
//
//   to[m][p·HEAD_DIM + d] = max, min or mean of x[t][d] over the block's tokens t that there are
//
// x [batch, heads, tokens, head_dim]; to [batch, heads, blocks, parts · HEAD_DIM]: what it has of a block without tokens is not
// read. A NaN makes the result NaN. A workgroup takes a block, its threads every LANES-th token of four places each.
// Workgroup memory: 64·WG bytes.

const POOL_MAX: u32 = 0u;
const POOL_MIN: u32 = 1u;
const LANES: u32 = WG / D4;
const LARGEST: f32 = 3.4028234663852886e38;

var<workgroup> largest: array<vec4f, WG>;
var<workgroup> smallest: array<vec4f, WG>;
var<workgroup> sums: array<vec4f, WG>;
var<workgroup> broken: array<vec4u, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) thread: u32) {
    let batch = params.first.x + workgroup.z;
    let head = params.first.y + workgroup.y;
    let block = params.first.z + workgroup.x;
    let tokens = tokens_of(batch);
    let start = (first_block(batch) + block) * block_size();
    let end = min(start + block_size(), tokens.y);
    let lane = thread / D4;
    let d = 4u * (thread % D4);
    var high = vec4f(-LARGEST);
    var low = vec4f(LARGEST);
    var sum = vec4f();
    var bad = vec4u();
    if (lane < LANES) {
        for (var token = start + lane; token < end; token += LANES) {
            var row = tokens.x + token;
            if (params.ring > 0u) { row = token % params.ring; }
            let x = load_x4(at_x(batch, head, row) + d, HEAD_DIM - d);
            high = max(high, x);
            low = min(low, x);
            sum += x;
            bad = max(bad, bitcast<vec4u>(x) & vec4u(0x7fffffffu));
        }
    }
    largest[thread] = high;
    smallest[thread] = low;
    sums[thread] = sum;
    broken[thread] = bad;
    workgroupBarrier();
    if (lane == 0u) {
        for (var other = 1u; other < LANES; other++) {
            let at = thread + other * D4;
            high = max(high, largest[at]);
            low = min(low, smallest[at]);
            sum += sums[at];
            bad = max(bad, broken[at]);
        }
        for (var part = 0u; part < params.pools; part++) {
            let kind = params.pool[part];
            var pooled = sum / f32(max(end, start + 1u) - start);
            if (kind == POOL_MAX) { pooled = high; }
            if (kind == POOL_MIN) { pooled = low; }
            pooled = bitcast<vec4f>(select(bitcast<vec4u>(pooled), vec4u(NAN_BITS), bad > vec4u(0x7f800000u)));
            let to = at_to(batch, head, block) + part * HEAD_DIM + d;
            for (var e = 0u; e < 4u; e++) {
                if (d + e < HEAD_DIM) { store_to(to + e, bitcast<u32>(pooled[e])); }
            }
        }
    }
}
