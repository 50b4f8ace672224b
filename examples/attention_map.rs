//! Shows where attention looks in a picture: `cargo run --release --example attention_map [PICTURE.png|.jpg [MAPS.svg]]`.
//!
//! The picture becomes 48 × 32 tokens, one per cell. With the query (2c, 1) and the key (c, −‖c‖²) of a cell's mean color c, the score of
//! two cells is −‖c − c'‖² plus a term that all keys share: a cell looks for cells like itself. The example draws whom three cells see in
//! flash attention and in neighborhood attention. The weights are those of the kernels: their outputs where the values are one-hot.

mod common;

use common::picture::Picture;
use common::{DARK, Svg};
use wgpu_attention::{
    DType, FlashAttention, FlashParams, Gpu, Layout, NeighborhoodAttention, NeighborhoodAxis, NeighborhoodParams,
    Result, Tensor,
};

const COLUMNS: usize = 48;
const ROWS: usize = 32;
const N: usize = COLUMNS * ROWS;
/// How many values one head holds.
const CHUNK: usize = 256;
const WINDOW: usize = 13;
const CELL: usize = 7;
/// How much a color counts.
const SHARPNESS: f32 = 90.0;
/// The cells that ask, as fractions of the picture's width and height.
const ASKED: [[f32; 2]; 3] = [[0.68, 0.3], [0.3, 0.57], [0.5, 0.85]];

/// The mean color of each cell.
fn cells(picture: &Picture) -> Vec<[f32; 3]> {
    let span = |i: usize, count: usize, length: usize| {
        let from = i * length / count;
        from..((i + 1) * length / count).max(from + 1)
    };
    let mean = |cell: usize| {
        let (rows, columns) =
            (span(cell / COLUMNS, ROWS, picture.height), span(cell % COLUMNS, COLUMNS, picture.width));
        let count = (rows.len() * columns.len()) as f32;
        let all = rows.flat_map(|y| columns.clone().map(move |x| picture.at(y as isize, x as isize)));
        all.fold([0.0; 3], |sum, color| std::array::from_fn(|i| sum[i] + color[i] / count))
    };
    (0..N).map(mean).collect()
}

/// The weights of each query on every key, in flash attention and in a neighborhood.
async fn weights(gpu: &Gpu, colors: &[[f32; 3]], asked: &[usize]) -> Result<[Vec<Vec<f32>>; 2]> {
    let query = |c: &[f32; 3]| [2.0 * c[0], 2.0 * c[1], 2.0 * c[2], 1.0];
    let key = |c: &[f32; 3]| [c[0], c[1], c[2], -c.iter().map(|x| x * x).sum::<f32>()];
    let q: Vec<f32> = colors.iter().flat_map(query).collect();
    let k: Vec<f32> = colors.iter().flat_map(key).collect();
    // Each head has the same queries and keys, and a part of the identity as its values.
    let heads = N.div_ceil(CHUNK);
    let mut values = vec![0f32; heads * N * CHUNK];
    (0..N).for_each(|j| values[(j / CHUNK * N + j) * CHUNK + j % CHUNK] = 1.0);
    let repeated = async |x: &[f32]| -> Result<Tensor> {
        let x = Tensor::upload(gpu, [1, 1, N, 4], DType::F32, x).await?;
        x.view(x.layout().clone().expand([1, heads, N, 4])?)
    };
    let (q, k) = (repeated(&q).await?, repeated(&k).await?);
    let v = Tensor::upload(gpu, [1, heads, N, CHUNK], DType::F32, &values).await?;

    let flash = FlashAttention::new(gpu, FlashParams::default().with_scale(SHARPNESS))?.forward(&q, &k, &v).await?;
    let axes = [NeighborhoodAxis::new(ROWS, WINDOW), NeighborhoodAxis::new(COLUMNS, WINDOW)];
    let params = NeighborhoodParams::new(axes).with_scale(SHARPNESS);
    let near = NeighborhoodAttention::new(gpu, params)?.forward(&q, &k, &v).await?;

    let mut found = [vec![], vec![]];
    for (maps, out) in found.iter_mut().zip([flash, near]) {
        for &i in asked {
            let row: Layout = out.layout().clone().narrow(2, i..i + 1)?;
            let mut map = out.view(row)?.read().await?;
            map.truncate(N);
            maps.push(map);
        }
    }
    Ok(found)
}

fn draw(picture: &Picture, asked: &[usize], [flash, near]: &[Vec<Vec<f32>>; 2]) -> String {
    let (width, height, gap, top) = (COLUMNS * CELL, ROWS * CELL, 20, 52);
    let mut svg = Svg::new(gap + 3 * (width + gap), top + 3 * (height + gap) + 28);
    let column = |i: usize| gap + i * (width + gap);
    let titles = ["the cell that asks", "flash: every cell", "neighborhood: 13 × 13 cells"];
    for (i, title) in titles.into_iter().enumerate() {
        svg.line([column(i), 40], "title", "start", title);
    }
    for (n, &cell) in asked.iter().enumerate() {
        let y = top + n * (height + gap);
        svg.picture([gap, y], [width, height], &picture.image());
        for (i, map) in [&flash[n], &near[n]].into_iter().enumerate() {
            let x = column(i + 1);
            svg.add(&format!(r#"<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{}"/>"#, DARK.panel));
            let most = map.iter().fold(f32::MIN_POSITIVE, |most, &w| most.max(w));
            let shades: Vec<Option<f32>> = map.iter().map(|&w| (w != 0.0).then(|| (w / most).sqrt())).collect();
            svg.cells(&DARK, [x, y], CELL, COLUMNS, &shades);
        }
        for i in 0..3 {
            let (x, y) = (column(i) + cell % COLUMNS * CELL, y + cell / COLUMNS * CELL);
            svg.add(&format!(
                r##"<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="none" stroke="#ffb020" stroke-width="2"/>"##
            ));
        }
    }
    svg.legend(&DARK, [column(2) - 40, top + 3 * (height + gap) + 2], ["small weight", "largest in the map"]);
    svg.finish(&DARK, Some("#0d1117"))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let picture = match arguments.next() {
        Some(path) => Picture::open(&path, COLUMNS)?,
        None => Picture::landscape(),
    };
    let output = arguments.next().unwrap_or_else(|| "attention_map.svg".into());
    let asked = ASKED.map(|[x, y]| (y * ROWS as f32) as usize * COLUMNS + (x * COLUMNS as f32) as usize);
    let gpu = pollster::block_on(Gpu::request())?;
    println!("{}\n{N} cells, each of which asks all of them …", gpu.caps());
    let maps = pollster::block_on(weights(&gpu, &cells(&picture), &asked))?;
    for maps in &maps {
        let whole = maps.iter().all(|map| (map.iter().sum::<f32>() - 1.0).abs() < 1e-3);
        assert!(whole, "weights add up to 1");
    }
    std::fs::write(&output, draw(&picture, &asked, &maps)).map_err(|e| format!("{output}: {e}"))?;
    println!("the maps are in {output}");
    Ok(())
}
