//! Physical memory as the model's processors see it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vlapic_hal::{PhysAddr, Translate};

/// Physical memory: a map from physical addresses to words that a driver under test also holds.
///
/// An access to an address nobody registered reads as ones, writes nothing, and is counted in
/// [`stray_accesses`](Memory::stray_accesses): a test that ends with a count above zero programmed a wrong address.
#[derive(Debug, Default)]
pub struct Memory<'m> {
    regions: RwLock<BTreeMap<u64, Region<'m>>>,
    stray: AtomicU64,
}

impl<'m> Memory<'m> {
    /// Memory with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Places 32-bit words at a physical address; for a virtual-APIC page these are its 1024 words.
    ///
    /// Replaces what was registered at the same address. The address must be 4-byte aligned.
    pub fn add_dwords(&self, address: u64, words: &'m [AtomicU32]) {
        assert_eq!(address % 4, 0, "32-bit words need an aligned address");
        self.write_regions().insert(address, Region::Dwords(words));
    }

    /// Places 64-bit words at a physical address: a posted-interrupt descriptor (8 words), or a PID-pointer table.
    ///
    /// The words must follow each other in host memory, as those of one object do. Replaces what was registered at the
    /// same address, which must be 8-byte aligned.
    pub fn add_qwords(&self, address: u64, words: impl IntoIterator<Item = &'m AtomicU64>) {
        assert_eq!(address % 8, 0, "64-bit words need an aligned address");
        let words: Vec<_> = words.into_iter().collect();
        let follows = |pair: &[&AtomicU64]| pair[0].as_ptr().wrapping_add(1) == pair[1].as_ptr();
        assert!(words.windows(2).all(follows), "the words of one object follow each other");
        self.write_regions().insert(address, Region::Qwords(words));
    }

