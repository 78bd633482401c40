//! The two models, with parameters named and shaped as PyTorch would.
//!
//! The names are the contract with everyone else who touches the file: a `state_dict` of the same network in PyTorch
//! loads what this crate writes, and the reverse. Candle's own variable store keeps its variables in a hash map and
//! draws initial values from a global generator; here both are ordered and seeded, so that two workers with the same
//! seed write the same bytes.

use crate::data::{CLASSES, PIXELS, SIDE};
use crate::rng::stream;
use candle_core::{DType, Device, Tensor, Var};
use rand::RngExt;
use safetensors::{SafeTensors, tensor::Dtype};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Largest model file this crate reads. The CNN has 20 kB; more is not one of these models.
pub const MODEL_BYTES_MAX: usize = 16 << 20;

/// Which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64 → 64 → 10 with ReLU between: 4,810 parameters.
    Mlp,
    /// Two 3×3 convolutions (8 and 16 channels) with ReLU, 2×2 average pooling, one linear layer: 3,818 parameters.
    Cnn,
}

const HIDDEN: usize = 64;
const CHANNELS: [usize; 2] = [8, 16];
const POOLED: usize = CHANNELS[1] * (SIDE / 2) * (SIDE / 2);

impl Architecture {
    /// Every architecture.
    pub const ALL: [Self; 2] = [Self::Mlp, Self::Cnn];

    /// Names and shapes of the parameters, in PyTorch's order. Linear weights are `[out, in]`, convolution weights
    /// `[out, in, height, width]`.
    pub fn parameters(self) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            Self::Mlp => vec![
                ("fc1.weight", vec![HIDDEN, PIXELS]),
                ("fc1.bias", vec![HIDDEN]),
                ("fc2.weight", vec![CLASSES, HIDDEN]),
                ("fc2.bias", vec![CLASSES]),
            ],
            Self::Cnn => vec![
                ("conv1.weight", vec![CHANNELS[0], 1, 3, 3]),
                ("conv1.bias", vec![CHANNELS[0]]),
                ("conv2.weight", vec![CHANNELS[1], CHANNELS[0], 3, 3]),
                ("conv2.bias", vec![CHANNELS[1]]),
                ("fc1.weight", vec![CLASSES, POOLED]),
                ("fc1.bias", vec![CLASSES]),
            ],
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mlp => "mlp",
            Self::Cnn => "cnn",
        })
    }
}

/// A model file that is not one of these models.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file is larger than [`MODEL_BYTES_MAX`].
    #[error("the model file has {0} bytes; models of this worker have at most {MODEL_BYTES_MAX}")]
    TooLarge(usize),
    /// The file is not safetensors.
    #[error("the model file is not safetensors: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// Its tensors are those of no architecture.
    #[error(
        "the model file has the tensors {found:?}; an mlp has {:?}, a cnn {:?}",
        names(Architecture::Mlp),
        names(Architecture::Cnn)
    )]
    Tensors {
        /// The names in the file, at most 20.
        found: Vec<String>,
    },
    /// A tensor has another type or shape.
    #[error("tensor `{name}` is {found}, expected {expected}")]
    Shape {
        /// Its name.
        name: &'static str,
        /// Type and shape in the file.
        found: String,
        /// Type and shape of the architecture.
        expected: String,
    },
    /// The file holds another architecture than the caller asked for.
    #[error("the model file holds a {found}, but {asked} was asked for")]
    Architecture {
        /// What the file holds.
        found: Architecture,
        /// What was asked for.
        asked: Architecture,
    },
    /// The tensor library failed.
    #[error("compute: {0}")]
    Compute(#[from] candle_core::Error),
}

fn names(architecture: Architecture) -> Vec<&'static str> {
    architecture.parameters().into_iter().map(|(name, _)| name).collect()
}

/// A model on a device, trainable in place.
#[derive(Debug)]
pub struct Model {
    architecture: Architecture,
    device: Device,
    parameters: Vec<(&'static str, Var)>,
    neighbours: Tensor,
}

impl Model {
    /// A fresh model. Weights and biases are uniform within ±1/√fan_in, PyTorch's default for both kinds of layer.
    pub fn initial(architecture: Architecture, seed: u64, device: &Device) -> Result<Self, ModelError> {
        let mut parameters = Vec::new();
        let mut fan_in = 1;
        for (i, (name, shape)) in architecture.parameters().into_iter().enumerate() {
            if shape.len() > 1 {
                fan_in = shape[1..].iter().product(); // a bias, which follows its weight, takes the weight's
            }
            let bound = 1.0 / (fan_in as f32).sqrt();
            let mut rng = stream(seed, "initial model", &[architecture as u64, i as u64]);
            let values: Vec<f32> =
                (0..shape.iter().product()).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect();
            parameters.push((name, Var::from_vec(values, shape, device)?));
        }
        Ok(Self { architecture, device: device.clone(), parameters, neighbours: neighbours(device)? })
    }

