//! Attention learns associative recall: a sequence names pairs of a key and a value, and asks for the values of its keys in
//! another order. Attention and its gradients run on the GPU; embeddings, logits and the optimiser are a few loops here. Only a
//! model that learns to match a question with its key can answer.
//!
//! `cargo run --release --example train [STEPS] [CURVE.svg]`

use plotters::prelude::*;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::time::Instant;
use wgpu_attention::{AttentionInputs, DType, Error, FlashAttention, FlashParams, Gpu, Tensor};

/// Sequences of a step, pairs of a sequence, kinds of keys and of values, width of an embedding.
const BATCH: usize = 16;
const PAIRS: usize = 24;
const KEYS: usize = 64;
const VALUES: usize = 16;
const WIDTH: usize = 32;

/// A table of embeddings and its Adam state.
struct Table {
    values: Vec<f32>,
    gradient: Vec<f32>,
    moments: Vec<[f32; 2]>,
}

impl Table {
    fn new(rows: usize, random: &mut SmallRng) -> Self {
        let values = (0..rows * WIDTH).map(|_| random.random_range(-0.5f32..0.5)).collect();
        Self { values, gradient: vec![0.0; rows * WIDTH], moments: vec![[0.0; 2]; rows * WIDTH] }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * WIDTH..(row + 1) * WIDTH]
    }

    fn gather(&self, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|&row| self.row(row).to_vec()).collect()
    }

    fn scatter(&mut self, rows: &[usize], gradient: &[f32]) {
        for (&row, part) in rows.iter().zip(gradient.chunks(WIDTH)) {
            self.gradient[row * WIDTH..(row + 1) * WIDTH].iter_mut().zip(part).for_each(|(sum, g)| *sum += g);
        }
    }

    /// Adam (arXiv 1412.6980).
    fn update(&mut self, step: usize) {
        let (rate, decay) = (0.01, [0.9f32, 0.99]);
        for ((value, gradient), moments) in self.values.iter_mut().zip(&mut self.gradient).zip(&mut self.moments) {
            moments[0] = decay[0] * moments[0] + (1.0 - decay[0]) * *gradient;
            moments[1] = decay[1] * moments[1] + (1.0 - decay[1]) * *gradient * *gradient;
            let [mean, square] = [0, 1].map(|i| moments[i] / (1.0 - decay[i].powi(step as i32 + 1)));
            *value -= rate * mean / (square.sqrt() + 1e-8);
            *gradient = 0.0;
        }
    }
}

/// Token numbers of a step: keys, values, questions (one per pair) and their answers.
struct Batch {
    keys: Vec<usize>,
    values: Vec<usize>,
    questions: Vec<usize>,
    answers: Vec<usize>,
}

impl Batch {
    fn new(random: &mut SmallRng) -> Self {
        let mut batch = Self { keys: vec![], values: vec![], questions: vec![], answers: vec![] };
        for _ in 0..BATCH {
            let mut all: Vec<usize> = (0..KEYS).collect();
            all.shuffle(random);
            let mut pairs: Vec<(usize, usize)> =
                all[..PAIRS].iter().map(|&key| (key, random.random_range(0..VALUES))).collect();
            batch.keys.extend(pairs.iter().map(|(key, _)| key));
            batch.values.extend(pairs.iter().map(|(_, value)| value));
            pairs.shuffle(random);
            batch.questions.extend(pairs.iter().map(|(key, _)| key));
            batch.answers.extend(pairs.iter().map(|(_, value)| value));
        }
        batch
    }
}

