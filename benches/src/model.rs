//! Models of real sizes: the trainable tensors of residual networks (He et al. 2016, table 1) with a head of 62 classes.

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A model to measure with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Model {
    /// ResNet-18: 45 MB in 62 tensors
    Resnet18,
    /// ResNet-152: 233 MB in 467 tensors
    Resnet152,
    /// The bytes of ResNet-152 in one tensor
    Flat152,
}

impl Model {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Resnet18 => "ResNet-18 (62 tensors)",
            Self::Resnet152 => "ResNet-152 (467 tensors)",
            Self::Flat152 => "ResNet-152 in one tensor",
        }
    }

    fn tensors(self) -> Vec<(String, Vec<u64>)> {
        match self {
            Self::Resnet18 => resnet(&[2, 2, 2, 2], false),
            Self::Resnet152 => resnet(&[3, 8, 36, 3], true),
            Self::Flat152 => {
                vec![("w".to_owned(), vec![Self::Resnet152.elements()])]
            }
        }
    }

    /// Its numbers.
    pub fn elements(self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<u64>()).sum()
    }

    /// Writes it as [`write`] does.
    pub fn write(self, path: &Path) -> Result<u64> {
        write(self.tensors(), path)
    }
}

/// Writes tensors of F32, by name and shape, as a safetensors file with small numbers of no meaning. Returns its length in
/// bytes.
pub fn write(tensors: Vec<(String, Vec<u64>)>, path: &Path) -> Result<u64> {
    let (mut header, mut at) = (Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + shape.iter().product::<u64>() * 4;
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let mut text = Value::Object(header).to_string();
    text.extend(std::iter::repeat_n(' ', (8 - text.len() % 8) % 8));
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).context("make the model's file")?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    let mut state = 1u32;
    for _ in 0..at / 4 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        file.write_all(&((state >> 8) as f32 / (1 << 24) as f32 - 0.5).to_le_bytes())?;
    }
    file.flush()?;
    Ok(8 + text.len() as u64 + at)
}

fn resnet(blocks: &[u64], is_deep: bool) -> Vec<(String, Vec<u64>)> {
    let mut tensors = Vec::new();
    let norm = |tensors: &mut Vec<(String, Vec<u64>)>, name: String, shape: Vec<u64>| {
        let width = shape[0];
        tensors.push((name.clone(), shape));
        tensors.push((format!("{name}.bn.weight"), vec![width]));
        tensors.push((format!("{name}.bn.bias"), vec![width]));
    };
    norm(&mut tensors, "conv1".to_owned(), vec![64, 3, 7, 7]);
    let expansion = if is_deep { 4 } else { 1 };
    let mut inputs = 64;
    for (layer, count) in blocks.iter().enumerate() {
        let width = 64 << layer;
        for block in 0..*count {
            let name = format!("layer{}.{block}", layer + 1);
            let shapes = if is_deep {
                vec![vec![width, inputs, 1, 1], vec![width, width, 3, 3], vec![width * 4, width, 1, 1]]
            } else {
                vec![vec![width, inputs, 3, 3], vec![width, width, 3, 3]]
            };
            for (i, shape) in shapes.into_iter().enumerate() {
                norm(&mut tensors, format!("{name}.conv{}", i + 1), shape);
            }
            if (layer > 0 && block == 0) || inputs != width * expansion {
                norm(&mut tensors, format!("{name}.downsample"), vec![width * expansion, inputs, 1, 1]);
            }
            inputs = width * expansion;
        }
    }
    tensors.push(("fc.weight".to_owned(), vec![62, inputs]));
    tensors.push(("fc.bias".to_owned(), vec![62]));
    tensors
}
