//! A SeerAttention gate learns which blocks of attention matter. A sequence consists of blocks of tokens, each about one of a few
//! topics; tokens look at those of their own topic, so it is known which blocks matter. The gate sees only pooled queries and keys. It
//! learns from the largest probability of each block, which attention gives without storing the matrix. Attention, target, loss and
//! gradients run on the GPU; the optimiser is a few lines here.
//!
//! `cargo run --release --example seer [STEPS] [MASKS.svg]`

use plotters::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::error::Error as AnyError;
use std::time::Instant;
use wgpu_attention::gate::{SeerGate, SeerGateInputs, SeerGateParams, Selector};
use wgpu_attention::{
    AttentionInputs, BlockSparseAttention, BlockSparseParams, DType, Error, FlashAttention, FlashParams, Gpu,
    Positions, Rotary, RotaryParams, Tensor,
};

/// Sequences of a step, heads, tokens of a block, blocks of a sequence, width of a head, topics.
const BATCH: usize = 2;
const HEADS: usize = 2;
const BLOCK: usize = 32;
const BLOCKS: usize = 50;
const WIDTH: usize = 32;
const TOPICS: usize = 8;
const TOKENS: usize = BLOCK * BLOCKS;
/// Base of the rotary embeddings, the model's and the gate's.
const THETA: f32 = 500_000.0;

/// Weights and their Adam state (arXiv 1412.6980).
struct Weights {
    shape: [usize; 4],
    values: Vec<f32>,
    moments: Vec<[f32; 2]>,
}

impl Weights {
    fn new(features: usize, random: &mut SmallRng) -> Self {
        let spread = (features as f32).sqrt().recip();
        let values: Vec<f32> =
            (0..HEADS * features * WIDTH).map(|_| spread * random.random_range(-1.7f32..1.7)).collect();
        Self { shape: [1, HEADS, features, WIDTH], moments: vec![[0.0; 2]; values.len()], values }
    }

    async fn upload(&self, gpu: &Gpu) -> Result<Tensor, Error> {
        Tensor::upload(gpu, self.shape, DType::F32, &self.values).await
    }

    fn update(&mut self, gradient: &[f32], step: usize) {
        let (rate, decay) = (0.01, [0.9f32, 0.99]);
        for ((value, gradient), moments) in self.values.iter_mut().zip(gradient).zip(&mut self.moments) {
            moments[0] = decay[0] * moments[0] + (1.0 - decay[0]) * gradient;
            moments[1] = decay[1] * moments[1] + (1.0 - decay[1]) * gradient * gradient;
            let [mean, square] = [0, 1].map(|i| moments[i] / (1.0 - decay[i].powi(step as i32 + 1)));
            *value -= rate * mean / (square.sqrt() + 1e-8);
        }
    }
}

/// A step's sequences: the topic of each block, and tokens before their rotary embedding.
struct Batch {
    topics: Vec<Vec<usize>>,
    q: Vec<f32>,
    k: Vec<f32>,
}

impl Batch {
    /// `directions` has one for each head and topic.
    fn new(directions: &[Vec<f32>], random: &mut SmallRng) -> Self {
        let mut batch = Self { topics: vec![], q: vec![], k: vec![] };
        for _ in 0..BATCH {
            let mut topics: Vec<usize> = (0..BLOCKS).map(|block| block % TOPICS).collect();
            topics.shuffle(random);
            for h in 0..HEADS {
                for token in 0..TOKENS {
                    let direction = &directions[h * TOPICS + topics[token / BLOCK]];
                    batch.q.extend(direction.iter().map(|x| 6.0 * x + random.random_range(-1.0f32..1.0)));
                    batch.k.extend(direction.iter().map(|x| 6.0 * x + random.random_range(-1.0f32..1.0)));
                }
            }
            batch.topics.push(topics);
        }
        batch
    }

    /// Whether a block of queries and one of keys that it may see are about the same topic.
    fn matters(&self, sequence: usize, i: usize, j: usize) -> bool {
        j <= i && self.topics[sequence][i] == self.topics[sequence][j]
    }

    /// Recall: the share of the blocks that matter which rows find by taking as many of their best blocks as matter.
    fn recall(&self, logits: &[f32]) -> f32 {
        let (mut found, mut all) = (0, 0);
        for (n, row) in logits.chunks(BLOCKS).enumerate() {
            let (sequence, i) = (n / BLOCKS / HEADS, n % BLOCKS);
            let mut order: Vec<usize> = (0..=i).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let count = (0..=i).filter(|&j| self.matters(sequence, i, j)).count();
            all += count;
            found += order[..count].iter().filter(|&&j| self.matters(sequence, i, j)).count();
        }
        found as f32 / all as f32
    }

