//! The WGSL files, by name.

macro_rules! files {
    ($($name:ident = $path:literal;)*) => { $(
        #[cfg(not(target_arch = "wasm32"))]
        pub(crate) const $name: &str = include_str!(concat!("../../../shaders/", $path));
        /// What is downloaded has no comments and no indents.
        #[cfg(target_arch = "wasm32")]
        pub(crate) const $name: &str = {
            const TEXT: &[u8] = include_bytes!(concat!("../../../shaders/", $path));
            const CODE: [u8; code(TEXT, &mut [])] = {
                let mut code = [0; code(TEXT, &mut [])];
                self::code(TEXT, &mut code);
                code
            };
            match str::from_utf8(&CODE) {
                Ok(code) => code,
                Err(_) => panic!("a comment ends between characters"),
            }
        };
    )* };
}

/// Where one looks while a WGSL text is gone through.
#[cfg(any(test, target_arch = "wasm32"))]
#[derive(Clone, Copy, PartialEq)]
enum At {
    Indent,
    Code,
    Comment,
}

/// The same after byte `i`.
#[cfg(any(test, target_arch = "wasm32"))]
const fn at(before: At, text: &[u8], i: usize) -> At {
    match (before, text[i]) {
        (_, b'\n') => At::Indent,
        (At::Indent | At::Code, b'/') if i + 1 < text.len() && text[i + 1] == b'/' => At::Comment,
        (At::Indent, b' ') => At::Indent,
        (At::Comment, _) => At::Comment,
        _ => At::Code,
    }
}

/// The length of a WGSL text without comments and indents; the text itself where `into` has room for it. Lines keep their numbers.
#[cfg(any(test, target_arch = "wasm32"))]
const fn code(text: &[u8], into: &mut [u8]) -> usize {
    let (mut i, mut length, mut now) = (0, 0, At::Indent);
    while i < text.len() {
        now = at(now, text, i);
        if matches!(now, At::Code) || text[i] == b'\n' {
            if length < into.len() {
                into[length] = text[i];
            }
            length += 1;
        }
        i += 1;
    }
    length
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn code_is_what_is_not_comment() {
        const TEXT: &[u8] = "// Σ\n  let a = b / c; // d\n\n / e//".as_bytes();
        let mut found = [0; code(TEXT, &mut [])];
        code(TEXT, &mut found);
        assert_eq!(str::from_utf8(&found), Ok("\nlet a = b / c; \n\n/ e"));
    }
}