    /// Places a copy of some bytes at a physical address, as is enough for an MSR bitmap.
    ///
    /// Later changes of the original are not seen; call again to replace the copy. The length must be a multiple of 4.
    pub fn add_bytes(&self, address: u64, bytes: &[u8]) {
        assert_eq!((address % 4, bytes.len() % 4), (0, 0), "bytes are kept as 32-bit words");
        let words = bytes
            .chunks_exact(4)
            .map(|b| AtomicU32::new(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        self.write_regions().insert(address, Region::Owned(words.collect()));
    }

    /// Takes away what was registered at an address.
    pub fn remove(&self, address: u64) {
        self.write_regions().remove(&address);
    }

    /// How many accesses met no memory.
    pub fn stray_accesses(&self) -> u64 {
        self.stray.load(SeqCst)
    }

    /// Reads an aligned 32-bit word.
    pub fn load32(&self, address: u64) -> u32 {
        self.with(address, 4, |word| match word {
            Word::Dword(words) => words[0].load(SeqCst),
            Word::Qword(word, shift) => (word.load(SeqCst) >> shift) as u32,
        })
        .unwrap_or(u32::MAX)
    }

    /// Writes an aligned 32-bit word.
    pub fn store32(&self, address: u64, value: u32) {
        self.update32(address, |_| value);
    }

    /// Changes an aligned 32-bit word in one atomic step and returns what it held.
    pub fn update32(&self, address: u64, mut change: impl FnMut(u32) -> u32) -> Option<u32> {
        self.with(address, 4, |word| match word {
            Word::Dword(words) => words[0]
                .fetch_update(SeqCst, SeqCst, |old| Some(change(old)))
                .unwrap_or_else(|old| old),
            Word::Qword(word, shift) => {
                let replace = |old: u64| {
                    let new = u64::from(change((old >> shift) as u32));
                    Some(old & !(0xffff_ffff << shift) | new << shift)
                };
                (word.fetch_update(SeqCst, SeqCst, replace).unwrap_or_else(|old| old) >> shift)
                    as u32
            }
        })
    }

    /// Reads an aligned 64-bit word; on 32-bit words this is two loads, low half first.
    pub fn load64(&self, address: u64) -> u64 {
        self.with(address, 8, |word| match word {
            Word::Dword(words) => {
                u64::from(words[0].load(SeqCst)) | u64::from(words[1].load(SeqCst)) << 32
            }
            Word::Qword(word, _) => word.load(SeqCst),
        })
        .unwrap_or(u64::MAX)
    }

    /// Changes an aligned 64-bit word in one locked step and returns what it held.
    ///
    /// Only 64-bit words can be changed so; anything else counts as a stray access and gives `None`.
    pub fn update64(&self, address: u64, mut change: impl FnMut(u64) -> u64) -> Option<u64> {
        let old = self.with(address, 8, |word| match word {
            Word::Dword(_) => None,
            Word::Qword(word, _) => Some(
                word.fetch_update(SeqCst, SeqCst, |old| Some(change(old)))
                    .unwrap_or_else(|old| old),
            ),
        })?;
        if old.is_none() {
            self.stray.fetch_add(1, SeqCst);
        }
        old
    }

    /// Finds the words that hold `size` bytes at `address` and hands them to `access`; counts a stray access if none.
    fn with<R>(&self, address: u64, size: u64, access: impl FnOnce(Word<'_>) -> R) -> Option<R> {
        let regions = self.read_regions();
        let found = regions.range(..=address).next_back().and_then(|(start, region)| {
            let offset = address - start;
            let end = offset.checked_add(size)?;
            (end <= region.bytes() && address.is_multiple_of(size))
                .then(|| region.word(offset, size))
        });
        if found.is_none() {
            self.stray.fetch_add(1, SeqCst);
        }
        found.map(access)
    }

    fn read_regions(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Region<'m>>> {
        self.regions.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_regions(&self) -> RwLockWriteGuard<'_, BTreeMap<u64, Region<'m>>> {
        self.regions.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A driver that asks for the physical address of its page gets the address it was registered at.
impl Translate for Memory<'_> {
    fn physical_address<T: ?Sized>(&self, object: &T) -> Option<PhysAddr> {
        let wanted = std::ptr::from_ref(object).cast::<u8>() as usize;
        self.read_regions().iter().find_map(|(start, region)| {
            let offset = wanted.checked_sub(region.host_address())? as u64;
            (offset < region.bytes()).then(|| PhysAddr::new(start + offset))
        })
    }
}

#[derive(Debug)]
enum Region<'m> {
    Dwords(&'m [AtomicU32]),
    Qwords(Vec<&'m AtomicU64>),
    Owned(Vec<AtomicU32>),
}

/// The words under one access: a pair of 32-bit words (the second only if the access has 8 bytes), or a 64-bit word
/// and the shift of the half that is meant.
enum Word<'r> {
    Dword(&'r [AtomicU32]),
    Qword(&'r AtomicU64, u32),
}

impl Region<'_> {
    fn bytes(&self) -> u64 {
        let bytes = match self {
            Region::Dwords(words) => size_of_val(*words),
            Region::Qwords(words) => words.len() * 8,
            Region::Owned(words) => size_of_val(words.as_slice()),
        };
        bytes as u64
    }

    fn host_address(&self) -> usize {
        match self {
            Region::Dwords(words) => words.as_ptr() as usize,
            Region::Qwords(words) => words.first().map_or(0, |word| word.as_ptr() as usize),
            Region::Owned(words) => words.as_ptr() as usize,
        }
    }

    /// The caller has checked that `size` bytes at `offset` lie inside.
    fn word(&self, offset: u64, size: u64) -> Word<'_> {
        let first = (offset / 4) as usize;
        let last = first + (size / 4) as usize;
        match self {
            Region::Dwords(words) => Word::Dword(&words[first..last]),
            Region::Owned(words) => Word::Dword(&words[first..last]),
            Region::Qwords(words) => {
                Word::Qword(words[first / 2], if first.is_multiple_of(2) { 0 } else { 32 })
            }
        }
    }
}
