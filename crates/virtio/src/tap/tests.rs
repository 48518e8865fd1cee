use super::*;

/// Moves this thread into a network namespace of its own, where interfaces of tests meet nobody.
pub(crate) fn own_network(test: &str) -> bool {
    let problem = if std::fs::metadata(TUN_PATH).is_err() {
        Some(format!("no {TUN_PATH}"))
    } else {
        unshare_network()
            .err()
            .map(|error| format!("no network namespace: {error}"))
    };
    if let Some(problem) = &problem {
        eprintln!("SKIPPED: {test}: {problem}");
    }
    problem.is_none()
}

fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET gives this thread another network namespace and touches neither memory nor files.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// Gives the interface an IPv4 address and sets it up, so that the host's kernel answers on it.
pub(crate) fn set_up(tap: &str, address: [u8; 4]) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
    let mut request = request_for(tap).unwrap();
    // `sockaddr_in`: family, port, address.
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().skip(2).zip(address) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_addr = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap(),
        sa_data: data,
    };
    // SAFETY: SIOCSIFADDR reads one ifreq, which outlives the call.
    let result = unsafe { ioctl_with_mut_ref(&socket, libc::SIOCSIFADDR, &mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let result = unsafe { ioctl_with_mut_ref(&socket, libc::SIOCSIFFLAGS, &mut request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn names_that_no_interface_can_have_are_refused_before_the_kernel_sees_them() {
    for name in [
        "",
        "sixteen-bytes-ab",
        "tap/0",
        "tap 0",
        "tap%d",
        "tap:1",
        ".",
        "..",
        "t\u{e4}p",
    ] {
        let error = Tap::open(name).unwrap_err();
        assert!(matches!(error, TapError::Name { .. }), "{name:?}: {error}");
    }
}

#[test]
fn segmentation_is_not_asked_for_without_checksums() {
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
    };
    assert_eq!(all.bits(), 7);
    assert_eq!(
        Offloads {
            checksum: false,
            ..all
        }
        .bits(),
        0
    );
}

#[test]
fn an_interface_is_created_has_an_mtu_and_goes_away() {
    if !own_network("an_interface_is_created_has_an_mtu_and_goes_away") {
        return;
    }
    assert!(!exists("vmsnap-t0"));
    let tap = Tap::open("vmsnap-t0").unwrap();
    assert!(exists("vmsnap-t0"));
    assert_eq!(tap.mtu().unwrap(), 1500);
    for bits in 0..8 {
        let offloads = Offloads {
            checksum: bits & 1 != 0,
            tso4: bits & 2 != 0,
            tso6: bits & 4 != 0,
        };
        tap.set_offloads(offloads).unwrap();
    }
    assert_eq!(tap.receive(&mut [0; 64]).unwrap(), None);
    drop(tap);
    assert!(!exists("vmsnap-t0"));
}

#[test]
fn an_interface_in_use_is_refused_by_its_name() {
    if !own_network("an_interface_in_use_is_refused_by_its_name") {
        return;
    }
    let _tap = Tap::open("vmsnap-t1").unwrap();
    let error = Tap::open("vmsnap-t1").unwrap_err().to_string();
    assert!(error.contains("vmsnap-t1") && error.contains("in use"), "{error}");
}
