//! Loads and attaches the routing program, or takes over what is pinned.

use super::maps::Maps;
use super::object::Objects;
use super::pin::{Pins, Refused};
use crate::capabilities;
use crate::open::{Lack, Missing};
use aya::maps::MapError;
use aya::programs::SkMsg;
use aya::{Ebpf, EbpfLoader};
use rustix::thread::CapabilitySet;
use std::path::Path;

/// What keeps the program in place: dropping it takes the program out, unless it is pinned.
pub(crate) struct Routing {
    _program: Option<Ebpf>,
    _pins: Option<Pins>,
}

impl Routing {
    /// Loads the program, or takes over what another process of the same version left under `pin`, unless it has to be
    /// `fresh`.
    pub(crate) fn open(objects: &Objects, pin: Option<&Path>, fresh: bool) -> Result<(Self, Maps), Lack> {
        let object = objects.find("route").map_err(Lack::of(Missing::Programs))?;
        let pins = match pin.map(|directory| Pins::open(directory, &object)) {
            None => None,
            Some(Ok(pins)) => Some(pins),
            Some(Err(Refused::Busy)) => {
                tracing::warn!(?pin, "another process holds these pins; this one keeps its kernel program to itself");
                None
            }
            Some(Err(Refused::Unusable(reason))) => return Err(Lack::new(Missing::Pins, reason)),
        };
        if let Some(pins) = pins.as_ref().filter(|_| fresh) {
            pins.discard("it does not route");
        } else if let Some(found) = pins.as_ref().and_then(Pins::adopt) {
            tracing::info!(?pin, "took over pinned routing");
            return Ok((Self { _program: None, _pins: pins }, found));
        }
        for (capability, missing) in
            [(CapabilitySet::BPF, Missing::CapBpf), (CapabilitySet::NET_ADMIN, Missing::CapNetAdmin)]
        {
            if !capabilities::has(capability) {
                let text = "start with CAP_BPF and CAP_NET_ADMIN, or give this user pinned routing";
                return Err(Lack::new(missing, text));
            }
        }
        load(&object, pins)
    }
}

fn load(object: &[u8], pins: Option<Pins>) -> Result<(Routing, Maps), Lack> {
    let mut program = EbpfLoader::new().btf(None).load(object).map_err(Lack::of(Missing::Kernel))?;
    let maps = Maps::new(|name| {
        let missing = || MapError::InvalidName { name: name.to_string() };
        let map = program.take_map(name).ok_or_else(missing)?;
        if let Some(pins) = &pins {
            pins.add(&map, name)?;
        }
        Ok(map)
    });
    let maps = maps.map_err(Lack::of(Missing::Kernel))?;
    let route = program.program_mut("route").ok_or_else(|| Lack::new(Missing::Programs, "it has no `route`"))?;
    let route: &mut SkMsg = route.try_into().map_err(Lack::of(Missing::Programs))?;
    route.load().map_err(Lack::of(Missing::Kernel))?;
    let link = route.attach(maps.uplink().fd()).map_err(Lack::of(Missing::Kernel))?;
    if let Some(pins) = &pins {
        // Dropping the link would take the program off the map that is to outlive us. Its two descriptors stay open.
        std::mem::forget(route.take_link(link).map_err(Lack::of(Missing::Kernel))?);
        pins.complete().map_err(Lack::of(Missing::Pins))?;
    }
    Ok((Routing { _program: Some(program), _pins: pins }, maps))
}
