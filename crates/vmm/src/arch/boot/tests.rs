use super::*;
use crate::config::Backing;
use crate::layout::{HIGH_RAM_START, LOW_RAM_END};
use crate::memory::{create_guest_memory_for, memory_ranges};

fn memory(bytes: u64) -> GuestMemoryMmap {
    create_guest_memory_for(&memory_ranges(bytes), Backing::Anonymous, false).unwrap()
}

fn with(kernel: Kernel) -> MachineConfig {
    MachineConfig {
        kernel: Some(kernel),
        ..MachineConfig::default()
    }
}

#[test]
fn the_memory_map_is_ordered_without_overlap_and_tells_all_memory_but_the_legacy_area() {
    for bytes in [2 << 20, 1 << 30, (3 << 30) + (64 << 20)] {
        let map = memory_map::entries(&memory(bytes));
        assert!(map.windows(2).all(|pair| pair[0].end <= pair[1].start), "{map:?}");
        let ram: u64 = map
            .iter()
            .filter(|entry| entry.kind == memory_map::RAM)
            .map(|entry| entry.end - entry.start)
            .sum();
        assert_eq!(ram, bytes - (HIGH_RAM_START.0 - LOW_RAM_END));
    }
}

#[test]
fn files_that_are_no_bootable_kernel_are_refused() {
    let memory = memory(2 << 20);
    let cases: [&[u8]; 3] = [b"", b"\x7fELF", &[0; 4096]];
    for image in cases {
        let result = load(&memory, &with(Kernel::Image(image.to_vec())));
        assert!(matches!(result, Err(Error::Kernel { .. })), "{result:?}");
    }
    let result = load(&memory, &with(Kernel::File("/nonexistent/kernel".into())));
    assert!(matches!(result, Err(Error::OpenKernel { .. })), "{result:?}");
}

/// Offsets of a bzImage's header in the file (Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// Offsets of other boot parameters.
const RSDP: u64 = 0x70;
const E820_ENTRIES: u64 = 0x1e8;
const E820_TABLE: u64 = 0x2d0;

