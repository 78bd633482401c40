//! How many threads the arithmetic takes.
//!
//! The matrices here are so small that a second thread costs more than it brings, and ten workers on one machine with
//! a pool each spend their time in one another's way: a CNN that trains in 6 s on one thread takes 44 s so. Candle
//! asks the environment (`RAYON_NUM_THREADS`) before every matrix product and, when it is silent, reads
//! `/proc/cpuinfo` each time, which takes longer than the product. A thread pool of our own would not stop that, and
//! a running process cannot change its environment safely, so the process starts itself again with the variable set.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Has this process compute on `threads` threads. Returns only if it already does, or with the error that kept it
/// from starting itself again; else the same program runs on, from its beginning, under the same process id and
/// with the same arguments. Call it before anything that must not happen twice.
pub fn limit(threads: u16) -> io::Result<()> {
    let wanted = threads.max(1).to_string();
    if std::env::var(VARIABLE).is_ok_and(|set| set == wanted) {
        return Ok(());
    }
    Err(Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(VARIABLE, wanted).exec())
}
