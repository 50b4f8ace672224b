// A head fades at the same rate throughout: the table `slopes` has −g of each, four a row.
fn gate_of(t: Token) -> f32 { return -slopes[t.head / 4u][t.head % 4u]; }
fn report(w: Work, thread: u32) {}
