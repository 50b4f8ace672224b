// The parts of a head lie one after another along the heads of one tensor, a.
fn lse_of_part(part: u32, batch: u32, head: u32, row: u32) -> u32 {
    return load_a_lse(at_a_lse(batch, head * params.parts + part, row));
}

fn out_of_part(part: u32, batch: u32, head: u32, row: u32, d: u32, n: u32) -> vec4f {
    return load_a4(at_a(batch, head * params.parts + part, row) + 4u * d, n);
}
