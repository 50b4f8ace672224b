// Every tile of the visit. Without a map, a mask may hide something of any.

// Whether tiles may be passed over.
const SKIPS: bool = false;

fn next_tile(w: Work, visit: Visit, i: u32, count: u32) -> u32 {
    return i;
}

fn masked_kind(w: Work, visit: Visit, i: u32, kind: u32) -> u32 {
    return select(kind, BORDER, HAS_MASK);
}

fn chosen(r: Row, c: Col, w: Work) -> bool {
    return true;
}
