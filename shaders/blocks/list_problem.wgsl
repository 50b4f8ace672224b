// What from_lists.wgsl found wrong, in full: problem = (NONE − number or 0, value, the one before, 0 for the next run). One thread.

@compute @workgroup_size(1)
fn main() {
    let found = problem[3];
    problem[0] = found;
    problem[3] = 0u;
    if (found == 0u) { return; }
    let number = NONE - found;
    let place = number / 4u;
    let before = max(place, 1u) - 1u;
    if (number % 4u < 2u) {
        problem[1] = load_one(at_one(0u, 0u, 0u) + place);
        problem[2] = load_one(at_one(0u, 0u, 0u) + before);
    } else {
        problem[1] = load_indices(at_indices(0u, 0u, 0u) + place);
        problem[2] = load_indices(at_indices(0u, 0u, 0u) + before);
    }
}
