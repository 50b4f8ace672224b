// (cos, sin) of position · theta^(−2·pair / DIM), from the table `angles`, which the host has made in float64: of each of the 10,
// 10 and 12 bits of a position. Angles of thousands of turns are out of reach of sin and cos in f32.

const LOW: u32 = 1024u;

// (cos a, sin a) and (cos b, sin b) give (cos(a + b), sin(a + b)).
fn turned(a: vec2f, b: vec2f) -> vec2f {
    return vec2f(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

fn angle(position: u32, pair: u32) -> vec2f {
    let low = angles[(position % LOW) * (DIM / 2u) + pair];
    let middle = angles[(LOW + position / LOW % LOW) * (DIM / 2u) + pair];
    let high = angles[(2u * LOW + position / (LOW * LOW)) * (DIM / 2u) + pair];
    return turned(turned(low, middle), high);
}
