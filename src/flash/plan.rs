//! What will run for given params and shapes: decided without a GPU.

use super::{Causal, FlashParams, FlashShapes, check_params, check_shapes};
use crate::arguments::{Argument, bind, row_address};
use crate::error::require;
use crate::shader::{AccessKind, Binding, Shader, file};
use crate::slices::cut;
use crate::softmax::Portable;
use crate::{Caps, Layout, Result, Slice};
use std::fmt;

/// `NONE` of the shaders.
const NONE: u32 = u32::MAX;

/// The uniform struct of `shaders/softmax/params.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub q: [u32; 4],
    pub k: [u32; 4],
    pub v: [u32; 4],
    pub out: [u32; 4],
    pub lse: [u32; 4],
    pub bias: [u32; 4],
    pub mask: [u32; 4],
    pub first: [u32; 3],
    pub softcap: f32,
    pub queries: u32,
    pub keys: u32,
    pub group: u32,
    pub causal: u32,
    pub left: u32,
    pub right: u32,
    pub q_factor: f32,
    pub last_tile: u32,
}

/// What runs and why. Print it to read it.
#[derive(Clone, Debug, PartialEq)]
pub struct FlashPlan {
    pub(crate) shader: Shader,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) params: Vec<Params>,
    /// In the order of their bindings: one entry a batch, (first query, queries, first key, keys); ALiBi's slopes.
    pub(crate) tables: Vec<Vec<u8>>,
    engine: Portable,
    slices: Vec<Slice>,
}

impl FlashPlan {
    /// Chooses variant, tile sizes and slices.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for params or shapes that do not fit together; [`crate::Error::Limit`] for a device
    /// that has too little.
    pub fn new(caps: &Caps, params: &FlashParams, shapes: &FlashShapes) -> Result<Self> {
        check_params(params)?;
        check_shapes(shapes)?;
        let [batch, heads, queries, head_dim] = shapes.q.shape;
        let [_, heads_kv, keys, value_dim] = shapes.v.shape;
        let engine = Portable::plan(caps, "flash", head_dim, value_dim)?;
        let arguments = arguments(shapes, heads / heads_kv);
        let slopes = slopes(params, heads)?;
        let shader = shader(caps, params, shapes, &engine, &arguments);
        caps.within("flash", "maxStorageBuffersPerShaderStage", storage(&shader), caps.storage_buffers.into())?;
        caps.within("out", "maxBufferSize", shapes.out.byte_span()?.end, caps.buffer_bytes)?;
        let tiles = queries.div_ceil(engine.rows as usize);
        let whole = Slice { batches: 0..batch, heads: 0..heads, tiles: 0..tiles };
        let tile_flops = 2.0 * f64::from(engine.rows) * keys as f64 * (head_dim + value_dim) as f64;
        let slices = if batch == 0 || tiles == 0 { vec![] } else { cut(caps, &arguments, whole, tile_flops)? };
        let uniforms = slices.iter().map(|slice| uniforms(caps, params, shapes, &arguments, slice)).collect();
        let length = |s: &Option<Vec<usize>>, b: usize, all: usize| s.as_ref().map_or(all, |s| s[b]) as u32;
        let sequences: Vec<[u32; 4]> = (0..if slices.is_empty() { 0 } else { batch })
            .map(|b| [0, length(&shapes.seqlens_q, b, queries), 0, length(&shapes.seqlens_k, b, keys)])
            .collect();
        let mut tables = vec![bytemuck::cast_slice(&sequences).to_vec()];
        tables.extend(slopes.map(|slopes| bytemuck::cast_slice(&slopes).to_vec()));
        Ok(Self { shader, arguments, params: uniforms, tables, engine, slices })
    }

    /// The boxes of work that are dispatched one after another. None of them takes long.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// The whole WGSL text that runs.
    pub fn wgsl(&self) -> String {
        self.shader.source()
    }
}

