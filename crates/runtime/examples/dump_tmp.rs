fn main() {
    let mut c = wasmtime::Config::new();
    c.memory_reservation(4 << 30).memory_guard_size(32 << 20).memory_may_move(false).signals_based_traps(true).epoch_interruption(true).cranelift_opt_level(wasmtime::OptLevel::Speed);
    let e = wasmtime::Engine::new(&c).unwrap();
    let m = wasmtime::Module::from_file(&e, std::env::args().nth(1).unwrap()).unwrap();
    std::fs::write("/tmp/text.bin", m.text()).unwrap();
    for f in m.functions() { println!("{:x} {:x} {}", f.offset, f.len, f.name.unwrap_or_default()); }
}
