//! The wasm side of the contract: what the exported entry points do.
//!
//! All unsafe code of a function lives here. It rests on three facts about wasm32 without threads: one call runs at a
//! time, nothing else touches the module's memory during a call, and whatever address the host hands over is checked
//! by the machine (a wrong one traps; it cannot reach outside the sandbox).
#![allow(unsafe_code, reason = "the one place where addresses from the host become slices")]

use crate::abi::{
    self, ARGS_BYTES, BATCH_MAX, ChooseCall, CombineCall, FinalizeCall, FoldCall, InitCall, MakeCall, MeasureCall,
    MergeCall, TensorRef, UPDATES_MAX, UpdateRef, pack,
};
use crate::{
    Additive, Bag, Choose, Class, Combine, Config, Description, Dtype, Exact, F16, Finalize, Fold, Make, Measure,
    Merge, Partial, PartialMut, Rule, Tensor, TensorTemplate, TwoPhase, Update, UpdateLayout, Values, ValuesMut, Whole,
};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt::Write;
use serde_json::json;
use zerocopy::{FromBytes, IntoBytes};

#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[link(wasm_import_module = "catchment")]
unsafe extern "C" {
    fn panic(text: *const u8, len: usize) -> !;
    fn f16_to_f32(from: *const F16, to: *mut f32, count: usize);
}

/// Has the host convert numbers.
///
/// # Panics
/// When lengths differ.
pub fn widen(from: &[F16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "as many on both sides");
    // SAFETY: both are slices of that length, and every pattern of bits is an `f32`.
    unsafe { f16_to_f32(from.as_ptr(), to.as_mut_ptr(), from.len()) }
}

/// A place for one value that lives from call to call.
pub struct Slot<T>(UnsafeCell<Option<T>>);

// SAFETY: wasm32 without the threads proposal has one thread.
unsafe impl<T> Sync for Slot<T> {}

impl<T> Slot<T> {
    /// An empty place.
    #[allow(clippy::new_without_default, reason = "used in statics only")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }

    /// Puts a value in; whatever was there is dropped.
    fn set(&self, value: T) -> &T {
        // SAFETY: one thread, and no reference from `get` or `set` outlives the exported call that made it.
        unsafe { (*self.0.get()).insert(value) }
    }

    fn get(&self) -> Option<&T> {
        // SAFETY: as in `set`.
        unsafe { (*self.0.get()).as_ref() }
    }
}

#[repr(C, align(16))]
struct Args(UnsafeCell<[u8; ARGS_BYTES]>);

// SAFETY: wasm32 without the threads proposal has one thread.
unsafe impl Sync for Args {}

static ARGS: Args = Args(UnsafeCell::new([0; ARGS_BYTES]));
/// Words, so that tables of numbers may begin anywhere in it that is a multiple of 8.
static ROOM: Slot<Vec<u64>> = Slot::new();
static ROOM_LEN: Slot<usize> = Slot::new();
static EXACT: Slot<Exact> = Slot::new();
static TEXT: Slot<String> = Slot::new();

/// Where the host writes a call's record.
pub fn args() -> u32 {
    ARGS.0.get() as u32
}

/// Makes room for `len` bytes.
pub fn room(len: u32) -> u32 {
    ROOM_LEN.set(len as usize);
    ROOM.set(alloc::vec![0; (len as usize).div_ceil(8)]).as_ptr() as u32
}

/// What the host has written into the room.
fn written() -> &'static [u8] {
    let bytes = ROOM.get().map_or(&[][..], |words| words.as_bytes());
    &bytes[..ROOM_LEN.get().copied().unwrap_or(0)]
}

/// Leaves text for the host to read until the next text.
fn text(text: String) -> u64 {
    let text = TEXT.set(text);
    pack(text.as_ptr() as u32, text.len() as u32)
}

/// The description as JSON.
pub fn describe(d: &Description, class: Class) -> u64 {
    let config: Vec<_> = d.config.iter().map(|f| json!({"name": f.name, "help": f.help})).collect();
    let description = json!({
        "name": d.name,
        "version": d.version,
        "class": class.as_str(),
        "partial": "F64",
        "summary": d.summary,
        "config": config,
        "needs_previous": d.needs_previous,
        "exact": d.exact,
        "update_layout": layout(&d.update_layout),
    });
    text(description.to_string())
}

