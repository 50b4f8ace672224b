// Who sees whom, in a space of one to three axes where a row sees one range of columns on each: tiles of both are boxes.
//
// Coordinates are those within a dilation group: of the tokens whose positions are the same modulo the dilation, on every axis.
// A vec3u has the axes in order, the last in z; axes that a space of fewer does not have come first, with length and window 1.
// seen_range(i, n) names the columns [lo, hi) that row i of a group of lengths n sees on each axis, within n. Both ends grow
// with i, so a box of rows sees a box of columns: from the first row's lo to the last row's hi. That box is tiled from its own
// corner, row by row.
//
// A workgroup owns the rows of one box of one group. Workgroup memory: row_ranges [BR][AXES] of vec2u.

const FULL: u32 = 0u;
const BORDER: u32 = 1u;

// Entries of the table `space`: xyz for the axes. All boxes are the same size; those at the far ends stand out.
const LENGTH: u32 = 0u;
const WINDOW: u32 = 1u;
const STRIDE: u32 = 2u;
const DILATION: u32 = 3u;
const CAUSAL: u32 = 4u;
const ROW_BOX: u32 = 5u;
const COL_BOX: u32 = 6u;
// Boxes of rows that a group has at most.
const ROW_BOXES: u32 = 7u;
// Tokens from one position to the next.
const TOKENS: u32 = 8u;
// For numbers below 2^10: n / (y · z) and n / z of the row box, of the column box, each by a product and a shift by 16.
const RECIPROCALS: u32 = 9u;

var<workgroup> row_ranges: array<vec2u, BR * AXES>;

struct Range { lo: vec3u, hi: vec3u }
struct Visit {
    // Position of the group's first token, and that token.
    place: vec3u,
    first: u32,
    // The group's length, the corner of the box of rows.
    n: vec3u,
    row0: vec3u,
    // The box of columns that the rows see, in tiles; what all of them see.
    seen: Range,
    tiles: vec3u,
    whole: Range,
}
struct Tile { base: vec3u, kind: u32 }
// `place` is where the token lies in the whole space.
struct Row { token: u32, place: vec3u, lo: vec3u, len: vec3u }
struct Col { token: u32, place: vec3u, at: vec3u }

// Positions within the whole space, always below its lengths: as numbers of tokens, and axis by axis, the first in x.
// `head` is the query head.
struct Position { batch: u32, head: u32, query: u32, key: u32, queries: u32, keys: u32, query_at: vec3u, key_at: vec3u }

// Coordinates within a box, of the place number n in it.
fn in_box(n: u32, size: vec3u, reciprocals: vec2u) -> vec3u {
    if (AXES == 1u) { return vec3u(0u, 0u, n); }
    let y = (n * reciprocals.y) >> 16u;
    if (AXES == 2u) { return vec3u(0u, y, n - y * size.z); }
    let x = (n * reciprocals.x) >> 16u;
    return vec3u(x, y - x * size.y, n - y * size.z);
}

fn row_at(visit: Visit, r: u32) -> vec3u {
    return visit.row0 + in_box(r, space[ROW_BOX].xyz, space[RECIPROCALS].xy);
}

fn col_at(tile: Tile, c: u32) -> vec3u {
    return tile.base + in_box(c, space[COL_BOX].xyz, space[RECIPROCALS].zw);
}

fn token_at(visit: Visit, at: vec3u) -> u32 {
    return visit.first + dot(at * space[DILATION].xyz, space[TOKENS].xyz);
}

fn place_of(visit: Visit, at: vec3u) -> vec3u {
    return visit.place + at * space[DILATION].xyz;
}

fn volume(size: vec3u) -> u32 {
    return size.x * size.y * size.z;
}

