use super::*;

fn leaf(function: u32, index: u32) -> CpuidLeaf {
    CpuidLeaf {
        function,
        index,
        ..CpuidLeaf::default()
    }
}

/// A host with every feature bit set and a large XSAVE area.
fn rich_host() -> Vec<CpuidLeaf> {
    let full = |function, index| CpuidLeaf {
        eax: u32::MAX,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
        ..leaf(function, index)
    };
    let avx = CpuidLeaf {
        eax: 256,
        ebx: 576,
        ..leaf(0xd, 2)
    };
    let wide = CpuidLeaf {
        eax: 8192,
        ebx: 2816,
        ..leaf(0xd, 18)
    };
    let limits = [
        CpuidLeaf {
            eax: 0x24,
            ..leaf(0, 0)
        },
        CpuidLeaf {
            eax: 0x8000_0026,
            ..leaf(0x8000_0000, 0)
        },
        CpuidLeaf {
            eax: 0x0000_3934,
            ..leaf(0x8000_0008, 0)
        },
    ];
    let words = [
        (1, 0),
        (6, 0),
        (7, 0),
        (7, 1),
        (7, 2),
        (0xd, 0),
        (0xd, 1),
        (0x14, 0),
        (0x1d, 0),
    ];
    let more = [
        (0x4000_0001, 0),
        (0x8000_0001, 0),
        (0x8000_0007, 0),
        (0x8000_0021, 0),
    ];
    let words = words
        .into_iter()
        .chain(more)
        .map(|(function, index)| full(function, index));
    limits.into_iter().chain([avx, wide]).chain(words).collect()
}

fn find(leaves: &[CpuidLeaf], function: u32, index: u32) -> CpuidLeaf {
    let found = leaves
        .iter()
        .find(|leaf| leaf.function == function && leaf.index == index);
    *found.unwrap_or_else(|| panic!("leaf {function:x}.{index}"))
}

fn has(leaves: &[CpuidLeaf], function: u32, index: u32) -> bool {
    leaves
        .iter()
        .any(|leaf| leaf.function == function && leaf.index == index)
}

#[test]
fn the_hosts_model_shows_everything_but_nested_virtualization() {
    let leaves = apply(CpuModel::Host, &rich_host()).unwrap();
    assert_eq!(find(&leaves, 1, 0).ecx, !(1 << 5));
    assert_eq!(find(&leaves, 0x8000_0001, 0).ecx, !(1 << 2));
    for leaf in rich_host()
        .iter()
        .filter(|leaf| ![1, 0x8000_0001].contains(&leaf.function))
    {
        assert!(leaves.contains(leaf), "{leaf:x?}");
    }
}

#[test]
fn a_baseline_shows_its_level_and_nothing_beyond() {
    let names = |model| features::names(&apply(model, &rich_host()).unwrap());
    let (second, third) = (names(CpuModel::X86_64V2), names(CpuModel::X86_64V3));
    let contains = |names: &[String], name: &str| names.iter().any(|known| known == name);
    for name in LEVEL_1.split(' ').chain(LEVEL_2.split(' ')) {
        assert!(contains(&second, name) && contains(&third, name), "{name}");
    }
    for name in LEVEL_3.split(' ') {
        assert!(!contains(&second, name) && contains(&third, name), "{name}");
    }
    for name in [
        "avx512f",
        "aes",
        "rdrand",
        "spec_ctrl",
        "xsaves",
        "pku",
        "constant_tsc",
        "svm",
        "kvm_asyncpf",
    ] {
        assert!(!contains(&third, name), "{name}");
    }
    assert!(contains(&second, "kvmclock") && contains(&second, "x2apic"));
    assert!(
        second.iter().all(|name| !name.starts_with("cpuid_")),
        "no bit without a name: {second:?}"
    );
}

#[test]
fn leaves_and_state_components_beyond_a_baseline_are_gone() {
    let third = apply(CpuModel::X86_64V3, &rich_host()).unwrap();
    let xsave = find(&third, 0xd, 0);
    assert_eq!((xsave.eax, xsave.ebx, xsave.ecx, xsave.edx), (7, 832, 832, 0));
    let more = find(&third, 0xd, 1);
    assert_eq!((more.eax, more.ebx, more.ecx, more.edx), (0, 0, 0, 0));
    assert!(has(&third, 0xd, 2) && !has(&third, 0xd, 18));
    assert_eq!(find(&third, 0, 0).eax, 0xd);
    assert_eq!(find(&third, 7, 0).eax, 0);
    assert_eq!(find(&third, 0x8000_0000, 0).eax, 0x8000_0008);
    assert_eq!(find(&third, 0x8000_0008, 0).eax, 48 << 8 | 46);
    for (function, index) in [(7, 1), (7, 2), (0x14, 0), (0x1d, 0), (0x8000_0021, 0)] {
        assert!(!has(&third, function, index), "{function:x}.{index}");
    }

    let second = apply(CpuModel::X86_64V2, &rich_host()).unwrap();
    assert_eq!(find(&second, 0, 0).eax, 0xb);
    assert!(!has(&second, 0xd, 0));
}

#[test]
fn two_hosts_that_meet_a_baseline_show_the_same_features() {
    let mut poor = apply(CpuModel::X86_64V3, &rich_host()).unwrap();
    poor.retain(|leaf| leaf.function != 6);
    for model in [CpuModel::X86_64V2, CpuModel::X86_64V3] {
        let (rich, poor) = (apply(model, &rich_host()).unwrap(), apply(model, &poor).unwrap());
        assert_eq!(features::names(&rich), features::names(&poor));
        assert!(features::missing(&rich, &poor).is_empty());
    }
}

#[test]
fn a_host_below_a_baseline_is_refused_by_the_features_names() {
    let mut host = rich_host();
    features::hide(&mut host, "avx2 popcnt");
    let missing = |model| match apply(model, &host) {
        Err(Error::MissingFeatures { missing }) => missing,
        other => panic!("{other:?}"),
    };
    assert_eq!(missing(CpuModel::X86_64V2), ["popcnt"]);
    assert_eq!(missing(CpuModel::X86_64V3), ["popcnt", "avx2"]);
}

#[test]
fn the_brand_names_the_baseline() {
    let leaves = apply(CpuModel::X86_64V2, &rich_host()).unwrap();
    let text: Vec<u8> = BRAND_LEAVES
        .iter()
        .map(|&function| find(&leaves, function, 0))
        .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
        .flat_map(u32::to_le_bytes)
        .collect();
    assert_eq!(
        String::from_utf8_lossy(&text).trim_end_matches('\0'),
        "x86-64-v2 processor"
    );
}
