//! Systems of the literature as recipes, against an independent implementation: what is trained through. `tests/data/`.

mod common;

use common::golden::{file, floats};
use common::patterns::{integers, near, of_file};
use common::{gpu, read, tensor};
use pollster::block_on;
use safetensors::SafeTensors;
use wgpu_attention::score_reduction::*;
use wgpu_attention::*;

fn identity(n: usize) -> Vec<f32> {
    (0..n * n).map(|i| if i % (n + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

/// One tensor for all heads and batch entries.
fn expanded(x: &Tensor, shape: [usize; 4]) -> Tensor {
    x.view(x.layout().clone().expand(shape).unwrap()).unwrap()
}

/// A map is attention with the identity as values, and its gradient is that of the output.
#[test]
fn attention_maps() {
    let bytes = file("attention_maps");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, dmaps] = ["q", "k", "dmaps"].map(|name| of_file(&file, name));
    let eye = expanded(&tensor([1, 1, 12, 12], &identity(12)), [1, 2, 12, 12]);
    let flash = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let (maps, saved) = block_on(flash.forward_for_training(&AttentionInputs::new(&q, &k, &eye))).unwrap();
    let maps = read(&maps);
    near("maps", &maps, &floats(&file, "maps"));
    // How much the maps of two tokens overlap, head by head.
    let overlap = maps.chunks(64 * 12).map(|head| {
        let of = |f: fn(f32, f32) -> f32| head.chunks(12).map(|row| f(row[3], row[7])).sum::<f32>();
        of(f32::min) / of(|a, b| a + b)
    });
    near("loss", &overlap.collect::<Vec<f32>>(), &floats(&file, "loss"));
    let gradients = block_on(flash.backward(&saved, &dmaps)).unwrap();
    near("dq", &read(&gradients.dq), &floats(&file, "dq"));
    near("dk", &read(&gradients.dk), &floats(&file, "dk"));
}

/// Products of rows: a [n, d] · bᵀ [m, d].
fn products(a: &[f32], b: &[f32], d: usize) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    a.chunks(d).flat_map(|x| b.chunks(d).map(move |y| dot(x, y))).collect()
}

/// a [n, m]ᵀ · b [n, d].
fn turned_products(a: &[f32], b: &[f32], [m, d]: [usize; 2]) -> Vec<f32> {
    let mut sum = vec![0.0; m * d];
    for (weights, row) in a.chunks(m).zip(b.chunks(d)) {
        for (to, weight) in sum.chunks_mut(d).zip(weights) {
            to.iter_mut().zip(row).for_each(|(to, x)| *to += weight * x);
        }
    }
    sum
}

/// Relative positions are a view: the bias of query i and key j is the product with distance j − i (Transformer-XL, arXiv 1901.02860).
#[test]
fn transformer_xl() {
    let bytes = file("transformer_xl");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (heads, n, keys, d) = (2, 20, 33, 16);
    let wide = n + keys - 1;
    let of = |name: &str| floats(&file, name);
    // q + a row for each head.
    let plus = |name: &str| -> Vec<f32> {
        let row = of(name);
        of("q").iter().enumerate().map(|(i, q)| q + row[i / (n * d) * d + i % d]).collect()
    };
    let (queries, of_distance, rel) = (plus("bias_u"), plus("bias_v"), of("rel"));
    let scale = 1.0 / (d as f32).sqrt();
    let head = |x: &[f32], h: usize, rows: usize, width: usize| x[h * rows * width..][..rows * width].to_vec();
    let t = (0..heads).flat_map(|h| products(&head(&of_distance, h, n, d), &head(&rel, h, wide, d), d));
    let t: Vec<f32> = t.map(|x| scale * x).collect();
    near("query_rel", &t, &of("query_rel"));
    // bias[i][j] = t[i][j − i + n − 1]
    let strides = [heads * n * wide, n * wide, wide - 1];
    let layout = Layout { dtype: DType::F32, shape: [1, heads, n, keys], strides, offset: n - 1 };
    let t = tensor([1, heads, n, wide], &t);
    let bias = t.view(layout.clone()).unwrap();
    let [k, v, dout] = ["k", "v", "dout"].map(|name| of_file(&file, name));
    let q = tensor([1, heads, n, d], &queries);
    let flash = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
    let inputs = AttentionInputs { bias: Some(&bias), ..AttentionInputs::new(&q, &k, &v) };
    let (out, lse) = block_on(flash.forward_with_lse(&inputs)).unwrap();
    near("out", &read(&out), &of("out"));
    near("lse", &read(&lse), &of("lse"));
    // The gradient of the bias, written into a tensor of that layout over zeros, is the gradient of t.
    let dt = tensor([1, heads, n, wide], &vec![0.0; heads * n * wide]);
    let empty = |shape| tensor(shape, &vec![0.0; shape.iter().product()]);
    let (dq, dk, dv) = (empty([1, heads, n, d]), empty([1, heads, keys, d]), empty([1, heads, keys, d]));
    let outputs = AttentionOutputs::new(&out, &lse);
    let dbias = dt.view(layout).unwrap();
    let to = [("dq", &dq), ("dk", &dk), ("dv", &dv), ("dbias", &dbias)];
    let call = (inputs, outputs, [("dout", &dout)], to);
    let prepared = block_on(flash.prepare_backward(plan::Shapes::of(&call))).unwrap();
    block_on(prepared.submit(&call)).unwrap();
    near("dk", &read(&dk), &of("dk"));
    near("dv", &read(&dv), &of("dv"));
    let (dq, dt) = (read(&dq), read(&dt));
    // t = scale · (q + v) relᵀ.
    let dt: Vec<f32> = dt.iter().map(|x| scale * x).collect();
    let by_distance = (0..heads).flat_map(|h| {
        let rel = head(&rel, h, wide, d);
        let columns: Vec<f32> = (0..d).flat_map(|c| rel.chunks(d).map(move |row| row[c]).collect::<Vec<_>>()).collect();
        products(&head(&dt, h, n, wide), &columns, wide)
    });
    let by_distance: Vec<f32> = by_distance.collect();
    near("dq", &dq.iter().zip(&by_distance).map(|(a, b)| a + b).collect::<Vec<_>>(), &of("dq"));
    let of_rows = |x: &[f32]| -> Vec<f32> {
        let column = |h: usize, c: usize| (0..n).map(|i| x[(h * n + i) * d + c]).sum();
        (0..heads).flat_map(|h| (0..d).map(move |c| (h, c))).map(|(h, c)| column(h, c)).collect()
    };
    near("dbias_u", &of_rows(&dq), &of("dbias_u"));
    near("dbias_v", &of_rows(&by_distance), &of("dbias_v"));
    let drel =
        (0..heads).flat_map(|h| turned_products(&head(&dt, h, n, wide), &head(&of_distance, h, n, d), [wide, d]));
    near("drel", &drel.collect::<Vec<f32>>(), &of("drel"));
}

/// Channels among themselves: products over tokens are the last state of linear attention, and the bias of attention over channels.
#[test]
fn channel_attention() {
    let bytes = file("channel_attention");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (batch, c, n) = (2, 24, 60);
    let values = floats(&file, "x");
    let by_tokens: Vec<f32> = (0..batch * n * c).map(|i| values[(i / (n * c) * c + i % c) * n + i / c % n]).collect();
    let minus: Vec<f32> = by_tokens.iter().map(|x| -x).collect();
    let [x, minus_x] = [&by_tokens, &minus].map(|x| tensor([batch, 1, n, c], x));
    let params = LinearParams { causal: false, ..LinearParams::default() };
    let linear = LinearAttention::new(gpu(), params).unwrap();
    let products = LinearInputs::new(&x, &minus_x, &x);
    let (_, minus_e) = block_on(linear.forward_with_state(&products)).unwrap();
    let zeros = tensor([batch, 1, c, 1], &vec![0.0; batch * c]);
    let flash = FlashAttention::new(gpu(), FlashParams::default()).unwrap();
    let with = |v| AttentionInputs { bias: Some(&minus_e), ..AttentionInputs::new(&zeros, &zeros, v) };
    let eye = expanded(&tensor([1, 1, c, c], &identity(c)), [batch, 1, c, c]);
    near("weights", &read(&block_on(flash.forward_with_lse(&with(&eye))).unwrap().0), &floats(&file, "weights"));
    let by_channel = tensor([batch, 1, c, n], &values);
    let (out, saved) = block_on(flash.forward_for_training(&with(&by_channel))).unwrap();
    near("out", &read(&out), &floats(&file, "out"));
    // Through the values, and through both sides of the products.
    let dout = tensor([batch, 1, c, n], &floats(&file, "dout"));
    let gradients = block_on(flash.backward(&saved, &dout)).unwrap();
    let nothing = tensor([batch, 1, n, c], &vec![0.0; batch * n * c]);
    let of_products = block_on(linear.backward(&products, &nothing, gradients.dbias.as_ref())).unwrap();
    let (dv, dk, dx) = (read(&gradients.dv), read(&of_products.dk), read(&of_products.dv));
    let all = (0..batch * c * n).map(|i| {
        let at = (i / (c * n) * n + i % n) * c + i / n % c;
        dv[i] + dx[at] - dk[at]
    });
    near("dx", &all.collect::<Vec<f32>>(), &floats(&file, "dx"));
}

/// Heads that a token chooses: a factor for each token and head, before the output projection (MoH, arXiv 2410.11842).
#[test]
fn mixture_of_heads() {
    let bytes = file("mixture_of_heads");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let [q, k, v] = ["q", "k", "v"].map(|name| of_file(&file, name));
    let (scale, dout) = (floats(&file, "output_scale"), floats(&file, "dout"));
    let flash = FlashAttention::new(gpu(), common::BOTTOM_RIGHT).unwrap();
    let (out, saved) = block_on(flash.forward_for_training(&AttentionInputs::new(&q, &k, &v))).unwrap();
    let out = read(&out);
    let scaled = |x: &[f32]| x.iter().enumerate().map(|(i, x)| scale[i / 16] * x).collect::<Vec<f32>>();
    near("out", &scaled(&out), &floats(&file, "out"));
    let products = out.chunks(16).zip(dout.chunks(16)).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum());
    near("doutput_scale", &products.collect::<Vec<f32>>(), &floats(&file, "doutput_scale"));
    let gradients = block_on(flash.backward(&saved, &tensor([2, 6, 20, 16], &scaled(&dout)))).unwrap();
    for (name, found) in [("dq", &gradients.dq), ("dk", &gradients.dk), ("dv", &gradients.dv)] {
        near(name, &read(found), &floats(&file, name));
    }
}