// Boxes count on within a group, groups after one another.
fn visit_of(w: Work) -> Visit {
    let boxes = space[ROW_BOXES].xyz;
    let dilation = space[DILATION].xyz;
    let group = w.tile / volume(boxes);
    let number = w.tile % volume(boxes);
    var visit = Visit();
    visit.place = vec3u(group / (dilation.y * dilation.z), group / dilation.z % dilation.y, group % dilation.z);
    visit.first = dot(visit.place, space[TOKENS].xyz);
    visit.n = (space[LENGTH].xyz - visit.place + dilation - 1u) / dilation;
    visit.row0 = space[ROW_BOX].xyz * vec3u(number / (boxes.y * boxes.z), number / boxes.z % boxes.y, number % boxes.z);
    if (all(visit.row0 < visit.n)) {
        let first = seen_range(visit.row0, visit.n);
        let last = seen_range(min(visit.row0 + space[ROW_BOX].xyz, visit.n) - 1u, visit.n);
        visit.seen = Range(first.lo, last.hi);
        visit.whole = Range(last.lo, first.hi);
        visit.tiles = (last.hi - first.lo + space[COL_BOX].xyz - 1u) / space[COL_BOX].xyz;
    }
    return visit;
}

// What a row sees is found out once, by one thread.
fn begin_visit(w: Work, visit: Visit, thread: u32) {
    for (var r = thread; r < BR; r += WG) {
        let range = seen_range(min(row_at(visit, r), visit.n - 1u), visit.n);
        for (var a = 0u; a < AXES; a++) {
            row_ranges[r * AXES + a] = vec2u(range.lo[3u - AXES + a], range.hi[3u - AXES + a]);
        }
    }
    workgroupBarrier();
}

fn tile_count(visit: Visit) -> u32 {
    return volume(visit.tiles);
}

fn tile_at(visit: Visit, i: u32) -> Tile {
    let number = vec3u(i / (visit.tiles.y * visit.tiles.z), i / visit.tiles.z % visit.tiles.y, i % visit.tiles.z);
    let base = visit.seen.lo + number * space[COL_BOX].xyz;
    let full = all(base >= visit.whole.lo) && all(base + space[COL_BOX].xyz <= visit.whole.hi)
        && volume(space[COL_BOX].xyz) == BC;
    return Tile(base, select(BORDER, FULL, full));
}

fn row_token(visit: Visit, r: u32) -> u32 {
    let at = row_at(visit, r);
    return select(NONE, token_at(visit, at), all(at < visit.n) & (r < volume(space[ROW_BOX].xyz)));
}

fn written_token(w: Work, visit: Visit, r: u32) -> u32 {
    return row_token(visit, r);
}

fn col_token(visit: Visit, tile: Tile, c: u32) -> u32 {
    let at = col_at(tile, c);
    return select(NONE, token_at(visit, at), all(at < visit.seen.hi) & (c < volume(space[COL_BOX].xyz)));
}

fn row_state(w: Work, visit: Visit, r: u32) -> Row {
    let at = row_at(visit, r);
    var lo = vec3u();
    var len = vec3u(1u);
    for (var a = 0u; a < AXES; a++) {
        let range = row_ranges[r * AXES + a];
        lo[3u - AXES + a] = range.x;
        len[3u - AXES + a] = range.y - range.x;
    }
    let token = row_token(visit, r);
    return Row(token, place_of(visit, at), lo, select(len, vec3u(), token == NONE));
}

fn col_state(w: Work, visit: Visit, tile: Tile, c: u32) -> Col {
    let at = col_at(tile, c);
    return Col(col_token(visit, tile, c), place_of(visit, at), at);
}

// One unsigned compare an axis: a column before lo wraps round to a large number.
fn visible(r: Row, c: Col) -> bool {
    return all(c.at - r.lo < r.len) & (c.token != NONE);
}

// The axes that there are, first.
fn axes_first(place: vec3u) -> vec3u {
    let at = min(place, space[LENGTH].xyz - 1u);
    if (AXES == 1u) { return vec3u(at.z, 0u, 0u); }
    if (AXES == 2u) { return vec3u(at.y, at.z, 0u); }
    return at;
}