fn layout(layout: &UpdateLayout) -> serde_json::Value {
    let tensor = |t: &TensorTemplate| json!({"name": t.name, "shape": t.shape});
    match layout {
        UpdateLayout::AsModel => json!("as_model"),
        UpdateLayout::Subset(patterns) => json!({"subset": patterns}),
        UpdateLayout::Template { of, tensors, prefix, dimension_max } => {
            let tensors: Vec<_> = tensors.iter().map(tensor).collect();
            json!({"template": {"of": tensor(of), "tensors": tensors, "prefix": prefix, "dimension_max": dimension_max}})
        }
        UpdateLayout::Free { bytes_max } => json!({"free": {"bytes_max": bytes_max}}),
    }
}

/// Reads the configuration that the host has written.
pub fn init<F>(function: &Slot<F>, description: &Description, make: fn(&Config) -> Result<F, String>) -> u64 {
    let made = Config::parse(written()).and_then(|config| {
        let known: Vec<&str> = description.config.iter().map(|field| field.name).collect();
        config.only(&known)?;
        let exact = call::<InitCall>().exact()?;
        exact.inspect(|exact| _ = EXACT.set(*exact));
        make(&config.with_exact(exact))
    });
    match made {
        Ok(made) => {
            function.set(made);
            0
        }
        Err(reason) => text(reason),
    }
}

/// Folds.
pub fn fold<A: Additive>(function: &Slot<A>) {
    let call: FoldCall = call();
    let (count, rule) = (call.elements as usize, abi::rule_from(call.rule).expect("known rule"));
    let mut list = [Update { values: Values::F64(&[]), weight: 0.0, num_samples: 0.0, staleness: 0 }; BATCH_MAX];
    let updates = &mut list[..call.updates as usize];
    fill(updates, &call.update, count);
    made(function).fold(Fold {
        rule,
        acc_in: (call.acc_in != 0).then(|| partial(rule, call.acc_in, count)),
        acc_out: partial_mut(rule, call.acc_out, count),
        updates,
    });
}

/// Merges.
pub fn merge<A: Additive>(function: &Slot<A>) {
    let call: MergeCall = call();
    let (count, rule) = (call.elements as usize, abi::rule_from(call.rule).expect("known rule"));
    let mut list = [Partial::F64(&[]); BATCH_MAX];
    let partials = &mut list[..call.partials as usize];
    for (to, &from) in partials.iter_mut().zip(&call.partial) {
        *to = partial(rule, from, count);
    }
    made(function).merge(Merge {
        rule,
        acc_in: (call.acc_in != 0).then(|| partial(rule, call.acc_in, count)),
        acc_out: partial_mut(rule, call.acc_out, count),
        partials,
    });
}

/// Finalises.
pub fn finalize<A: Additive>(function: &Slot<A>) -> u64 {
    let call: FinalizeCall = call();
    let (count, rule) = (call.elements as usize, abi::rule_from(call.rule).expect("known rule"));
    let done = made(function).finalize(Finalize {
        rule,
        kind: abi::kind_from(call.kind).expect("known kind"),
        partial: partial(rule, call.partial, count),
        previous: (call.previous != 0).then(|| values(call.previous, call.previous_dtype, count)),
        out: values_mut(call.out, call.out_dtype, count),
        total_weight: call.total_weight,
        updates: call.updates,
        seed: call.seed,
    });
    answer(done)
}

/// 0, or where the host finds the reason.
fn answer(done: Result<(), String>) -> u64 {
    match done {
        Ok(()) => 0,
        Err(reason) if reason.is_empty() => text("refused without a reason".to_string()),
        Err(reason) => text(reason),
    }
}