    /// Reads a model; the architecture follows from the names of its tensors.
    pub fn from_safetensors(bytes: &[u8], device: &Device) -> Result<Self, ModelError> {
        if bytes.len() > MODEL_BYTES_MAX {
            return Err(ModelError::TooLarge(bytes.len()));
        }
        let file = SafeTensors::deserialize(bytes)?;
        let architecture = recognise(&file)?;
        let mut parameters = Vec::new();
        for (name, shape) in architecture.parameters() {
            let tensor = file.tensor(name)?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
                let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
                return Err(ModelError::Shape { name, found, expected: format!("F32 {shape:?}") });
            }
            let (words, rest) = tensor.data().as_chunks::<4>();
            assert!(rest.is_empty(), "safetensors checked the length against type and shape");
            let values: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
            parameters.push((name, Var::from_vec(values, shape, device)?));
        }
        Ok(Self { architecture, device: device.clone(), parameters, neighbours: neighbours(device)? })
    }

    /// The same, refusing another architecture than `asked`.
    pub fn from_safetensors_as(bytes: &[u8], asked: Option<Architecture>, device: &Device) -> Result<Self, ModelError> {
        let model = Self::from_safetensors(bytes, device)?;
        match asked {
            Some(asked) if asked != model.architecture => {
                Err(ModelError::Architecture { found: model.architecture, asked })
            }
            _ => Ok(model),
        }
    }

    /// The model as a safetensors file: F32, little endian, tensors by name. The same values give the same bytes.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, ModelError> {
        let mut bytes = BTreeMap::new();
        for (name, values) in self.values()? {
            let shape = self.shape(name);
            bytes.insert(name, (shape, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()));
        }
        let views = bytes
            .iter()
            .map(|(name, (shape, data))| {
                Ok((*name, safetensors::tensor::TensorView::new(Dtype::F32, shape.clone(), data)?))
            })
            .collect::<Result<Vec<_>, ModelError>>()?;
        // One entry only: it is a hash map, and two would come out in either order. PyTorch's loaders look for it.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    /// Which network it is.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The trainable variables, in PyTorch's order.
    pub fn variables(&self) -> impl Iterator<Item = &Var> {
        self.parameters.iter().map(|(_, variable)| variable)
    }

    /// Every parameter's values, flattened, in PyTorch's order.
    pub fn values(&self) -> Result<Vec<(&'static str, Vec<f32>)>, ModelError> {
        let flat = |variable: &Var| variable.as_tensor().to_dtype(DType::F32)?.flatten_all()?.to_vec1();
        Ok(self
            .parameters
            .iter()
            .map(|(name, variable)| Ok((*name, flat(variable)?)))
            .collect::<candle_core::Result<_>>()?)
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        self.parameter(name).dims().to_vec()
    }

    fn parameter(&self, name: &str) -> &Tensor {
        let (_, variable) = self.parameters.iter().find(|(n, _)| *n == name).expect("a name of its architecture");
        variable.as_tensor()
    }

    /// Images `[n, 64]` in, logits `[n, 10]` out.
    pub fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        match self.architecture {
            Architecture::Mlp => {
                let hidden = self.linear("fc1.weight", "fc1.bias", images)?.relu()?;
                self.linear("fc2.weight", "fc2.bias", &hidden)
            }
            Architecture::Cnn => {
                let count = images.dim(0)?;
                let planes = images.reshape((count, PIXELS, 1))?;
                let planes = self.convolution("conv1.weight", "conv1.bias", &planes)?.relu()?;
                let planes = self.convolution("conv2.weight", "conv2.bias", &planes)?.relu()?;
                // PyTorch flattens channel by channel, so the linear layer's columns come in that order.
                let planes = planes.reshape((count, SIDE, SIDE, CHANNELS[1]))?.permute((0, 3, 1, 2))?.contiguous()?;
                // Average, not maximum: candle 0.11 scales the gradient of max pooling by the share of maxima in a
                // window (a quarter, mostly) instead of its inverse, so the convolutions would train too slowly.
                self.linear("fc1.weight", "fc1.bias", &planes.avg_pool2d(2)?.flatten_from(1)?)
            }
        }
    }

    fn linear(&self, weight: &str, bias: &str, input: &Tensor) -> candle_core::Result<Tensor> {
        input.matmul(&self.parameter(weight).t()?)?.broadcast_add(self.parameter(bias))
    }

    /// A 3×3 convolution with padding 1: `[n, 64, in]` to `[n, 64, out]`, channels last.
    ///
    /// One gather of the nine neighbours of every pixel and one matrix product. Forwards and backwards together this
    /// takes a fifth of the time of candle's general `conv2d` on images this small.
    fn convolution(&self, weight: &str, bias: &str, input: &Tensor) -> candle_core::Result<Tensor> {
        let (count, _, channels) = input.dims3()?;
        let weight = self.parameter(weight);
        let out = weight.dim(0)?;
        let padded = input.pad_with_zeros(1, 0, 1)?;
        let patches = padded.index_select(&self.neighbours, 1)?.reshape((count * PIXELS, 9 * channels))?;
        let weight = weight.permute((2, 3, 1, 0))?.reshape((9 * channels, out))?;
        patches.matmul(&weight)?.broadcast_add(self.parameter(bias))?.reshape((count, PIXELS, out))
    }
}

