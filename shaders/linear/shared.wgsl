// What the shaders of linear attention share: written by src/linear/task.rs.
//
// A walk goes over the tokens of a (batch entry or packed sequence, head), from the first to the last or the other way, in segments
// of params.segment tokens: each has its own workgroups. The table `sequences` has (first row, tokens, 0, 0) of each entry.

struct Params {
    at: Addresses,
    // First entry, head and workgroup of this slice.
    first: vec3u,
    heads: u32,
    // Heads of the walk to one of q, of k, of v.
    groups: vec3u,
    // Factor of what is read.
    scale: f32,
    // Whether the last token comes first; whether the state fades after a token has read it instead of before.
    reverse: u32,
    late: u32,
    // Factor of what is absorbed.
    gain: f32,
    // Tokens of a segment.
    segment: u32,
}

// One segment of a walk: number `place` on the way, rows [first, first + count), columns of the state from `column` on.
struct Work { batch: u32, head: u32, place: u32, column: u32, first: u32, count: u32 }

// A token of a head.
struct Token { batch: u32, head: u32, row: u32 }

// An entry without tokens has one, empty.
fn segments_of(batch: u32) -> u32 {
    return max(1u, (sequences[batch].y + params.segment - 1u) / params.segment);
}

// Beyond the entry's last segment: without tokens.
fn segment_at(batch: u32, head: u32, place: u32, column: u32) -> Work {
    let sequence = sequences[batch];
    let last = segments_of(batch) - 1u;
    let number = select(place, last - min(place, last), params.reverse == 1u);
    let start = select(sequence.y, number * params.segment, place <= last);
    return Work(batch, head, place, column, sequence.x + start, min(params.segment, sequence.y - start));
}

fn token_at(w: Work, n: u32) -> Token {
    return Token(w.batch, w.head, w.first + select(n, w.count - 1u - n, params.reverse == 1u));
}

// Between which gates a token reads, and is absorbed.
fn place_of(n: u32) -> u32 { return n + 1u - params.late; }

// How a state fades by e^g: x · e^g is x · fade.x + x · fade.y, for one addition of what is absorbed to x · fade.y first. A gate
// that is near 0 leaves x as it is and takes a little away; a hard one leaves nothing that rounds.
fn fade_of(g: f32) -> vec2f {
    let change = change_of(g);
    return select(vec2f(0.0, 1.0 + change), vec2f(1.0, change), change > -0.5);
}

// e^g − 1 for g ≤ 0, to the last place: a state that is multiplied by a rounded e^g is off by as much in every token after it, so
// x · e^g is x + (e^g − 1) · x. With g = n · ln 2 + r it is 2^n (e^r − 1) + (2^n − 1); exp is off by several places on some devices.
fn change_of(g: f32) -> f32 {
    let parts = exp_parts(g);
    return fma(parts.y, parts.x, parts.y - 1.0);
}

fn changes_of(g: vec4f) -> vec4f { return vec4f(change_of(g.x), change_of(g.y), change_of(g.z), change_of(g.w)); }

// e^r − 1 and 2^n.
fn exp_parts(x: f32) -> vec2f {
    let bounded = max(x, -104.0);
    let n = round(bounded * 1.4426950409);
    // ln 2 in two parts: n times the first is exact.
    let r = fma(n, -1.4286067653e-6, fma(n, -0.693145751953125, bounded));
    let high = fma(r, fma(r, fma(r, fma(r, 1.0 / 40320.0, 1.0 / 5040.0), 1.0 / 720.0), 1.0 / 120.0), 1.0 / 24.0);
    let part = r * fma(r, fma(r, fma(r, high, 1.0 / 6.0), 0.5), 1.0);
    return vec2f(part, bitcast<f32>(u32(max(n, -127.0) + 127.0) << 23u));
}
