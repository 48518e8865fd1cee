//! The same guest with the host's kernel moving the packets.

use super::*;
use crate::VhostNet;
use crate::driver::copy;

/// Whether the host has vhost-net, and a network of this test's own.
fn has_vhost(test: &str) -> bool {
    let path = "/dev/vhost-net";
    if let Err(error) = std::fs::metadata(path) {
        eprintln!("SKIPPED: {test}: {path}: {error}");
        return false;
    }
    own_network(test)
}

fn device(tap: &str, mac: Option<MacAddress>) -> VhostNet {
    VhostNet::new(&NetConfig {
        vhost: true,
        ..config(tap, mac)
    })
    .unwrap()
}

#[test]
fn a_host_without_vhost_says_which_module_is_missing() {
    if std::fs::metadata("/dev/vhost-net").is_ok() {
        eprintln!("SKIPPED: a_host_without_vhost_says_which_module_is_missing: this host has it");
        return;
    }
    let error = VhostNet::new(&config("vmsnap-v0", None)).unwrap_err().to_string();
    assert!(
        error.contains("/dev/vhost-net") && error.contains("vhost_net"),
        "{error}"
    );
}

#[test]
fn the_kernel_moves_packets_both_ways_over_one_and_several_buffers() {
    if !has_vhost("the_kernel_moves_packets_both_ways_over_one_and_several_buffers") {
        return;
    }
    let data: Vec<u8> = (0..1400_u32).map(|byte| byte.to_le_bytes()[0]).collect();
    let mut guest = Guest::with(device("vmsnap-v1", Some(MAC)), "vmsnap-v1", 2048, 16);
    assert_eq!(guest.ping(&data), (data.clone(), 1));
    // Its interface goes, and with it the host's other way to the guest's address.
    drop(guest);
    let mut guest = Guest::with(device("vmsnap-v2", Some(MAC)), "vmsnap-v2", 300, 64);
    assert_eq!(guest.ping(&data), (data, 5));
}

#[test]
fn a_paused_kernel_writes_no_guest_memory_and_goes_on_without_loss() {
    if !has_vhost("a_paused_kernel_writes_no_guest_memory_and_goes_on_without_loss") {
        return;
    }
    let mut guest = Guest::with(device("vmsnap-v3", Some(MAC)), "vmsnap-v3", 2048, 16);
    guest.address_of_host();
    for round in 0..20 {
        guest.driver.transport.pause().unwrap();
        let before = copy(&guest.driver.memory);
        // The kernel is woken, and does not look at the rings.
        for queue in [0, 1] {
            guest
                .driver
                .write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        }
        let state = guest.driver.transport.save().unwrap();
        assert!(!crate::driver::encode(&state).is_empty());
        let after = copy(&guest.driver.memory);
        for (address, len) in crate::driver::MEMORY {
            let load = |memory: &vm_memory::GuestMemoryMmap| {
                let mut bytes = vec![0; len];
                vm_memory::Bytes::read_slice(memory, &mut bytes, address).unwrap();
                bytes
            };
            assert!(load(&before) == load(&after), "round {round}");
        }
        guest.driver.transport.resume();
        guest.address_of_host();
    }
}

#[test]
fn a_snapshot_with_the_kernel_is_restored_without_it_and_back() {
    if !has_vhost("a_snapshot_with_the_kernel_is_restored_without_it_and_back") {
        return;
    }
    let mut guest = Guest::with(device("vmsnap-v4", Some(MAC)), "vmsnap-v4", 2048, 16);
    for round in 0..4 {
        guest.address_of_host();
        guest.driver.transport.pause().unwrap();
        let tap = format!("vmsnap-v{}", 5 + round);
        let driver = if round % 2 == 0 {
            guest.driver.restored(Net::new(&config(&tap, None)).unwrap())
        } else {
            guest.driver.restored(device(&tap, None))
        };
        let mut next = Guest::of(driver, 2048);
        next.buffers.clone_from(&guest.buffers);
        guest = next;
        set_up(&tap, HOST);
        guest.driver.transport.resume();
    }
    assert_eq!(guest.ping(b"across").0, b"across");
}
