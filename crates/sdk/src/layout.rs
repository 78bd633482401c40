//! What a function's updates look like, next to the model.

/// What tensors an update holds. The host checks every update against it before it grants memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateLayout {
    /// Those of the model, as the job's spec says.
    AsModel,
    /// Those of the model whose names match one of these patterns, in which `*` stands for any text. The others stay
    /// as they are, and updates may leave them out.
    Subset(&'static [&'static str]),
    /// Others, which belong to tensors of the model. Only for functions of the class whole.
    Template {
        /// The tensors of the model that the function makes anew; every other stays as it is.
        of: TensorTemplate,
        /// What an update holds for such a tensor: all of them or none.
        tensors: &'static [TensorTemplate],
        /// Text that names in an update may begin with, and that counts for nothing.
        prefix: &'static str,
        /// The largest value of a dimension that the model does not fix.
        dimension_max: u64,
    },
    /// Any tensors, of at most so many bytes together. Only for functions of the class whole, which see every tensor of
    /// the model that the spec does not keep.
    Free {
        /// Bytes of an update's tensors.
        bytes_max: u64,
    },
}

/// A kind of tensor: `{}` in the name stands for any text, equal names of dimensions for equal numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorTemplate {
    /// The name, with one `{}`.
    pub name: &'static str,
    /// The names of its dimensions.
    pub shape: &'static [&'static str],
}
