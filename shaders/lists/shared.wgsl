// What the kernels share that make lists of tokens ready: the uniform struct is that of src/lists/kernels.rs.

const NONE: u32 = 0xffffffffu;

struct Params {
    at: Addresses,
    // First batch entry, head, and list, or workgroup of words.
    first: vec3u,
    capacity: u32,
    keys: u32,
    lists: u32,
    // Words of a row of bits.
    words: u32,
}
