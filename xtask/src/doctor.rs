//! `xtask doctor`: what this machine can build, and with what.

use crate::toolchain::Toolchain;
use anyhow::Result;

/// Prints each candidate and the choice.
pub fn run() -> Result<()> {
    println!("Functions (wasm32):");
    for (name, ask) in Toolchain::CANDIDATES {
        match ask() {
            Ok(_) => println!("  yes  {name}"),
            Err(reason) => println!("  no   {name}: {reason}"),
        }
    }
    println!("  taken: {}", Toolchain::find()?.describe());
    crate::ebpf::doctor();
    Ok(())
}