fn arguments(shapes: &FlashShapes, group: usize) -> Vec<Argument> {
    let all = [
        ("q", Some(&shapes.q), AccessKind::Load4, 1),
        ("k", Some(&shapes.k), AccessKind::Load4, group),
        ("v", Some(&shapes.v), AccessKind::Load4, group),
        ("out", Some(&shapes.out), AccessKind::Store4, 1),
        ("lse", Some(&shapes.lse), AccessKind::StoreBits, 1),
        ("bias", shapes.bias.as_ref(), AccessKind::Load1, 1),
        ("mask", shapes.mask.as_ref(), AccessKind::Load1, 1),
    ];
    all.into_iter()
        .zip(shapes.buffers)
        .filter_map(|((name, layout, kind, group), buffer)| {
            Some(Argument { name, layout: layout?.clone(), kind, group, buffer })
        })
        .collect()
}

/// Largest uniform table, by WebGPU's default limit.
const UNIFORM_BYTES: usize = 64 << 10;

/// ALiBi's slopes, four a row.
fn slopes(params: &FlashParams, heads: usize) -> Result<Option<Vec<[f32; 4]>>> {
    let Some(slopes) = &params.alibi_slopes else { return Ok(None) };
    require(slopes.len() == heads, "alibi_slopes.len()", slopes.len(), format!("{heads}, one a query head"))?;
    let four = |four: &[f32]| std::array::from_fn(|i| four.get(i).copied().unwrap_or(0.0));
    Ok(Some(slopes.chunks(4).map(four).collect()))
}

/// The functions that change a score, in order, and their files.
fn score_steps(params: &FlashParams, shapes: &FlashShapes) -> Vec<(&'static str, &'static str)> {
    let softcap = params.softcap.map(|_| ("softcap", file::SCORE_SOFTCAP));
    let alibi = params.alibi_slopes.as_ref().map(|_| ("alibi", file::SCORE_ALIBI));
    let bias = shapes.bias.as_ref().map(|_| ("bias", file::SCORE_BIAS));
    softcap.into_iter().chain(alibi).chain(bias).collect()
}

fn shader(
    caps: &Caps,
    params: &FlashParams,
    shapes: &FlashShapes,
    engine: &Portable,
    arguments: &[Argument],
) -> Shader {
    let [_, heads, _, head_dim] = shapes.q.shape;
    let mut fixed = vec![
        Binding::Uniform { name: "params", ty: "Params" },
        Binding::Table { name: "sequences", ty: "vec4u", length: None },
    ];
    if params.alibi_slopes.is_some() {
        let length = Some(heads.div_ceil(4)).filter(|rows| rows * 16 <= UNIFORM_BYTES);
        fixed.push(Binding::Table { name: "slopes", ty: "vec4f", length });
    }
    let (bindings, accesses) = bind(caps, arguments, fixed);
    let (scores, score_files): (Vec<_>, Vec<_>) = score_steps(params, shapes).into_iter().unzip();
    let mut files = vec![
        file::PARAMS,
        file::PORTABLE,
        file::SCORE_TILE,
        file::TILES_DENSE,
        file::ROWS_STRIDED,
        file::SCORE_POSITION,
        file::STATE_SOFTMAX,
        file::EPILOGUE_FINAL,
        file::ELEMENT,
    ];
    files.extend(score_files);
    files.extend(shapes.mask.as_ref().map(|_| file::SCORE_MASK));
    Shader {
        name: "flash portable".into(),
        constants: engine.constants(head_dim, shapes.v.shape[3]),
        bindings,
        accesses,
        scores,
        masks: shapes.mask.iter().map(|_| "mask").collect(),
        files,
        trusted: true,
    }
}

fn storage(shader: &Shader) -> u64 {
    shader.bindings.iter().filter(|b| b.is_storage()).count() as u64
}