    /// The same for blocks that are chosen at random.
    fn chance(&self) -> f32 {
        let pairs = || (0..BATCH).flat_map(|s| (0..BLOCKS).flat_map(move |i| (0..=i).map(move |j| (s, i, j))));
        let row = |s: usize, i: usize| (0..=i).filter(|&j| self.matters(s, i, j)).count() as f32 / (i + 1) as f32;
        let mattering = pairs().filter(|&(s, i, j)| self.matters(s, i, j));
        let (sum, count) = mattering.fold((0.0, 0.0), |(sum, count), (s, i, _)| (sum + row(s, i), count + 1.0));
        sum / count
    }
}

/// What is drawn: which blocks matter, which an untrained gate chose, and which the trained one chose.
struct Masks {
    panels: Vec<(String, Vec<bool>)>,
}

/// A direction for each topic, at right angles to the others. Topics live where the rotary embedding turns slowly, in the last
/// quarter of the pairs, so that near and far tokens of a topic are alike.
fn directions(random: &mut SmallRng) -> Vec<Vec<f32>> {
    let mut all: Vec<Vec<f32>> = vec![];
    for _ in 0..TOPICS {
        let slow = |d: usize| d % (WIDTH / 2) >= WIDTH / 2 - WIDTH / 8;
        let mut x: Vec<f32> =
            (0..WIDTH).map(|d| if slow(d) { random.random_range(-1.0f32..1.0) } else { 0.0 }).collect();
        for other in &all {
            let along: f32 = x.iter().zip(other).map(|(a, b)| a * b).sum();
            x.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
        }
        let length = x.iter().map(|x| x * x).sum::<f32>().sqrt();
        all.push(x.into_iter().map(|x| x / length).collect());
    }
    all
}

struct Trainer {
    gpu: Gpu,
    attention: FlashAttention,
    rotary: Rotary,
    gate: SeerGate,
    directions: Vec<Vec<f32>>,
}

impl Trainer {
    async fn new(random: &mut SmallRng) -> Result<Self, Error> {
        let gpu = Gpu::request().await?;
        let params = FlashParams::causal();
        let selector = Selector::TopP(0.9);
        let block = [BLOCK; 2];
        let params_of_gate = SeerGateParams {
            block,
            selector,
            rope_theta: Some(THETA),
            last_rows_dense: false,
            ..SeerGateParams::default()
        };
        Ok(Self {
            attention: FlashAttention::new(&gpu, params)?,
            rotary: Rotary::new(&gpu, RotaryParams { theta: THETA, ..RotaryParams::default() })?,
            gate: SeerGate::new(&gpu, params_of_gate)?,
            directions: (0..HEADS).flat_map(|_| directions(random)).collect(),
            gpu,
        })
    }

    async fn tokens(&self, values: &[f32]) -> Result<Tensor, Error> {
        Tensor::upload(&self.gpu, [BATCH, HEADS, TOKENS, WIDTH], DType::F32, values).await
    }

    /// One step: what dense attention looks at is what the gate should choose. Returns the loss and the recall before the step.
    async fn step(&self, weights: &mut [Weights; 2], batch: &Batch, step: usize) -> Result<(f32, f32), Error> {
        let (q_pre, k_pre) = (self.tokens(&batch.q).await?, self.tokens(&batch.k).await?);
        let q = self.rotary.forward(&q_pre, Positions::default()).await?;
        let k = self.rotary.forward(&k_pre, Positions::default()).await?;
        let dense = AttentionInputs::new(&q, &k, &k);
        let (_, lse) = self.attention.forward_with_lse(&dense).await?;

        let (wq, wk) = (weights[0].upload(&self.gpu).await?, weights[1].upload(&self.gpu).await?);
        let inputs = SeerGateInputs { wq: Some(&wq), ..SeerGateInputs::new(&q_pre, &k_pre, &wk) };
        let target = self.gate.target(&inputs, self.attention.params(), &dense, &lse).await?;
        let saved = self.gate.forward_for_training(&inputs).await?;
        let (loss, dlogits) = self.gate.loss(&saved, &target, 10.0, 0).await?;
        let gradients = self.gate.backward(&saved, &dlogits).await?;
        let dwq = gradients.dwq.expect("queries have weights").read().await?;
        let recall = batch.recall(&saved.logits().read().await?);
        weights[0].update(&dwq, step);
        weights[1].update(&gradients.dwk.read().await?, step);
        Ok((loss.read().await?[0], recall))
    }

