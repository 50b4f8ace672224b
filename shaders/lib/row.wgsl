// Element index of a row by strides: (offset, batch stride, head stride, row stride). Sums wrap round 2^32 on purpose: a slice's
// offset is relative to the part of the buffer it binds.
fn row_of(at: vec4u, batch: u32, head: u32, row: u32) -> u32 {
    return at.x + batch * at.y + head * at.z + row * at.w;
}