/// Cross-entropy of softmax(out · tableᵀ), the share of right answers, and the gradient of `out`; adds to the table's.
fn answer(out: &[f32], table: &mut Table, answers: &[usize]) -> (f32, f32, Vec<f32>) {
    let count = answers.len() as f32;
    let (mut loss, mut right, mut dout) = (0.0, 0.0, vec![0.0; out.len()]);
    for ((out, dout), &answer) in out.chunks(WIDTH).zip(dout.chunks_mut(WIDTH)).zip(answers) {
        let logits: Vec<f32> =
            (0..VALUES).map(|value| out.iter().zip(table.row(value)).map(|(a, b)| a * b).sum()).collect();
        let top = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f32 = logits.iter().map(|x| (x - top).exp()).sum();
        loss += (top + sum.ln() - logits[answer]) / count;
        right += f32::from(u8::from(logits[answer] == top)) / count;
        for (value, logit) in logits.iter().enumerate() {
            let wanted = f32::from(u8::from(value == answer));
            let gradient = ((logit - top).exp() / sum - wanted) / count;
            for d in 0..WIDTH {
                dout[d] += gradient * table.values[value * WIDTH + d];
                table.gradient[value * WIDTH + d] += gradient * out[d];
            }
        }
    }
    (loss, right, dout)
}

async fn train(steps: usize) -> Result<Vec<f32>, Error> {
    let gpu = Gpu::request().await?;
    println!(
        "{}\n{PAIRS} pairs per sequence, {KEYS} keys, {VALUES} values: chance is {:.1} %",
        gpu.caps(),
        100.0 / VALUES as f32
    );
    let attention = FlashAttention::new(&gpu, FlashParams::default())?;
    let random = &mut SmallRng::seed_from_u64(1);
    let [mut q, mut k] = [(); 2].map(|()| Table::new(KEYS, random));
    let [mut v, mut head] = [(); 2].map(|()| Table::new(VALUES, random));
    let up = async |values: &[f32]| Tensor::upload(&gpu, [BATCH, 1, PAIRS, WIDTH], DType::F32, values).await;
    let start = Instant::now();
    let mut losses = Vec::new();
    for step in 0..steps {
        let batch = Batch::new(random);
        let queries = up(&q.gather(&batch.questions)).await?;
        let keys = up(&k.gather(&batch.keys)).await?;
        let values = up(&v.gather(&batch.values)).await?;
        let (out, saved) = attention.forward_for_training(&AttentionInputs::new(&queries, &keys, &values)).await?;
        let (loss, right, dout) = answer(&out.read().await?, &mut head, &batch.answers);
        let gradients = attention.backward(&saved, &up(&dout).await?).await?;
        q.scatter(&batch.questions, &gradients.dq.read().await?);
        k.scatter(&batch.keys, &gradients.dk.read().await?);
        v.scatter(&batch.values, &gradients.dv.read().await?);
        for table in [&mut q, &mut k, &mut v, &mut head] {
            table.update(step);
        }
        losses.push(loss);
        if step % 25 == 0 || step + 1 == steps {
            let seconds = start.elapsed().as_secs_f32();
            println!("step {step:>4}  loss {loss:.3}  right {:5.1} %  {seconds:5.1} s", 100.0 * right);
        }
    }
    Ok(losses)
}

fn draw(losses: &[f32], path: &str) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(path, (800, 450)).into_drawing_area();
    area.fill(&WHITE)?;
    let top = losses.iter().copied().fold(0.0, f32::max) * 1.05;
    let mut chart = ChartBuilder::on(&area)
        .caption("Associative recall: cross-entropy by step", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0..losses.len(), 0f32..top)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("loss (nats)")
        .light_line_style(WHITE)
        .label_style(("sans-serif", 15))
        .draw()?;
    chart.draw_series(LineSeries::new(losses.iter().copied().enumerate(), BLUE.stroke_width(2)))?;
    area.present()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let steps = std::env::args().nth(1).map_or(Ok(150), |text| text.parse())?;
    let path = std::env::args().nth(2).unwrap_or_else(|| "train.svg".into());
    let losses = pollster::block_on(train(steps))?;
    draw(&losses, &path)?;
    println!("the loss curve is in {path}");
    Ok(())
}