    /// The first head's mask of the first sequence, the recall, and how far attention over the mask is from dense attention.
    async fn show(&self, weights: &[Weights; 2], batch: &Batch) -> Result<(Vec<bool>, f32, f32), Error> {
        let (q_pre, k_pre) = (self.tokens(&batch.q).await?, self.tokens(&batch.k).await?);
        let (wq, wk) = (weights[0].upload(&self.gpu).await?, weights[1].upload(&self.gpu).await?);
        let inputs = SeerGateInputs { wq: Some(&wq), ..SeerGateInputs::new(&q_pre, &k_pre, &wk) };
        let (mask, logits, _) = self.gate.forward_with_scores(&inputs).await?;
        let recall = batch.recall(&logits.read().await?);
        let q = self.rotary.forward(&q_pre, Positions::default()).await?;
        let k = self.rotary.forward(&k_pre, Positions::default()).await?;
        let causal = BlockSparseParams::causal();
        let dense = AttentionInputs::new(&q, &k, &k_pre);
        let sparse = AttentionInputs { block_mask: Some(&mask), ..dense };
        let (found, _) = BlockSparseAttention::new(&self.gpu, causal)?.forward_with_lse(&sparse).await?;
        let (known, _) = self.attention.forward_with_lse(&dense).await?;
        let (found, known) = (found.read().await?, known.read().await?);
        let error: f32 = found.iter().zip(&known).map(|(a, b)| (a - b) * (a - b)).sum();
        let all: f32 = known.iter().map(|x| x * x).sum();
        Ok((mask.read().await?[..BLOCKS * BLOCKS].to_vec(), recall, (error / all).sqrt()))
    }
}

async fn train(steps: usize) -> Result<Masks, Error> {
    let random = &mut SmallRng::seed_from_u64(1);
    let trainer = Trainer::new(random).await?;
    let mut weights = [Weights::new(WIDTH, random), Weights::new(3 * WIDTH, random)];
    let shown = Batch::new(&trainer.directions, random);
    println!(
        "{}\n{TOKENS} tokens in blocks of {BLOCK}, {TOPICS} topics: chance is {:.1} %",
        trainer.gpu.caps(),
        100.0 * shown.chance()
    );
    let mattering = |n: usize| shown.matters(0, n / BLOCKS, n % BLOCKS);
    let truth: Vec<bool> = (0..BLOCKS * BLOCKS).map(mattering).collect();
    let mut panels = vec![(format!("blocks that matter: {}", share(&truth)), truth)];
    let (mask, recall, error) = trainer.show(&weights, &shown).await?;
    println!("untrained: recall {:.1} %, attention over the mask is {:.1} % off", 100.0 * recall, 100.0 * error);
    panels.push((format!("untrained gate: {}", share(&mask)), mask));
    let start = Instant::now();
    for step in 0..steps {
        let batch = Batch::new(&trainer.directions, random);
        let (loss, recall) = trainer.step(&mut weights, &batch, step).await?;
        if step % 5 == 0 || step + 1 == steps {
            let seconds = start.elapsed().as_secs_f32();
            println!("step {step:>4}  loss {loss:.4}  recall {:5.1} %  {seconds:5.1} s", 100.0 * recall);
        }
    }
    let (mask, recall, error) = trainer.show(&weights, &shown).await?;
    println!("trained: recall {:.1} %, attention over the mask is {:.1} % off", 100.0 * recall, 100.0 * error);
    panels.push((format!("trained gate: {}", share(&mask)), mask));
    Ok(Masks { panels })
}

/// How many of the blocks under the diagonal are set.
fn share(mask: &[bool]) -> String {
    let set = mask.iter().filter(|&&set| set).count();
    format!("{set} of {} blocks", BLOCKS * (BLOCKS + 1) / 2)
}

impl Masks {
    fn draw(&self, path: &str) -> Result<(), Box<dyn AnyError>> {
        let area = SVGBackend::new(path, (1200, 470)).into_drawing_area();
        area.fill(&WHITE)?;
        for ((title, mask), part) in self.panels.iter().zip(area.split_evenly((1, self.panels.len()))) {
            let mut chart = ChartBuilder::on(&part)
                .caption(title, ("sans-serif", 20))
                .margin(12)
                .x_label_area_size(40)
                .y_label_area_size(46)
                .build_cartesian_2d(0..BLOCKS, 0..BLOCKS)?;
            chart
                .configure_mesh()
                .disable_mesh()
                .x_desc("block of keys")
                .y_desc("block of queries")
                .y_label_formatter(&|y| (BLOCKS - y).to_string())
                .label_style(("sans-serif", 14))
                .draw()?;
            let chosen = (0..mask.len()).filter(|&n| mask[n]).map(|n| (n / BLOCKS, n % BLOCKS));
            // Green where the choice is right, red where it is not.
            let right = &self.panels[0].1;
            chart.draw_series(chosen.map(|(i, j)| {
                let color = if right[i * BLOCKS + j] { RGBColor(30, 130, 76) } else { RGBColor(200, 60, 50) };
                Rectangle::new([(j, BLOCKS - i), (j + 1, BLOCKS - i - 1)], color.filled())
            }))?;
        }
        area.present()?;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn AnyError>> {
    let steps = std::env::args().nth(1).map_or(Ok(60), |text| text.parse())?;
    let path = std::env::args().nth(2).unwrap_or_else(|| "seer.svg".into());
    pollster::block_on(train(steps))?.draw(&path)?;
    println!("the masks are in {path}");
    Ok(())
}
