//! Proves at start that windows work: that this engine, on this kernel and processor, lets a guest load from a
//! read-only page mapped above its memory, and turns every other access there into a trap.
//!
//! All of that rests on how the engine happens to compile 32-bit memories. If a new version, another architecture or
//! an exotic kernel does otherwise, it shows here and not as a wrong model or a dead process. It costs about a
//! millisecond.

use crate::Limits;
use crate::engine::Runtime;
use crate::host::{Host, arm};
use crate::place::{Area, GUEST_BYTES, Place};
use crate::sandbox::{Access, Mapping, Sandbox, memory_file};
use std::os::fd::AsFd;
use wasmtime::{AsContextMut, Module, TypedFunc};

/// ```wat
/// (module
///   (memory (export "memory") 1)
///   (func (export "load") (param i32) (result i32) local.get 0 i32.load)
///   (func (export "store") (param i32) local.get 0 i32.const 7 i32.store))
/// ```
const MODULE: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x0a\x02\x60\x01\x7f\x01\x7f\x60\x01\x7f\0\
    \x03\x03\x02\0\x01\
    \x05\x03\x01\0\x01\
    \x07\x19\x03\x06memory\x02\0\x04load\0\0\x05store\0\x01\
    \x0a\x13\x02\x07\0\x20\0\x28\x02\0\x0b\x09\0\x20\0\x41\x07\x36\x02\0\x0b";

/// Runs the probe; the error says what did not hold.
pub fn run(runtime: &Runtime) -> Result<(), String> {
    let text = |what: &'static str| move |e: wasmtime::Error| format!("{what}: {e:#}");
    let module = Module::from_binary(runtime.engine(), MODULE).map_err(text("compile"))?;
    let mut store = Host::new(Limits::default(), 10).store(runtime.engine());
    arm(&mut store.as_context_mut());
    let instance = wasmtime::Instance::new(&mut store, &module, &[]).map_err(text("instantiate"))?;
    let memory = instance.get_memory(&mut store, "memory").ok_or("no memory")?;
    let load: TypedFunc<u32, u32> = instance.get_typed_func(&mut store, "load").map_err(text("load"))?;
    let write: TypedFunc<u32, ()> = instance.get_typed_func(&mut store, "store").map_err(text("store"))?;
    let mut sandbox = Sandbox::new(store, memory, runtime.heap_cap_bytes()).map_err(|e| e.to_string())?;
    let area = sandbox.area();
    check_reserved(area)?;

    let page = area.page;
    let content = [0xa5; 1 << 16];
    let file = memory_file(&content[..page as usize]).map_err(|e| format!("make a file in memory: {e}"))?;
    let before = memory_file(&content[..page as usize]).map_err(|e| format!("make a file in memory: {e}"))?;
    let at = |address: u64, file, access| {
        let place = Place { address, len: page, offset: 0, guest: (address - area.base) as u32 };
        Mapping { fd: AsFd::as_fd(file), place, access, what: "probe".to_string() }
    };
    // The two ends of the area: read-only at its start, writable at its end.
    let mappings = [at(area.low, &file, Access::Read), at(area.high - page, &before, Access::ReadWrite)];
    let [low, high] = [mappings[0].place.guest, mappings[1].place.guest];
    let value = 0xa5a5_a5a5;
    let outcome = sandbox.with_windows(&mappings, |mut store| {
        let expect = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_string()) };
        expect(matches!(load.call(&mut store, low), Ok(v) if v == value), "a read-only window cannot be read")?;
        expect(matches!(load.call(&mut store, high), Ok(v) if v == value), "a window below 4 GiB cannot be read")?;
        expect(write.call(&mut store, low).is_err(), "a store to a read-only window does not trap")?;
        expect(write.call(&mut store, high).is_ok(), "a store to a writable window traps")?;
        expect(load.call(&mut store, low + page as u32).is_err(), "a load between windows does not trap")
    });
    outcome.map_err(|e| e.to_string())??;
    let gone = sandbox.enter(|mut store| load.call(&mut store, low).is_err() && load.call(&mut store, high).is_err());
    if gone { Ok(()) } else { Err("a window outlives its call".to_string()) }
}

/// The whole area is one reservation, inaccessible and anonymous: mapping into it hurts nobody.
fn check_reserved(area: Area) -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|e| format!("read /proc/self/maps: {e}"))?;
    let (mut covered, end_needed) = (area.low, area.base + GUEST_BYTES);
    for line in maps.lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) else { continue };
        if start <= covered && covered < end && covered < end_needed {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            if !(rest.starts_with("---p") && fields.get(3) == Some(&"0")) {
                return Err(format!("{covered:#x} is not reserved: {line}"));
            }
            covered = end;
        }
    }
    if covered >= end_needed {
        Ok(())
    } else {
        Err(format!("the reservation ends at {covered:#x}, before {end_needed:#x}"))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_module_is_what_its_comment_says() {
        let text = r#"(module
            (memory (export "memory") 1)
            (func (export "load") (param i32) (result i32) local.get 0 i32.load)
            (func (export "store") (param i32) local.get 0 i32.const 7 i32.store))"#;
        assert_eq!(super::MODULE, wat::parse_str(text).unwrap());
    }
}
