//! burn's side.

use crate::{Side, Size};
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Tensor, TensorData};

/// burn's device of its own making, on the adapter that wgpu prefers, and the same with gradients.
pub struct BurnDevice {
    plain: Device,
    with_gradients: Device,
    pub name: String,
}

pub fn device() -> BurnDevice {
    let (plain, setup) = Device::wgpu_options().init_with_setup().expect("a GPU driver");
    let name = setup.adapter.get_info().name;
    BurnDevice { with_gradients: plain.clone().autodiff(), plain, name }
}

pub struct Burns {
    device: Device,
    plain: [Tensor<4>; 3],
    with_gradients: [Tensor<4>; 4],
    options: AttentionModuleOptions,
}

impl Burns {
    pub fn new(device: &BurnDevice, size: Size) -> Self {
        let tensor =
            |seed, device: &Device| Tensor::from_data(TensorData::new(size.values(seed), size.shape()), device);
        Self {
            device: device.plain.clone(),
            plain: [1, 2, 3].map(|seed| tensor(seed, &device.plain)),
            with_gradients: [1, 2, 3, 4].map(|seed| tensor(seed, &device.with_gradients)),
            options: AttentionModuleOptions { is_causal: size.causal, ..AttentionModuleOptions::default() },
        }
    }

    fn out(&self) -> Tensor<4> {
        let [q, k, v] = self.plain.clone();
        attention(q, k, v, None, None, self.options)
    }

    fn found(&self) -> [Tensor<4>; 3] {
        let [q, k, v, dout] = self.with_gradients.clone();
        let inputs = [q, k, v].map(Tensor::require_grad);
        let [q, k, v] = inputs.clone();
        let found = (attention(q, k, v, None, None, self.options) * dout).sum().backward();
        inputs.map(|input| input.grad(&found).expect("a gradient"))
    }

    fn wait(&self) {
        self.device.sync().expect("a GPU that works");
    }
}

fn values(tensor: Tensor<4>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32")
}

impl Side for Burns {
    fn name(&self) -> String {
        "burn".into()
    }

    fn forward(&self) -> Vec<Vec<f32>> {
        vec![values(self.out())]
    }

    fn gradients(&self) -> Vec<Vec<f32>> {
        self.found().map(values).into()
    }

    fn run_forward(&self) {
        let _out = self.out();
        self.wait();
    }

    fn run_gradients(&self) {
        let _found = self.found();
        self.wait();
    }
}
