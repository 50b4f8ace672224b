//! BASED (arXiv 2402.18668) on associative recall: `cargo run --release --example based [FILE.svg]`.
//!
//! A sequence gives pairs of a key and a value, and asks for the value of an earlier key at every other token. Attention that recalls it
//! puts out what stands nearest to the right value. Four kinds answer the same questions: linear attention with the second-order Taylor map,
//! whose state does not grow with the sequence; softmax over a window of 64 tokens; the sum of both, as BASED has them; and softmax over
//! all tokens. The example prints how often each is right, by how far back the pair lies, and draws it. Nothing is trained: keys
//! are random directions.

mod common;

use common::{LIGHT, Svg};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;
use wgpu_attention::{
    AttentionInputs, DType, FeatureMap, FlashAttention, FlashParams, Gpu, LinearAttention, LinearInputs, LinearParams,
    Tensor,
};

/// Independent sequences, and tokens of each.
const HEADS: usize = 48;
const TOKENS: usize = 1024;
/// Width of keys, as in the paper, and of values.
const KEY: usize = 16;
const VALUE: usize = 32;
/// Different values.
const VALUES: usize = 64;
const WINDOW: usize = 64;
/// Score of a query and its own key, for the Taylor map and for softmax; others are a quarter of that at most, mostly.
const SCALES: [f32; 2] = [8.0, 16.0];
/// A score that stands for no key: where a window has none that scores as much, softmax with this sink says next to nothing.
const SINK: f32 = 14.0;
/// Distances up to each of these, in tokens.
const DISTANCES: [usize; 6] = [32, 64, 128, 256, 512, 1024];
const NAMES: [&str; 4] = ["Taylor map", "window of 64", "both (BASED)", "softmax"];

/// A question: which row asks, which value is right, how far back its pair lies.
struct Question {
    row: usize,
    value: usize,
    distance: usize,
}

/// Queries, keys and values [heads, tokens, width], what they ask, and the values to choose from.
struct Recall {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    questions: Vec<Question>,
    choices: Vec<Vec<f32>>,
}

/// A random direction.
fn unit(random: &mut SmallRng, width: usize) -> Vec<f32> {
    let row: Vec<f32> = (0..width).map(|_| random.sample(StandardNormal)).collect();
    let length = row.iter().map(|x: &f32| x * x).sum::<f32>().sqrt();
    row.into_iter().map(|x| x / length).collect()
}

impl Recall {
    fn new(seed: u64) -> Self {
        let random = &mut SmallRng::seed_from_u64(seed);
        let choices: Vec<_> = (0..VALUES).map(|_| unit(random, VALUE)).collect();
        let rows = HEADS * TOKENS;
        let (mut q, mut k, mut v) = (vec![0.0; rows * KEY], vec![0.0; rows * KEY], vec![0.0; rows * VALUE]);
        let mut questions = vec![];
        for head in 0..HEADS {
            let mut pairs: Vec<(usize, Vec<f32>, usize)> = vec![];
            for token in 0..TOKENS {
                let row = head * TOKENS + token;
                if token % 2 == 0 {
                    let (key, value) = (unit(random, KEY), random.random_range(0..VALUES));
                    k[row * KEY..][..KEY].copy_from_slice(&key);
                    v[row * VALUE..][..VALUE].copy_from_slice(&choices[value]);
                    pairs.push((token, key, value));
                } else {
                    let (at, key, value) = &pairs[random.random_range(0..pairs.len())];
                    q[row * KEY..][..KEY].copy_from_slice(key);
                    questions.push(Question { row, value: *value, distance: token - at });
                }
            }
        }
        Self { q, k, v, questions, choices }
    }

    /// How many of the answers are right, by distance.
    fn accuracy(&self, out: &[f32]) -> [f32; DISTANCES.len()] {
        let (mut right, mut all) = ([0.0; DISTANCES.len()], [0f32; DISTANCES.len()]);
        for Question { row, value, distance } in &self.questions {
            let answer = &out[row * VALUE..][..VALUE];
            let near = |choice: &Vec<f32>| choice.iter().zip(answer).map(|(a, b)| a * b).sum::<f32>();
            let best = (0..VALUES).max_by(|&a, &b| near(&self.choices[a]).total_cmp(&near(&self.choices[b])));
            let place = DISTANCES.partition_point(|most| most < distance);
            right[place] += f32::from(u8::from(best == Some(*value)));
            all[place] += 1.0;
        }
        std::array::from_fn(|i| right[i] / all[i].max(1.0))
    }
}