/// For every pixel the nine pixels around it, row by row; [`PIXELS`] stands for one outside the image.
fn neighbours(device: &Device) -> candle_core::Result<Tensor> {
    let around = |at: usize, by: usize| (at + by).checked_sub(1).filter(|moved| *moved < SIDE);
    let mut indices = Vec::with_capacity(PIXELS * 9);
    for pixel in 0..PIXELS {
        for (down, right) in (0..9).map(|k| (k / 3, k % 3)) {
            let place = around(pixel / SIDE, down).zip(around(pixel % SIDE, right));
            indices.push(place.map_or(PIXELS, |(row, column)| row * SIDE + column) as u32);
        }
    }
    Tensor::from_vec(indices, PIXELS * 9, device)
}

/// The architecture whose names are exactly those of the file.
fn recognise(file: &SafeTensors<'_>) -> Result<Architecture, ModelError> {
    let mut found: Vec<&str> = file.names();
    found.sort_unstable();
    for architecture in Architecture::ALL {
        let mut expected = names(architecture);
        expected.sort_unstable();
        if found == expected {
            return Ok(architecture);
        }
    }
    Err(ModelError::Tensors { found: found.into_iter().take(20).map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_deterministic_and_read_back() {
        for architecture in Architecture::ALL {
            let model = Model::initial(architecture, 5, &Device::Cpu).unwrap();
            let bytes = model.to_safetensors().unwrap();
            let again = Model::initial(architecture, 5, &Device::Cpu).unwrap().to_safetensors().unwrap();
            assert!(bytes == again && bytes.len() < 25_000);
            let read = Model::from_safetensors(&bytes, &Device::Cpu).unwrap();
            assert_eq!((read.architecture(), read.values().unwrap()), (architecture, model.values().unwrap()));
            let other = Model::initial(architecture, 6, &Device::Cpu).unwrap().to_safetensors().unwrap();
            assert!(bytes != other);
        }
    }

    #[test]
    fn logits_have_one_column_a_class() {
        let digits = crate::data::digits().unwrap();
        let (images, _) = digits.batch(&[0, 1, 2], &Device::Cpu).unwrap();
        for architecture in Architecture::ALL {
            let model = Model::initial(architecture, 5, &Device::Cpu).unwrap();
            assert_eq!(model.forward(&images).unwrap().dims(), [3, CLASSES]);
        }
    }

    #[test]
    fn the_convolution_is_the_librarys() {
        let model = Model::initial(Architecture::Cnn, 5, &Device::Cpu).unwrap();
        let input = Tensor::randn(0f32, 1.0, (3, CHANNELS[0], SIDE, SIDE), &Device::Cpu).unwrap();
        let bias = model.parameter("conv2.bias").reshape((1, CHANNELS[1], 1, 1)).unwrap();
        let weight = model.parameter("conv2.weight");
        let expected = input.conv2d(weight, 1, 1, 1, 1).unwrap().broadcast_add(&bias).unwrap();
        let last = input.flatten_from(2).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
        let found = model.convolution("conv2.weight", "conv2.bias", &last).unwrap();
        let found = found.transpose(1, 2).unwrap().reshape(expected.shape()).unwrap();
        let worst = (found - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-5, "{worst}");
    }

    #[test]
    fn strangers_are_refused_by_name() {
        let data = [0u8; 8];
        let view = |dtype, shape| safetensors::tensor::TensorView::new(dtype, shape, &data).unwrap();
        let file = |dtype, names: &[&str]| {
            safetensors::serialize(names.iter().map(|name| (*name, view(dtype, vec![2]))), None).unwrap()
        };
        let refusal = |bytes: &[u8]| Model::from_safetensors(bytes, &Device::Cpu).unwrap_err().to_string();
        assert!(refusal(&file(Dtype::F32, &["encoder.weight"])).contains("encoder.weight"));
        let mlp = names(Architecture::Mlp);
        assert!(refusal(&file(Dtype::F32, &mlp)).contains("`fc1.weight` is F32 [2], expected F32 [64, 64]"));
        assert!(refusal(b"not safetensors").contains("not safetensors"));
        let cnn = Model::initial(Architecture::Cnn, 1, &Device::Cpu).unwrap().to_safetensors().unwrap();
        let error = Model::from_safetensors_as(&cnn, Some(Architecture::Mlp), &Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("holds a cnn"));
    }
}
