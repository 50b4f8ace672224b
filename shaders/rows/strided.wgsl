// Where a row lies: element index of (batch, head, token) by strides; params.q and so on hold (offset, batch stride, head
// stride, row stride). Sums wrap round 2^32 on purpose: a slice's offset is relative to the part of the buffer it binds.
// A token past the end (NONE) is clamped to the last row, so that a load is always in bounds; its value is not used.

fn row_of(at: vec4u, batch: u32, head: u32, token: u32, rows: u32) -> u32 {
    return at.x + batch * at.y + head * at.z + min(token, rows - 1u) * at.w;
}

fn q_row(w: Work, token: u32) -> u32 { return row_of(params.q, w.batch, w.head, token, params.queries); }
fn k_row(w: Work, token: u32) -> u32 { return row_of(params.k, w.batch, w.kv_head, token, params.keys); }
fn v_row(w: Work, token: u32) -> u32 { return row_of(params.v, w.batch, w.kv_head, token, params.keys); }
fn out_row(w: Work, token: u32) -> u32 { return row_of(params.out, w.batch, w.head, token, params.queries); }
fn lse_row(w: Work, token: u32) -> u32 { return row_of(params.lse, w.batch, w.head, token, params.queries); }