async fn answers(gpu: &Gpu, recall: &Recall) -> wgpu_attention::Result<[Vec<f32>; 4]> {
    let [q, k] = [&recall.q, &recall.k].map(|values| Tensor::upload(gpu, [1, HEADS, TOKENS, KEY], DType::F32, values));
    let v = Tensor::upload(gpu, [1, HEADS, TOKENS, VALUE], DType::F32, &recall.v);
    let (q, k, v) = (q.await?, k.await?, v.await?);
    let taylor = LinearParams {
        feature_map: FeatureMap::Taylor2,
        scale: Some(SCALES[0]),
        normalize: Some(1e-6),
        ..LinearParams::default()
    };
    let taylor = LinearAttention::new(gpu, taylor)?.forward(&LinearInputs::new(&q, &k, &v)).await?.read().await?;
    let softmax = FlashParams { scale: Some(SCALES[1]), ..FlashParams::causal() };
    let window = FlashAttention::new(gpu, softmax.clone().with_window(WINDOW - 1, None))?;
    let (window, lse) = window.forward_with_lse(&AttentionInputs::new(&q, &k, &v)).await?;
    let (window, lse) = (window.read().await?, lse.read().await?);
    // The sink takes its share of the weights.
    let rows = window.chunks(VALUE).zip(&lse);
    let window: Vec<f32> =
        rows.flat_map(|(row, lse)| row.iter().map(move |x| x / (1.0 + (SINK - lse).exp()))).collect();
    let softmax = FlashAttention::new(gpu, softmax)?.forward(&q, &k, &v).await?.read().await?;
    let both = taylor.iter().zip(&window).map(|(a, b)| a + b).collect();
    Ok([taylor, window, both, softmax])
}

/// Lines over distances.
fn draw(found: &[[f32; DISTANCES.len()]; 4]) -> String {
    let (theme, colors) = (LIGHT, ["#0a7ea4", "#b35900", "#1a7f37", "#59636e"]);
    let (left, top, width, height) = (56, 56, 480, 220);
    let mut svg = Svg::new(left + width + 150, top + height + 56);
    svg.line([left, 24], "title", "start", "Associative recall: how often the right value comes out");
    for percent in [0, 25, 50, 75, 100] {
        let y = top + height - height * percent / 100;
        svg.add(&format!(r##"<path d="M{left} {y}h{width}" stroke="#d1d9e0"/>"##));
        svg.line([left - 8, y + 4], "small", "end", &format!("{percent} %"));
    }
    let x = |i: usize| left + 20 + i * (width - 40) / (DISTANCES.len() - 1);
    for (i, most) in DISTANCES.into_iter().enumerate() {
        svg.line([x(i), top + height + 20], "small", "middle", &format!("≤ {most}"));
    }
    svg.line([left + width / 2, top + height + 42], "note", "middle", "tokens back to the pair");
    let y = |accuracy: f32| top + height - (height as f32 * accuracy).round() as usize;
    let mut labels: Vec<usize> = (0..4).collect();
    labels.sort_by(|&a, &b| found[b][DISTANCES.len() - 1].total_cmp(&found[a][DISTANCES.len() - 1]));
    let mut free = 0;
    for n in labels {
        let (line, color) = (&found[n], colors[n]);
        let points: Vec<String> = line.iter().enumerate().map(|(i, a)| format!("{},{}", x(i), y(*a))).collect();
        let points = points.join(" ");
        svg.add(&format!(r#"<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2.5"/>"#));
        // Names stand below one another.
        let at = y(line[DISTANCES.len() - 1]).max(free);
        free = at + 16;
        svg.add(&format!(r#"<circle cx="{}" cy="{}" r="4" fill="{color}"/>"#, left + width + 6, at));
        svg.line([left + width + 16, at + 4], "note", "start", NAMES[n]);
    }
    svg.finish(&theme, Some("#ffffff"))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).unwrap_or("based.svg".into());
    let recall = Recall::new(1);
    let found = pollster::block_on(async { answers(&Gpu::request().await?, &recall).await })?;
    let found = found.map(|out| recall.accuracy(&out));
    println!("{} questions, accuracy in % by tokens back to the pair", recall.questions.len());
    println!("{:14}{}", "", DISTANCES.map(|most| format!("{:>8}", format!("≤ {most}"))).concat());
    for (name, line) in NAMES.iter().zip(&found) {
        println!("{name:14}{}", line.map(|x| format!("{:>8.1}", 100.0 * x)).concat());
    }
    std::fs::write(&file, draw(&found))?;
    println!("{file}");
    Ok(())
}
