//! CPU time and run-queue delay of runners, as the kernel's scheduler saw them.

use super::btf::Btf;
use super::maps::failed;
use super::object::Objects;
use super::shared::{FILTER_WORDS, METERED_MAX, Machine, Slice, Time};
use crate::capabilities;
use crate::link::{CpuTime, LinkError};
use crate::open::{Lack, Missing};
use aya::maps::{Array, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::programs::BtfTracePoint;
use aya::{Btf as Description, Ebpf, EbpfLoader};
use rustix::thread::CapabilitySet;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

// SAFETY: plain integers without padding, valid for any bits; the kernel program has the same definition.
unsafe impl aya::Pod for Machine {}
// SAFETY: as above.
unsafe impl aya::Pod for Slice {}
// SAFETY: as above.
unsafe impl aya::Pod for Time {}

/// `PROC_PID_INIT_INO`: the inode of the machine's own pid namespace.
const MACHINES_NAMESPACE: u64 = 0xefff_fffc;

/// The metering program, attached.
pub(crate) struct Meter {
    maps: Mutex<Maps>,
    _program: Ebpf,
}

struct Maps {
    times: PerCpuHashMap<MapData, u32, Time>,
    slices: PerCpuArray<MapData, Slice>,
    filter: Array<MapData, [u64; FILTER_WORDS]>,
    /// Whether processes have other numbers here than in the kernel.
    foreign: bool,
    said: HashMap<u32, Said>,
}

/// What was said of a process.
#[derive(Default)]
struct Said {
    /// Its number in the kernel, once that is known.
    process: Option<u32>,
    /// What it was last said to have used, so that no reading goes back.
    last: CpuTime,
}

impl Meter {
    /// Loads and attaches the program.
    pub(crate) fn open(objects: &Objects) -> Result<Self, Lack> {
        let object = objects.find("meter").map_err(Lack::of(Missing::Programs))?;
        for (capability, missing) in
            [(CapabilitySet::BPF, Missing::CapBpf), (CapabilitySet::PERFMON, Missing::CapPerfmon)]
        {
            if !capabilities::has(capability) {
                return Err(Lack::new(missing, "start with CAP_BPF and CAP_PERFMON"));
            }
        }
        let machine = machine().map_err(Lack::of(Missing::Kernel))?;
        let mut loader = EbpfLoader::new();
        let loaded = loader.btf(None).override_global("MACHINE", &machine, true).load(&object);
        let mut program = loaded.map_err(Lack::of(Missing::Kernel))?;
        let mut take = |name| program.take_map(name).ok_or_else(|| Lack::new(Missing::Programs, "it lacks a map"));
        let times = take("TIMES")?.try_into().map_err(Lack::of(Missing::Kernel))?;
        let slices = take("SLICES")?.try_into().map_err(Lack::of(Missing::Kernel))?;
        let filter = take("FILTER")?.try_into().map_err(Lack::of(Missing::Kernel))?;
        let maps = Maps { times, slices, filter, foreign: machine.namespace_inode != 0, said: HashMap::new() };
        let switched =
            program.program_mut("switched").ok_or_else(|| Lack::new(Missing::Programs, "it lacks `switched`"))?;
        let switched: &mut BtfTracePoint = switched.try_into().map_err(Lack::of(Missing::Programs))?;
        let description = Description::from_sys_fs().map_err(Lack::of(Missing::Kernel))?;
        switched.load("sched_switch", &description).map_err(Lack::of(Missing::Kernel))?;
        switched.attach().map_err(Lack::of(Missing::Kernel))?;
        Ok(Self { maps: Mutex::new(maps), _program: program })
    }

    /// Counts from now on what all threads of this process do.
    pub(super) fn watch(&self, pid: u32) -> Result<(), LinkError> {
        let mut maps = self.maps();
        if maps.said.len() >= METERED_MAX as usize && !maps.said.contains_key(&pid) {
            return Err(LinkError::Room(format!("{METERED_MAX} metered processes")));
        }
        let zeros = maps.zeros().map_err(failed("meter a process"))?;
        maps.times.insert(pid, zeros, 0).map_err(failed("meter a process"))?;
        let process = (!maps.foreign).then_some(pid);
        maps.said.insert(pid, Said { process, last: CpuTime::default() });
        maps.refilter().map_err(failed("meter a process"))
    }

    /// What it did until now.
    pub(super) fn read(&self, pid: u32) -> Option<CpuTime> {
        self.maps().read(pid)
    }

    /// Counts no longer; returns what it did until now.
    pub(super) fn unwatch(&self, pid: u32) -> Option<CpuTime> {
        let mut maps = self.maps();
        let last = maps.read(pid)?;
        maps.said.remove(&pid);
        if let Err(error) = maps.times.remove(&pid).and_then(|()| maps.refilter()) {
            tracing::debug!(pid, %error, "stop metering a process");
        }
        Some(last)
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    fn zeros(&self) -> Result<PerCpuValues<Time>, aya::maps::MapError> {
        let cpus = self.slices.get(&0, 0)?.len();
        Ok(PerCpuValues::try_from(vec![Time::default(); cpus])?)
    }

    /// Lets through to the closer look only what is metered, or everything while a number is not known yet.
    fn refilter(&mut self) -> Result<(), aya::maps::MapError> {
        let mut filter = [0; FILTER_WORDS];
        for said in self.said.values() {
            match said.process {
                Some(process) => filter[process as usize / 64 % FILTER_WORDS] |= 1 << (process % 64),
                None => filter = [u64::MAX; FILTER_WORDS],
            }
        }
        self.filter.set(0, filter, 0)
    }

    fn read(&mut self, pid: u32) -> Option<CpuTime> {
        let (times, slices) = (self.times.get(&pid, 0).ok()?, self.slices.get(&0, 0).ok()?);
        let mut sum = CpuTime::default();
        for time in times.iter() {
            sum.on_cpu_ns += time.on_cpu_ns;
            sum.queued_ns += time.queued_ns;
        }
        let said = self.said.get_mut(&pid)?;
        let learned = said.process.is_none();
        let found = || times.iter().map(|time| time.process as u32).find(|process| *process != 0);
        said.process = said.process.or_else(found);
        let learned = learned && said.process.is_some();
        // A thread that has a CPU to itself may not be switched out for seconds: its slice so far counts, too.
        let now_ns = monotonic_ns();
        for slice in slices.iter().filter(|slice| slice.start_ns != 0 && Some(slice.process as u32) == said.process) {
            sum.on_cpu_ns += now_ns.saturating_sub(slice.start_ns);
        }
        sum.on_cpu_ns = sum.on_cpu_ns.max(said.last.on_cpu_ns);
        said.last = sum;
        if learned && let Err(error) = self.refilter() {
            tracing::debug!(pid, %error, "narrow the meter's filter");
        }
        Some(sum)
    }
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What the program has to know of this machine.
fn machine() -> Result<Machine, String> {
    const DESCRIPTION: &str = "/sys/kernel/btf/vmlinux";
    let bytes = std::fs::read(DESCRIPTION).map_err(|error| format!("{DESCRIPTION}: {error}"))?;
    let btf = Btf::parse(&bytes).ok_or_else(|| format!("{DESCRIPTION} cannot be read"))?;
    let at = |path: &[&str]| btf.offset("task_struct", path).ok_or_else(|| format!("a task has no {path:?}"));
    let namespace = std::fs::metadata("/proc/self/ns/pid").map_err(|error| format!("/proc/self/ns/pid: {error}"))?;
    let (device, inode) = match namespace.ino() {
        MACHINES_NAMESPACE => (0, 0),
        inode => (namespace.dev(), inode),
    };
    Ok(Machine {
        process_at: at(&["tgid"])?,
        queued_at: at(&["sched_info", "run_delay"])?,
        namespace_device: device,
        namespace_inode: inode,
    })
}