files! {
    ELEMENT = "lib/element.wgsl";
    SCAN = "lib/scan.wgsl";
    SUM = "lib/sum.wgsl";
    LARGEST = "lib/largest.wgsl";
    PARAMS = "softmax/params.wgsl";
    FORWARD = "softmax/forward.wgsl";
    SCORE_TILE = "softmax/score_tile.wgsl";
    PORTABLE_PRODUCTS = "engines/portable/products.wgsl";
    PORTABLE_SUMS = "engines/portable/sums.wgsl";
    PORTABLE_ROWS = "engines/portable/rows.wgsl";
    PORTABLE_STATS = "engines/portable/stats.wgsl";
    PROCESSOR_REGISTERS = "engines/processor/registers.wgsl";
    PROCESSOR_PRODUCTS = "engines/processor/products.wgsl";
    PROCESSOR_SUMS = "engines/processor/sums.wgsl";
    PROCESSOR_ROWS = "engines/processor/rows.wgsl";
    PROCESSOR_STATS = "engines/processor/stats.wgsl";
    STAGED_PRODUCTS = "engines/staged/products.wgsl";
    STAGED_SUMS = "engines/staged/sums.wgsl";
    SIDES_FORWARD = "sides/forward.wgsl";
    SIDES_DQ = "sides/dq.wgsl";
    SIDES_DKV = "sides/dkv.wgsl";
    GRADIENTS = "softmax/gradients.wgsl";
    DQ = "softmax/dq.wgsl";
    DKV = "softmax/dkv.wgsl";
    DK = "softmax/dk.wgsl";
    DV = "softmax/dv.wgsl";
    DBIAS = "softmax/dbias.wgsl";
    DELTA = "softmax/delta.wgsl";
    TILE_MAP = "softmax/tile_map.wgsl";
    MAPPED = "softmax/mapped.wgsl";
    UNMAPPED = "softmax/unmapped.wgsl";
    WORKGROUPS_PADDED = "workgroups/padded.wgsl";
    WORKGROUPS_PACKED = "workgroups/packed.wgsl";
    WORKGROUPS_SPLIT = "workgroups/split.wgsl";
    WORKGROUPS_SCHEDULE = "workgroups/schedule.wgsl";
    TILES_RANGES = "tiles/ranges.wgsl";
    TILES_SEQUENCE = "tiles/sequence.wgsl";
    TILES_LISTS = "tiles/lists.wgsl";
    TILES_POSITION = "tiles/position.wgsl";
    TILES_DENSE = "tiles/dense.wgsl";
    TILES_BOXES = "tiles/boxes.wgsl";
    TILES_NEIGHBORHOOD = "tiles/neighborhood.wgsl";
    TILES_NEIGHBORHOOD_KEYS = "tiles/neighborhood_keys.wgsl";
    TILES_DENSE_KEYS = "tiles/dense_keys.wgsl";
    TILES_BLOCKS = "tiles/blocks.wgsl";
    TILES_STREAMING = "tiles/streaming.wgsl";
    TILES_STREAMING_KEYS = "tiles/streaming_keys.wgsl";
    LISTS = "lists/shared.wgsl";
    LISTS_ASCENDING = "lists/ascending.wgsl";
    LISTS_PROBLEM = "lists/problem.wgsl";
    LISTS_PLACE = "lists/place.wgsl";
    LISTS_BITS = "lists/bits.wgsl";
    BLOCKS_SHARED = "blocks/shared.wgsl";
    BLOCKS_TRANSPOSE = "blocks/transpose.wgsl";
    BLOCKS_FROM_LISTS = "blocks/from_lists.wgsl";
    BLOCKS_LIST_OFFSETS = "blocks/list_offsets.wgsl";
    BLOCKS_LIST_INDICES = "blocks/list_indices.wgsl";
    BLOCKS_LIST_PROBLEM = "blocks/list_problem.wgsl";
    BLOCKS_LISTED = "blocks/listed.wgsl";
    BLOCKS_FROM_MASKS = "blocks/from_masks.wgsl";
    ROWS_STRIDED = "rows/strided.wgsl";
    SCORE_POSITION = "score/position.wgsl";
    SCORE_SOFTCAP = "score/softcap.wgsl";
    SCORE_ALIBI = "score/alibi.wgsl";
    SCORE_BIAS = "score/bias.wgsl";
    SCORE_MASK = "score/mask.wgsl";
    STATE_SOFTMAX = "state/softmax.wgsl";
    EPILOGUE_FINAL = "epilogue/final.wgsl";
    SIDES_SCORES = "sides/scores.wgsl";
    REDUCE_SCORES = "softmax/reduce_scores.wgsl";
    REDUCTION_VALUE = "reduction/value.wgsl";
    REDUCTION_SHARED = "reduction/shared.wgsl";
    REDUCTION_SEGMENTS = "reduction/segments.wgsl";
    REDUCTION_TOP_K = "reduction/top_k.wgsl";
    ROWS = "rows/shared.wgsl";
    ROWS_CHECK = "rows/check.wgsl";
    ROWS_GATHER = "rows/gather.wgsl";
    ROWS_CHAIN = "rows/chain.wgsl";
    ROWS_SCATTER = "rows/scatter.wgsl";
    MERGE = "merge.wgsl";
    MERGE_PAIR = "merge/pair.wgsl";
    MERGE_SPLITS = "merge/splits.wgsl";
    ROTARY = "rotary.wgsl";
    ROTARY_ANGLE = "rotary/angle.wgsl";
    LINEAR_SHARED = "linear/shared.wgsl";
    LINEAR_RECURRENT = "linear/recurrent.wgsl";
    LINEAR_RECURRENT_LANES = "linear/recurrent/lanes.wgsl";
    LINEAR_RECURRENT_SUBGROUP = "linear/recurrent/subgroup.wgsl";
    LINEAR_REPORT = "linear/report.wgsl";
    LINEAR_BETAS = "linear/betas.wgsl";
    LINEAR_INITIAL = "linear/initial.wgsl";
    LINEAR_WORK = "linear/work.wgsl";
    LINEAR_CHUNK = "linear/chunk.wgsl";
    LINEAR_CHUNKS_BOUNDS = "linear/chunks/bounds.wgsl";
    LINEAR_CHUNKS_LEFT = "linear/chunks/left.wgsl";
    LINEAR_CHUNKS_ROWS = "linear/chunks/rows.wgsl";
    LINEAR_CHUNKS_FACTOR = "linear/chunks/factor.wgsl";
    LINEAR_CHUNKS_FADES = "linear/chunks/fades.wgsl";
    LINEAR_CHUNKS_PRODUCTS = "linear/chunks/products.wgsl";
    LINEAR_WALK = "linear/walk.wgsl";
    LINEAR_SEGMENT_STATES = "linear/segment_states.wgsl";
    LINEAR_GATE_GRADIENT = "linear/gate_gradient.wgsl";
    LINEAR_GATE_GRADIENT_BY_CHANNEL = "linear/gate_gradient_by_channel.wgsl";
    LINEAR_BETA_GRADIENT = "linear/beta_gradient.wgsl";
    LINEAR_SLOPE_GRADIENT = "linear/slope_gradient.wgsl";
    LINEAR_FEATURES = "linear/features/shared.wgsl";
    LINEAR_FEATURES_MAP = "linear/features/map.wgsl";
    LINEAR_FEATURES_GRADIENT = "linear/features/gradient.wgsl";
    LINEAR_ACTIVATION = "linear/activation/shared.wgsl";
    LINEAR_ACTIVATION_MAP = "linear/activation/map.wgsl";
    LINEAR_ACTIVATION_SUMS = "linear/activation/sums.wgsl";
    LINEAR_ACTIVATION_TOTAL = "linear/activation/total.wgsl";
    LINEAR_JOINT = "linear/joint/shared.wgsl";
    LINEAR_JOINT_JOIN = "linear/joint/join.wgsl";
    LINEAR_JOINT_SPLIT = "linear/joint/split.wgsl";
    LINEAR_NORMALIZER_DIVIDE = "linear/normalizer/divide.wgsl";
    LINEAR_NORMALIZER_GRADIENT = "linear/normalizer/gradient.wgsl";
    LINEAR_MOMENTUM = "linear/momentum/shared.wgsl";
    LINEAR_MOMENTUM_STEPS = "linear/momentum/steps.wgsl";
    LINEAR_MOMENTUM_STEP = "linear/momentum/step.wgsl";
    LINEAR_MOMENTUM_FADES = "linear/momentum/fades.wgsl";
    LINEAR_MOMENTUM_FACTOR = "linear/momentum/factor.wgsl";
    LINEAR_MOMENTUM_ROWS = "linear/momentum/rows.wgsl";
    LINEAR_MOMENTUM_FORWARD = "linear/momentum/forward.wgsl";
    LINEAR_MOMENTUM_BACKWARD = "linear/momentum/backward.wgsl";
    LINEAR_SUM_HEADS = "linear/sum_heads.wgsl";
    LINEAR_SCAN = "linear/scan.wgsl";
    LINEAR_GATES_BY_HEAD = "linear/gates/by_head.wgsl";
    LINEAR_GATES_BY_TOKEN = "linear/gates/by_token.wgsl";
    LINEAR_GATES_BY_CHANNEL = "linear/gates/by_channel.wgsl";
    LINEAR_DECAYS_BY_HEAD = "linear/decays/by_head.wgsl";
    LINEAR_DECAYS_BY_TOKEN = "linear/decays/by_token.wgsl";
    LINEAR_STATES = "linear/states.wgsl";
    GATE_SHARED = "gate/shared.wgsl";
    GATE_RULE = "gate/rule.wgsl";
    GATE_FEATURES = "gate/features.wgsl";
    GATE_PRODUCT = "gate/product.wgsl";
    GATE_POOL = "gate/pool.wgsl";
    GATE_NORM = "gate/norm.wgsl";
    GATE_WEIGHTS = "gate/weights.wgsl";
    GATE_PROJECT = "gate/project.wgsl";
    GATE_PROJECTED = "gate/projected.wgsl";
    GATE_TURNED = "gate/turned.wgsl";
    GATE_STRAIGHT = "gate/straight.wgsl";
    GATE_LOGITS = "gate/logits.wgsl";
    GATE_ROW = "gate/row.wgsl";
    GATE_SELECT = "gate/select.wgsl";
    GATE_THRESHOLD = "gate/threshold.wgsl";
    GATE_TOP_K = "gate/top_k.wgsl";
    GATE_TOP_P = "gate/top_p.wgsl";
    GATE_TARGET = "gate/target.wgsl";
    GATE_LOSS = "gate/loss.wgsl";
    GATE_GRADIENT_QUERY = "gate/gradient_query.wgsl";
    GATE_GRADIENT_KEY = "gate/gradient_key.wgsl";
    GATE_GRADIENT_WEIGHTS = "gate/gradient_weights.wgsl";
    GATE_UNPROJECT = "gate/unproject.wgsl";
    GATE_SUM_ROWS = "gate/sum_rows.wgsl";
}
