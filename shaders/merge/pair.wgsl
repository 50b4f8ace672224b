// Two parts, a and b, each a tensor; or a alone.
fn lse_of_part(part: u32, batch: u32, head: u32, row: u32) -> u32 {
    if (part == 0u) { return load_a_lse(at_a_lse(batch, head, row)); }
    return load_b_lse(at_b_lse(batch, head, row));
}

fn out_of_part(part: u32, batch: u32, head: u32, row: u32, d: u32, n: u32) -> vec4f {
    if (part == 0u) { return load_a4(at_a(batch, head, row) + 4u * d, n); }
    return load_b4(at_b(batch, head, row) + 4u * d, n);
}
