// Where a row lies: by strides, in params.q and so on (lib/row.wgsl). A sequence's tokens are the rows from its first one on. A
// token past the end (NONE) comes to some row of the tensor, so that a load is always in bounds; its value is not used.

fn query_of(w: Work, token: u32) -> u32 { return min(w.first_query + token, params.queries - 1u); }
fn key_of(w: Work, token: u32) -> u32 { return min(w.first_key + token, params.keys - 1u); }

fn q_row(w: Work, token: u32) -> u32 { return row_of(params.q, w.batch, w.head, query_of(w, token)); }
fn k_row(w: Work, token: u32) -> u32 { return row_of(params.k, w.batch, w.kv_head, key_of(w, token)); }
fn v_row(w: Work, token: u32) -> u32 { return row_of(params.v, w.batch, w.kv_head, key_of(w, token)); }
fn out_row(w: Work, token: u32) -> u32 { return row_of(params.out, w.batch, w.head * SPLITS + w.split, query_of(w, token)); }
fn lse_row(w: Work, token: u32) -> u32 { return row_of(params.lse, w.batch, w.head * SPLITS + w.split, query_of(w, token)); }

// Gradients.
fn dout_row(w: Work, token: u32) -> u32 { return row_of(params.dout, w.batch, w.head, query_of(w, token)); }
fn dq_row(w: Work, token: u32) -> u32 { return row_of(params.dq, w.batch, w.head, query_of(w, token)); }
fn dk_row(w: Work, token: u32) -> u32 { return row_of(params.dk, w.batch, w.kv_head, key_of(w, token)); }
fn dv_row(w: Work, token: u32) -> u32 { return row_of(params.dv, w.batch, w.kv_head, key_of(w, token)); }
fn stats_row(w: Work, token: u32) -> u32 { return row_of(params.stats, w.batch, w.head, query_of(w, token)); }