/// Rows of unit length, and what they were divided by.
fn unit(values: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let lengths: Vec<f32> = values.chunks(width).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
    (values.iter().enumerate().map(|(i, x)| x / lengths[i / width]).collect(), lengths)
}

/// Each cluster takes the tokens nearest to its centroid; they attend to one another, in order; a token in several clusters has the mean
/// (Routing Transformer, arXiv 2003.05997), with gradients.
#[test]
fn routing_transformer() {
    let bytes = file("routing_shared_causal");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let (batch, heads, n, d, clusters, window) = (2, 2, 64, 16, 4, 24);
    let [q, v, dout] = ["q", "v", "dout"].map(|name| of_file(&file, name));
    let (normal, lengths) = unit(&floats(&file, "q"), d);
    let k = tensor([batch, heads, n, d], &normal);
    // The nearest tokens of each centroid.
    let means = expanded(&of_file(&file, "means"), [batch, heads, clusters, d]);
    let attention = AttentionInputs::new(&means, &k, &v);
    let params = FlashParams { scale: Some(1.0), ..FlashParams::default() };
    let (_, lse) = block_on(FlashAttention::new(gpu(), params.clone()).unwrap().forward_with_lse(&attention)).unwrap();
    let (queries, keys) = (QueryGroups::Blocks(1), KeyGroups::Blocks(1));
    let params = ScoreReductionParams {
        attention: params,
        queries,
        keys,
        top_k: Some(window),
        ..ScoreReductionParams::default()
    };
    let inputs = ScoreReductionInputs { attention, lse: &lse, segments: None };
    let nearest = block_on(ScoreReduction::new(gpu(), params).unwrap().forward(&inputs)).unwrap();
    let index = nearest.indices.expect("top_k is set");
    assert_eq!(block_on(index.read_u32()).unwrap(), integers(&file, "lists_q"));
    // Attention within the clusters: each is a head.
    let count = clusters * window;
    let index = index.view(Layout::heads_first(DType::U32, [batch, heads, 1, count])).unwrap();
    let rows = Rows::new(gpu());
    let within = Layout::heads_first(DType::F32, [batch, heads * clusters, window, d]);
    let gathered = |x| block_on(rows.gather(x, &index)).unwrap().view(within.clone()).unwrap();
    let itself = Hook::new(
        "itself",
        "fn itself(s: f32, at: Position) -> f32 { return select(s, s - 5e4, at.query == at.key); }
        fn itself_grad(s: f32, at: Position, d_out: f32) -> f32 { return d_out; }",
    );
    let params = FlashParams { score_mod: vec![itself.with_gradient("itself_grad")], ..FlashParams::causal() };
    let flash = FlashAttention::new(gpu(), params).unwrap();
    let [own_q, own_k, own_v] = [&q, &k, &v].map(gathered);
    let (own, saved) = block_on(flash.forward_for_training(&AttentionInputs::new(&own_q, &own_k, &own_v))).unwrap();
    let apart = Layout::heads_first(DType::F32, [batch, heads, count, d]);
    let own = own.view(apart.clone()).unwrap();
    let (out, counts) = block_on(rows.scatter_with_count(&own, &index, n, RowReduction::Mean)).unwrap();
    near("out", &read(&out), &floats(&file, "out"));
    let of_rows = block_on(rows.gather_divided(&dout, &index, &counts)).unwrap().view(within).unwrap();
    let gradients = block_on(flash.backward(&saved, &of_rows)).unwrap();
    let back = |x: &Tensor| {
        let x = x.view(apart.clone()).unwrap();
        read(&block_on(rows.scatter(&x, &index, n, RowReduction::Sum)).unwrap())
    };
    near("dv", &back(&gradients.dv), &floats(&file, "dv"));
    // Keys are queries of unit length.
    let (dq, dk) = (back(&gradients.dq), back(&gradients.dk));
    let along: Vec<f32> =
        dk.chunks(d).zip(normal.chunks(d)).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum()).collect();
    let all = (0..dq.len()).map(|i| dq[i] + (dk[i] - along[i / d] * normal[i]) / lengths[i / d]);
    near("dq", &all.collect::<Vec<f32>>(), &floats(&file, "dq"));
}