/// A bzImage of a few pages that unpacks itself from 16 MiB to 24 MiB.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[SETUP_SECTS] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    set(&mut image, VERSION, &0x020fu16.to_le_bytes());
    set(&mut image, LOADFLAGS, &[1]);
    set(&mut image, CODE32_START, &0x10_0000u32.to_le_bytes());
    set(&mut image, INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    set(&mut image, XLOADFLAGS, &[1, 0]);
    set(&mut image, CMDLINE_SIZE, &2047u32.to_le_bytes());
    set(&mut image, PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
    set(&mut image, INIT_SIZE, &0x80_0000u32.to_le_bytes());
    image.extend([0xcc; 3 * 4096]);
    image
}

fn set(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn initrd(len: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![0x5a; len]).unwrap();
    file
}

fn load_with(
    memory: &GuestMemoryMmap,
    image: Vec<u8>,
    initrd: Option<&tempfile::NamedTempFile>,
) -> Result<Entry> {
    let config = MachineConfig {
        initrd: initrd.map(|file| file.path().to_owned()),
        cmdline: "quiet".into(),
        ..with(Kernel::Image(image))
    };
    load(memory, &config)
}

fn read<T: vm_memory::ByteValued>(memory: &GuestMemoryMmap, address: u64) -> T {
    memory.read_obj(GuestAddress(address)).unwrap()
}

#[test]
fn a_bzimage_is_entered_in_its_64_bit_entry_with_boot_parameters() {
    let memory = memory(64 << 20);
    let entry = load_with(&memory, bzimage(), Some(&initrd(5000))).unwrap();
    assert_eq!(entry, Entry::Linux(GuestAddress(0x10_0200)));
    assert_eq!(read::<u32>(&memory, 0x10_0200), 0xcccc_cccc);

    let parameters = linux::PARAMETERS_IN_RSI;
    let field = |offset: usize| read::<u32>(&memory, parameters + offset as u64);
    assert_eq!(field(0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(read::<u64>(&memory, parameters + RSDP), 0xe_0000);
    assert_eq!(read::<[u8; 6]>(&memory, field(CMD_LINE_PTR).into()), *b"quiet\0");
    let (address, len) = (field(RAMDISK_IMAGE), field(RAMDISK_IMAGE + 4));
    assert_eq!((address, len), ((64 << 20) - 8192, 5000), "at the end of memory");
    assert_eq!(read::<u8>(&memory, u64::from(address) + 4999), 0x5a);

    let count = read::<u8>(&memory, parameters + E820_ENTRIES);
    let table: Vec<[u8; 20]> = (0..u64::from(count))
        .map(|index| read(&memory, parameters + E820_TABLE + index * 20))
        .collect();
    let map = memory_map::entries(&memory);
    assert_eq!(table.len(), map.len());
    for (bytes, entry) in table.iter().zip(map) {
        assert_eq!(bytes[..8], entry.start.to_le_bytes());
        assert_eq!(bytes[8..16], (entry.end - entry.start).to_le_bytes());
        assert_eq!(bytes[16..], entry.kind.to_le_bytes());
    }
}

#[test]
fn the_64_bit_entry_finds_the_low_four_gib_mapped_to_themselves() {
    let memory = memory(64 << 20);
    load_with(&memory, bzimage(), None).unwrap();
    let sregs = linux::entry_sregs(&crate::state::Sregs::default());
    let translate = |address: u64| {
        let index = |shift: u32| (address >> shift & 0x1ff) * 8;
        let pointers = read::<u64>(&memory, sregs.cr3 + index(39));
        let directory = read::<u64>(&memory, (pointers & !0xfff) + index(30));
        let page = read::<u64>(&memory, (directory & !0xfff) + index(21));
        assert_eq!(page & 0x83, 0x83, "a large page, present and writable");
        (page & !0x1f_ffff) + (address & 0x1f_ffff)
    };
    for address in [0, 0x10_0200, 0x7000, (3 << 30) + 5, (4 << 30) - 1] {
        assert_eq!(translate(address), address);
    }
    let code = read::<u64>(&memory, sregs.gdt.base + u64::from(sregs.cs.selector));
    assert_eq!(
        code >> 53 & 1,
        1,
        "the descriptor is of 64-bit code, as the register is"
    );
    assert_eq!(sregs.cs.l, 1);
}

#[test]
fn bzimages_that_cannot_be_started_are_refused_with_the_reason() {
    let refusals: [(&str, usize, &[u8]); 5] = [
        ("64-bit entry", VERSION, &0x020bu16.to_le_bytes()),
        ("64-bit entry", XLOADFLAGS, &[0, 0]),
        ("bzImage", LOADFLAGS, &[0]),
        ("command line of at most 3", CMDLINE_SIZE, &3u32.to_le_bytes()),
        ("unpack itself", INIT_SIZE, &0x400_0000u32.to_le_bytes()),
    ];
    let memory = memory(64 << 20);
    for (reason, offset, bytes) in refusals {
        let mut image = bzimage();
        set(&mut image, offset, bytes);
        let error = load_with(&memory, image, None).unwrap_err();
        assert!(matches!(error, Error::Kernel { .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
    for cut in [0x203, 0x250, 1024] {
        let mut image = bzimage();
        image.truncate(cut);
        let result = load_with(&memory, image, None);
        assert!(
            cut == 1024 || matches!(result, Err(Error::Kernel { .. })),
            "{cut}: {result:?}"
        );
    }
}

#[test]
fn an_initrd_lies_where_the_kernel_takes_it_or_nowhere() {
    let memory = memory(64 << 20);
    let mut low = bzimage();
    set(&mut low, INITRD_ADDR_MAX, &0x1ff_ffffu32.to_le_bytes());
    load_with(&memory, low.clone(), Some(&initrd(4096))).unwrap();
    let address = read::<u32>(&memory, linux::PARAMETERS_IN_RSI + RAMDISK_IMAGE as u64);
    assert_eq!(address, 0x1ff_f000);

    let too_large = initrd(9 << 20);
    let error = load_with(&memory, low, Some(&too_large)).unwrap_err();
    assert!(matches!(error, Error::Initrd { .. }), "{error:?}");
    load_with(&memory, bzimage(), Some(&too_large)).unwrap();

    let config = MachineConfig {
        initrd: Some("/nonexistent/initrd".into()),
        ..with(Kernel::Image(bzimage()))
    };
    let error = load(&memory, &config).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/initrd"), "{error}");
}

#[test]
fn the_built_in_guest_takes_no_initrd() {
    let config = MachineConfig {
        initrd: Some("/dev/null".into()),
        ..with(Kernel::Builtin(crate::builtin::BuiltinOptions::default()))
    };
    let result = load(&memory(64 << 20), &config);
    assert!(
        matches!(result, Err(Error::InvalidConfig { field: "initrd", .. })),
        "{result:?}"
    );
}
