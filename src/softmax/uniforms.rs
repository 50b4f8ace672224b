//! What the host tells the shaders of the softmax engine.

use super::{AttentionShapes, ScoreParams};
use crate::packed::Side;
use crate::program::Part;

/// The uniform struct of `shaders/softmax/params.wgsl`, behind the addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Params {
    pub first: [u32; 3],
    pub softcap: f32,
    pub queries: u32,
    pub keys: u32,
    pub group: u32,
    pub q_factor: f32,
    pub last_tile: u32,
    pub tiles: u32,
    pub sequences: u32,
    pub map_tile: u32,
    pub map_head: u32,
    pub rows: u32,
    pub heads_together: u32,
    pub sum_factor: f32,
    pub together: [u32; 4],
    pub key_tiles: u32,
    pub bias_rows: u32,
    pub bias_cols: u32,
    pub stats_batch: u32,
}

/// How the work is divided: the same for every part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Division {
    /// Tiles of rows of a batch entry.
    pub tiles: usize,
    /// Packed sequences.
    pub sequences: usize,
    /// Words of the tile map from one tile of rows to the next, and from one head to the next.
    pub map: [usize; 2],
    /// Whether a function changes scores: those work in natural units.
    pub scored: bool,
    /// What the rows of a tile are.
    pub side: Side,
    /// For the gradient of a bias.
    pub bias: BiasDivision,
}

/// How the gradient of a bias is divided.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BiasDivision {
    /// Tiles of keys.
    pub key_tiles: usize,
    /// Batch entries, heads, tiles of queries and tiles of keys that are added up.
    pub together: [usize; 4],
}

/// The uniform struct of a part of the work.
pub(super) fn uniforms(params: &ScoreParams, shapes: &AttentionShapes, division: Division, part: &Part) -> Params {
    let [batch, heads, queries, head_dim] = shapes.q.shape();
    let [_, heads_kv, keys, _] = shapes.k.shape();
    let scale = params.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
    let group = (heads / heads_kv) as u32;
    let by_keys = division.side == Side::Keys;
    // The factor of scores before anything changes them: log2(e) turns natural units into those of exp2.
    let units = if division.scored { 1.0 } else { std::f32::consts::LOG2_E };
    Params {
        first: part.first(),
        softcap: params.softcap.unwrap_or(0.0),
        queries: queries as u32,
        keys: keys as u32,
        group: if by_keys { 1 } else { group },
        q_factor: scale * units,
        last_tile: part.tiles.end as u32 - 1,
        tiles: division.tiles as u32,
        sequences: division.sequences as u32,
        map_tile: division.map[0] as u32,
        map_head: division.map[1] as u32,
        rows: if by_keys { keys } else { queries } as u32,
        heads_together: group,
        sum_factor: if by_keys { 1.0 / units } else { scale },
        together: division.bias.together.map(|n| n as u32),
        key_tiles: division.bias.key_tiles as u32,
        bias_rows: shapes.bias_shape()[2] as u32,
        bias_cols: shapes.bias_shape()[3] as u32,
        // Packed sequences are numbered, and lie in one batch entry.
        stats_batch: if batch > 1 { (heads * queries) as u32 } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use crate::program::shader::{file, layout::assert_layout};

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        assert_layout!(
            Params, file::PARAMS,
            first softcap queries keys group q_factor last_tile tiles sequences map_tile map_head rows
            heads_together sum_factor together key_tiles bias_rows bias_cols stats_batch
        );
    }
}
