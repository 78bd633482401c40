//! Any call there is, as a value: so that work can be handed to whoever has an instance, here or in another process.

use crate::call::{FinalizeArgs, FoldArgs, MergeArgs, TypedWindow, UpdateWindow, Window};
use crate::error::FunctionError;
use crate::gather::{BagWindow, ChooseArgs, CombineArgs, MakeArgs, MeasureArgs};
use crate::instance::Instance;
use serde::{Deserialize, Serialize};
use std::os::fd::BorrowedFd;

/// One call of a function. See the methods of [`Instance`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named and described as the methods of Instance")]
pub enum Call<F> {
    Fold(FoldArgs<F>),
    Merge(MergeArgs<F>),
    Finalize(FinalizeArgs<F>),
    Combine(CombineArgs<F>),
    Scalars { updates: u32 },
    Measure(MeasureArgs<F>),
    Choose(ChooseArgs<F>),
    Make(MakeArgs<F>),
}

/// What a call gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// What it made is in its output window.
    Made,
    /// How many numbers a round is measured by.
    Scalars(u32),
}

impl Instance {
    /// Makes a call.
    ///
    /// # Errors
    /// Those of the method that the call names.
    pub fn call_any(&mut self, call: &Call<BorrowedFd<'_>>) -> Result<Reply, FunctionError> {
        match call {
            Call::Fold(args) => self.fold(args).map(drop),
            Call::Merge(args) => self.merge(args).map(drop),
            Call::Finalize(args) => self.finalize(args).map(drop),
            Call::Combine(args) => self.combine(args).map(drop),
            Call::Measure(args) => self.measure(args).map(drop),
            Call::Choose(args) => self.choose(args).map(drop),
            Call::Make(args) => self.make(args).map(drop),
            Call::Scalars { updates } => return self.scalars(*updates as usize).map(Reply::Scalars),
        }
        .map(|()| Reply::Made)
    }
}

impl<F> Window<F> {
    /// The same stretch of what `map` makes of the file.
    ///
    /// # Errors
    /// What `map` says; the same for all below.
    pub fn try_map<G, E>(self, map: &mut impl FnMut(F) -> Result<G, E>) -> Result<Window<G>, E> {
        Ok(Window { file: map(self.file)?, offset_bytes: self.offset_bytes, len_bytes: self.len_bytes })
    }

    fn all<G, E>(
        windows: impl IntoIterator<Item = Self>,
        map: &mut impl FnMut(F) -> Result<G, E>,
    ) -> Result<Vec<Window<G>>, E> {
        windows.into_iter().map(|window| window.try_map(map)).collect()
    }
}

impl<F> TypedWindow<F> {
    fn try_map<G, E>(self, map: &mut impl FnMut(F) -> Result<G, E>) -> Result<TypedWindow<G>, E> {
        Ok(TypedWindow { window: self.window.try_map(map)?, dtype: self.dtype })
    }
}

impl<F> UpdateWindow<F> {
    fn all<G, E>(updates: Vec<Self>, map: &mut impl FnMut(F) -> Result<G, E>) -> Result<Vec<UpdateWindow<G>>, E> {
        let each = |update: Self| {
            let Self { window, dtype, weight, num_samples, staleness } = update;
            Ok(UpdateWindow { window: window.try_map(map)?, dtype, weight, num_samples, staleness })
        };
        updates.into_iter().map(each).collect()
    }
}

impl<F> Call<F> {
    /// The same call over what `map` makes of its files.
    ///
    /// # Errors
    /// What `map` says.
    pub fn try_map<G, E>(self, map: &mut impl FnMut(F) -> Result<G, E>) -> Result<Call<G>, E> {
        Ok(match self {
            Self::Fold(FoldArgs { elements, rule, acc_in, acc_out, updates }) => Call::Fold(FoldArgs {
                elements,
                rule,
                acc_in: acc_in.map(|window| window.try_map(map)).transpose()?,
                acc_out: acc_out.try_map(map)?,
                updates: UpdateWindow::all(updates, map)?,
            }),
            Self::Merge(MergeArgs { elements, rule, acc_in, acc_out, partials }) => Call::Merge(MergeArgs {
                elements,
                rule,
                acc_in: acc_in.map(|window| window.try_map(map)).transpose()?,
                acc_out: acc_out.try_map(map)?,
                partials: Window::all(partials, map)?,
            }),
            Self::Finalize(args) => {
                let FinalizeArgs { elements, rule, kind, partial, previous, out, total_weight, updates, seed } = args;
                Call::Finalize(FinalizeArgs {
                    elements,
                    rule,
                    kind,
                    partial: partial.try_map(map)?,
                    previous: previous.map(|window| window.try_map(map)).transpose()?,
                    out: out.try_map(map)?,
                    total_weight,
                    updates,
                    seed,
                })
            }
            Self::Combine(CombineArgs { elements, rule, kind, updates, previous, out, seed }) => {
                Call::Combine(CombineArgs {
                    elements,
                    rule,
                    kind,
                    updates: UpdateWindow::all(updates, map)?,
                    previous: previous.map(|window| window.try_map(map)).transpose()?,
                    out: out.try_map(map)?,
                    seed,
                })
            }
            Self::Scalars { updates } => Call::Scalars { updates },
            Self::Measure(MeasureArgs { elements, rule, kind, updates, previous, sums }) => {
                Call::Measure(MeasureArgs {
                    elements,
                    rule,
                    kind,
                    updates: UpdateWindow::all(updates, map)?,
                    previous: previous.map(|window| window.try_map(map)).transpose()?,
                    sums: sums.try_map(map)?,
                })
            }
            Self::Choose(ChooseArgs { updates, sums, lists, weights, seed }) => Call::Choose(ChooseArgs {
                updates,
                sums: sums.try_map(map)?,
                lists,
                weights: weights.try_map(map)?,
                seed,
            }),
            Self::Make(MakeArgs { tensor, previous, out, updates, total_weight, seed }) => {
                let bag = |bag: BagWindow<F>| {
                    let BagWindow { window, tensors, facts } = bag;
                    Ok(BagWindow { window: window.try_map(map)?, tensors, facts })
                };
                Call::Make(MakeArgs {
                    tensor,
                    updates: updates.into_iter().map(bag).collect::<Result<_, E>>()?,
                    previous: previous.try_map(map)?,
                    out: out.try_map(map)?,
                    total_weight,
                    seed,
                })
            }
        })
    }
}
