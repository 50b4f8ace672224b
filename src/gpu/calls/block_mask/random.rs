//! Random choices that are the same on every machine.

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(super) struct SplitMix(u64);

impl SplitMix {
    /// A stream for each seed and place.
    pub fn new(seed: u64, place: [usize; 3]) -> Self {
        let mut stream = Self(seed);
        for n in place {
            stream.0 = stream.next() ^ n as u64;
        }
        stream
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// `count` of the numbers 0 to `of` − 1, each at most once, in no order (all, if there are fewer).
    pub fn sample(&mut self, count: usize, of: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..of).collect();
        let count = count.min(of);
        for i in 0..count {
            let other = i + (self.next() % (of - i) as u64) as usize;
            all.swap(i, other);
        }
        all.truncate(count);
        all
    }
}