/// Updates with their windows of `count` numbers.
fn fill(updates: &mut [Update<'_>], from: &[UpdateRef], count: usize) {
    for (update, from) in updates.iter_mut().zip(from) {
        *update = Update {
            values: if from.address == 0 { NONE } else { values(from.address, from.dtype, count) },
            weight: from.weight,
            num_samples: from.num_samples,
            staleness: from.staleness,
        };
    }
}

/// The updates of a call that takes a whole round.
fn gathered(from: &[UpdateRef], updates: u32, count: usize) -> Vec<Update<'static>> {
    assert!(updates as usize <= UPDATES_MAX);
    let none = Update { values: NONE, weight: 0.0, num_samples: 0.0, staleness: 0 };
    let mut list = alloc::vec![none; updates as usize];
    fill(&mut list, from, count);
    list
}

/// Combines.
pub fn combine<F>(function: &Slot<F>, combine: fn(&F, Combine<'_>) -> Result<(), String>) -> u64 {
    let call: CombineCall = call();
    let count = call.elements as usize;
    let updates = gathered(&call.update, call.updates, count);
    let done = combine(
        made(function),
        Combine {
            rule: abi::rule_from(call.rule).expect("known rule"),
            kind: abi::kind_from(call.kind).expect("known kind"),
            updates: &updates,
            previous: (call.previous != 0).then(|| values(call.previous, call.previous_dtype, count)),
            out: values_mut(call.out, call.out_dtype, count),
            seed: call.seed,
        },
    );
    answer(done)
}

/// How many numbers measure a round.
pub fn scalars<F: TwoPhase>(function: &Slot<F>, updates: u32) -> u32 {
    made(function).scalars(updates as usize) as u32
}

/// Measures.
pub fn measure<F: TwoPhase>(function: &Slot<F>) {
    let call: MeasureCall = call();
    let count = call.elements as usize;
    let updates = gathered(&call.update, call.updates, count);
    made(function).measure(Measure {
        rule: abi::rule_from(call.rule).expect("known rule"),
        kind: abi::kind_from(call.kind).expect("known kind"),
        elements: count,
        updates: &updates,
        previous: (call.previous != 0).then(|| values(call.previous, call.previous_dtype, count)),
        sums: slice_mut(call.sums, call.scalars as usize),
    });
}

/// Chooses.
pub fn choose<F: TwoPhase>(function: &Slot<F>) -> u64 {
    let call: ChooseCall = call();
    let updates = gathered(&call.update, call.updates, 0);
    answer(made(function).choose(Choose {
        updates: &updates,
        sums: slice(call.sums, call.lists as usize * call.scalars as usize),
        scalars: call.scalars as usize,
        weights: slice_mut(call.weights, updates.len()),
        seed: call.seed,
    }))
}

/// Makes a tensor of the model.
pub fn make<F: Whole>(function: &Slot<F>) -> u64 {
    let call: MakeCall = call();
    let count = call.tensors as usize;
    let (refs, rest) = <[TensorRef]>::ref_from_prefix_with_elems(written(), count).expect("a table of tensors");
    let (shapes, names) = <[u32]>::ref_from_prefix_with_elems(rest, call.dimensions as usize).expect("shapes");
    let names = core::str::from_utf8(names).expect("names in UTF-8");
    let tensor = |from: &TensorRef| Tensor {
        name: &names[from.name as usize..][..from.name_len as usize],
        shape: &shapes[from.shape as usize..][..from.rank as usize],
        values: values(from.address, from.dtype, from.elements as usize),
    };
    let (previous, refs) = refs.split_last().expect("the model's tensor");
    let bag = |from: &UpdateRef| Bag {
        tensors: Vec::new(),
        weight: from.weight,
        num_samples: from.num_samples,
        staleness: from.staleness,
    };
    let mut updates: Vec<Bag<'_>> = call.update[..call.updates as usize].iter().map(bag).collect();
    for from in refs {
        updates[from.update as usize].tensors.push(tensor(from));
    }
    answer(made(function).make(Make {
        previous: tensor(previous),
        out: values_mut(call.out, call.out_dtype, previous.elements as usize),
        updates: &updates,
        total_weight: call.total_weight,
        seed: call.seed,
    }))
}

/// No numbers.
const NONE: Values<'static> = Values::F64(&[]);

fn made<A>(function: &Slot<A>) -> &A {
    function.get().expect("the host initialises a function before it calls it")
}

/// The record in the argument buffer.
fn call<T: FromBytes>() -> T {
    assert!(size_of::<T>() <= ARGS_BYTES && align_of::<T>() <= align_of::<Args>());
    // SAFETY: the buffer is large enough, aligned, initialised, and nobody writes to it during a call; `T: FromBytes`
    // makes every content a valid `T`.
    unsafe { ARGS.0.get().cast::<T>().read() }
}

/// How the partials of tensors with this rule are rounded: a maximum never is.
fn exact(rule: Rule) -> Option<Exact> {
    EXACT.get().copied().filter(|_| rule == Rule::Mean)
}

/// The numbers of a partial.
fn partial<'a>(rule: Rule, address: u32, count: usize) -> Partial<'a> {
    match exact(rule) {
        None => Partial::F64(slice(address, count)),
        Some(exact) => Partial::Fixed(slice(address, count), exact),
    }
}

/// The numbers of a partial that is written.
fn partial_mut<'a>(rule: Rule, address: u32, count: usize) -> PartialMut<'a> {
    match exact(rule) {
        None => PartialMut::F64(slice_mut(address, count)),
        Some(exact) => PartialMut::Fixed(slice_mut(address, count), exact),
    }
}

/// Numbers of a window.
fn slice<'a, T: FromBytes>(address: u32, count: usize) -> &'a [T] {
    if count == 0 {
        return &[];
    }
    assert!(address as usize % align_of::<T>() == 0 && count <= isize::MAX as usize / size_of::<T>());
    // SAFETY: the host has mapped `count` numbers at `address` for the time of this call, nobody writes to them
    // meanwhile, `T: FromBytes` makes every content valid, and the lifetime ends with the call that the slice is for:
    // no method of a function can keep it.
    unsafe { core::slice::from_raw_parts(address as *const T, count) }
}

/// Writable numbers of a window.
fn slice_mut<'a, T: FromBytes>(address: u32, count: usize) -> &'a mut [T] {
    if count == 0 {
        return &mut [];
    }
    assert!(address as usize % align_of::<T>() == 0 && count <= isize::MAX as usize / size_of::<T>());
    // SAFETY: as in `slice`, and the host maps a writable window apart from every other window of the call.
    unsafe { core::slice::from_raw_parts_mut(address as *mut T, count) }
}

macro_rules! by_dtype {
    ($what:ident, $slice:ident, $address:expr, $dtype:expr, $count:expr; $($variant:ident)*) => {
        match Dtype::from_code($dtype).expect("known dtype") {
            $(Dtype::$variant => $what::$variant($slice($address, $count)),)*
        }
    };
}

fn values<'a>(address: u32, dtype: u32, count: usize) -> Values<'a> {
    by_dtype!(Values, slice, address, dtype, count;
        F64 F32 Bf16 F16 F8E4M3 F8E5M2 I64 I32 I16 I8 U64 U32 U16 U8 Bool)
}

fn values_mut<'a>(address: u32, dtype: u32, count: usize) -> ValuesMut<'a> {
    by_dtype!(ValuesMut, slice_mut, address, dtype, count;
        F64 F32 Bf16 F16 F8E4M3 F8E5M2 I64 I32 I16 I8 U64 U32 U16 U8 Bool)
}

/// Text of limited length, on the stack: a panic may be about memory.
struct Message {
    bytes: [u8; 1024],
    len: usize,
}

impl Write for Message {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        let room = &mut self.bytes[self.len..];
        let taken = s.len().min(room.len());
        room[..taken].copy_from_slice(&s.as_bytes()[..taken]);
        self.len += taken;
        Ok(())
    }
}

#[panic_handler]
fn on_panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut message = Message { bytes: [0; 1024], len: 0 };
    let _ = write!(message, "{info}");
    // SAFETY: the import takes the address and length of bytes that live until it returns, which it never does.
    unsafe { panic(message.bytes.as_ptr(), message.len) }
}