fn uniforms(caps: &Caps, params: &FlashParams, shapes: &FlashShapes, arguments: &[Argument], slice: &Slice) -> Params {
    let [_, heads, queries, head_dim] = shapes.q.shape;
    let [_, heads_kv, keys, _] = shapes.k.shape;
    let address = |name: &str| {
        let argument = arguments.iter().position(|a| a.name == name);
        argument.map_or([0; 4], |i| row_address(caps, arguments, i, slice))
    };
    let scale = params.scale.unwrap_or(1.0 / (head_dim as f32).sqrt());
    // A bound as long as any sequence is an open one.
    let side = |bound: Option<usize>| bound.filter(|&n| n < super::MAX_SEQUENCE).map_or(NONE, |n| n as u32);
    Params {
        q: address("q"),
        k: address("k"),
        v: address("v"),
        out: address("out"),
        lse: address("lse"),
        bias: address("bias"),
        mask: address("mask"),
        first: [slice.batches.start as u32, slice.heads.start as u32, slice.tiles.start as u32],
        softcap: params.softcap.unwrap_or(0.0),
        queries: queries as u32,
        keys: keys as u32,
        group: (heads / heads_kv) as u32,
        causal: causal_code(params.causal),
        left: side(params.window.left),
        right: side(params.window.right),
        // Functions that change a score work in natural units.
        q_factor: if score_steps(params, shapes).is_empty() { scale * std::f32::consts::LOG2_E } else { scale },
        last_tile: slice.tiles.end as u32 - 1,
    }
}

/// `CAUSAL_…` of the shaders.
fn causal_code(causal: Option<Causal>) -> u32 {
    match causal {
        None => 0,
        Some(Causal::BottomRight) => 1,
        Some(Causal::TopLeft) => 2,
    }
}

impl fmt::Display for FlashPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flash, {}", self.engine)?;
        write!(f, "; {} slice{}", self.slices.len(), if self.slices.len() == 1 { "" } else { "s" })?;
        for (argument, access) in self.arguments.iter().zip(&self.shader.accesses) {
            let Layout { shape, strides, offset, .. } = &argument.layout;
            let name = argument.name;
            if !access.wide && matches!(access.kind, AccessKind::Load4 | AccessKind::Store4) {
                write!(
                    f,
                    "; {name} moves one element at a time: width {}, strides {strides:?} and offset {offset} are not all \
                     multiples of 4",
                    shape[3]
                )?;
            }
            let first = self.shader.accesses.iter().find(|other| other.binding == access.binding);
            if let Some(first) = first.filter(|first| first.name != name) {
                write!(f, "; {name} lies so near {} in one buffer that both are bound as words", first.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Params;
    use std::mem::offset_of;

    #[test]
    fn params_lie_in_memory_as_the_shader_reads_them() {
        let text = format!("@group(0) @binding(0) var<uniform> params: Params;\n{}", crate::shader::file::PARAMS);
        let module = naga::front::wgsl::parse_str(&text).expect("valid WGSL");
        let found = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params"));
        let naga::TypeInner::Struct { members, span } = &found.expect("the struct").1.inner else {
            panic!("no struct")
        };
        let theirs: Vec<(&str, usize)> =
            members.iter().map(|m| (m.name.as_deref().unwrap_or_default(), m.offset as usize)).collect();
        macro_rules! ours {
            ($($field:ident)*) => { vec![$((stringify!($field), offset_of!(Params, $field))),*] };
        }
        assert_eq!(
            theirs,
            ours!(q k v out lse bias mask first softcap queries keys group causal left right q_factor last_tile)
        );
        assert_eq!(*span as usize, size_of::<Params>());
        let constant = |name: &str| {
            let (_, constant) = module.constants.iter().find(|(_, c)| c.name.as_deref() == Some(name)).expect(name);
            match module.global_expressions[constant.init] {
                naga::Expression::Literal(naga::Literal::U32(value)) => value,
                ref other => panic!("{name} is {other:?}"),
            }
        };
        use crate::Causal::{BottomRight, TopLeft};
        assert_eq!(super::causal_code(Some(BottomRight)), constant("CAUSAL_BOTTOM_RIGHT"));
        assert_eq!(super::causal_code(Some(TopLeft)), constant("CAUSAL_TOP_LEFT"));
    }
}
