//! What well-formed requests do.

use super::*;

#[test]
fn what_was_written_is_read_back() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    let data: Vec<u8> = (0..DATA_BYTES).map(|i| u8::try_from(i % 251).unwrap()).collect();
    driver.store(slot.data, &data);
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_OUT, 7, DATA_BYTES),
        (VIRTIO_BLK_S_OK, 1)
    );
    assert_eq!(image.content(7, data.len()), data);
    driver.store(slot.data, &vec![0; data.len()]);
    let read = request(&mut driver, &slot, VIRTIO_BLK_T_IN, 7, DATA_BYTES);
    assert_eq!(read, (VIRTIO_BLK_S_OK, DATA_BYTES + 1));
    assert_eq!(driver.load(slot.data, data.len()), data);
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_FLUSH, 0, 0),
        (VIRTIO_BLK_S_OK, 1)
    );
}

#[test]
fn works_without_each_feature_of_the_rings() {
    for without in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let image = Image::new();
        let mut driver = Driver::started(image.device(), without);
        let slot = Slot::new(&mut driver);
        for sector in 0..100u64 {
            driver.store(slot.data, &[u8::try_from(sector).unwrap(); 512]);
            assert_eq!(
                request(&mut driver, &slot, VIRTIO_BLK_T_OUT, sector, 512).0,
                VIRTIO_BLK_S_OK
            );
        }
        assert_eq!(image.content(99, 512), [99; 512]);
    }
}

#[test]
fn any_layout_of_descriptors_is_the_same_request() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    let bytes = |address: u64, lens: &[u32]| -> Vec<Piece> {
        let mut at = address;
        let piece = |&len: &u32| {
            at += u64::from(len);
            (at - u64::from(len), len)
        };
        lens.iter().map(piece).collect()
    };
    image.file.as_file().write_all_at(&[0x5a; 1024], 512).unwrap();
    // Header in pieces, data that starts in the header's last piece or ends in the status' first.
    let headers = [&[16][..], &[4, 4, 8], &[1, 0, 15], &[8, 8]];
    for (round, header) in headers.iter().enumerate() {
        for indirect in [false, true] {
            slot.prepare(&driver, VIRTIO_BLK_T_IN, 1);
            driver.store(slot.data, &[0; 1025]);
            let readable = bytes(slot.header, header);
            let writable = bytes(
                slot.data,
                [&[1025][..], &[512, 513], &[1, 1023, 1], &[1024, 0, 1]][round],
            );
            if indirect {
                driver.add_indirect(0, &readable, &writable);
            } else {
                driver.add(0, &readable, &writable);
            }
            driver.kick(0);
            assert_eq!(driver.used(0).1, 1025);
            assert_eq!(
                driver.load(slot.data, 1025),
                [&[0x5a; 1024][..], &[0]].concat(),
                "{round}"
            );
        }
    }
    // A write whose data follows the header in one piece.
    slot.prepare(&driver, VIRTIO_BLK_T_OUT, 3);
    let joined = driver.allocate(4096);
    driver.store(joined, &driver.load(slot.header, 16));
    driver.store(joined + 16, &[0xa5; 512]);
    driver.add(0, &[(joined, 528)], &[(slot.status, 1)]);
    driver.kick(0);
    driver.used(0);
    assert_eq!(image.content(3, 512), [0xa5; 512]);
}

#[test]
fn data_may_cross_into_another_region_of_memory() {
    let image = Image::new();
    // Two regions that touch.
    let memory = vm_memory::GuestMemoryMmap::from_ranges(&[
        (vm_memory::GuestAddress(0), 8 << 20),
        (vm_memory::GuestAddress(8 << 20), 16 << 20),
    ]);
    let mut driver = Driver::new(image.device(), &memory.unwrap());
    driver.probe(0);
    let slot = Slot::new(&mut driver);
    let data = (8 << 20) - 512;
    driver.store(data, &[3; 1024]);
    slot.prepare(&driver, VIRTIO_BLK_T_OUT, 0);
    driver.add(0, &[(slot.header, 16), (data, 1024)], &[(slot.status, 1)]);
    driver.kick(0);
    driver.used(0);
    assert_eq!(slot.status(&driver), VIRTIO_BLK_S_OK);
    assert_eq!(image.content(0, 1024), [3; 1024]);
}

#[test]
fn the_id_is_the_serial_number() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    driver.store(slot.data, &[0xff; 32]);
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_GET_ID, 0, 20),
        (VIRTIO_BLK_S_OK, 21)
    );
    assert_eq!(
        driver.load(slot.data, 21),
        [&b"disk0"[..], &[0; 15], &[0xff]].concat()
    );
}

#[test]
fn discard_gives_room_back_and_write_zeroes_reads_as_zeros() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    image.file.as_file().write_all_at(&vec![1; 1 << 20], 0).unwrap();
    let blocks = || image.file.as_file().metadata().unwrap().blocks();
    let before = blocks();
    driver.store(slot.data, &[range(0, 1024, 0), range(1024, 8, 0)].concat());
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_DISCARD, 0, 32).0,
        VIRTIO_BLK_S_OK
    );
    assert!(blocks() < before, "{} of {before} blocks", blocks());
    for flags in [0, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP] {
        image.file.as_file().write_all_at(&[1; 4096], 2048 * 512).unwrap();
        driver.store(slot.data, &range(2049, 2, flags));
        assert_eq!(
            request(&mut driver, &slot, VIRTIO_BLK_T_WRITE_ZEROES, 0, 16).0,
            VIRTIO_BLK_S_OK
        );
        assert_eq!(
            image.content(2048, 2048),
            [[1; 512], [0; 512], [0; 512], [1; 512]].concat(),
            "{flags}"
        );
    }
    assert_eq!(
        image.file.as_file().metadata().unwrap().len(),
        SECTORS * SECTOR_BYTES
    );
}

#[test]
fn a_read_only_disk_refuses_to_change() {
    let image = Image::of(1 << 20, true);
    let mut driver = Driver::started(image.device(), 0);
    assert_ne!(driver.features & 1 << VIRTIO_BLK_F_RO, 0);
    assert_eq!(
        driver.features & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES),
        0
    );
    let slot = Slot::new(&mut driver);
    driver.store(slot.data, &range(0, 1, 0));
    for (kind, len) in [
        (VIRTIO_BLK_T_OUT, 512),
        (VIRTIO_BLK_T_DISCARD, 16),
        (VIRTIO_BLK_T_WRITE_ZEROES, 16),
    ] {
        assert_eq!(
            request(&mut driver, &slot, kind, 0, len),
            (VIRTIO_BLK_S_IOERR, 1),
            "{kind}"
        );
    }
    assert_eq!(
        request(&mut driver, &slot, VIRTIO_BLK_T_IN, 0, 512).0,
        VIRTIO_BLK_S_OK
    );
}

#[test]
fn many_requests_under_way_all_complete_once() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slots: Vec<Slot> = (0..64).map(|_| Slot::new(&mut driver)).collect();
    for round in 0..20u8 {
        let pattern = |number: usize| [round ^ u8::try_from(number).unwrap(); 4096];
        let mut under_way = BTreeMap::new();
        for (number, slot) in slots.iter().enumerate() {
            driver.store(slot.data, &pattern(number));
            let head = slot.submit(&mut driver, VIRTIO_BLK_T_OUT, number as u64 * 8, 4096);
            under_way.insert(head, number);
            driver.kick(0);
        }
        while !under_way.is_empty() {
            let (head, _) = driver.used(0);
            let number = under_way.remove(&head).unwrap();
            assert_eq!(slots[number].status(&driver), VIRTIO_BLK_S_OK);
        }
        for number in 0..64usize {
            assert_eq!(image.content(number as u64 * 8, 4096), pattern(number));
        }
    }
    assert_eq!(driver.try_used(0), None);
}

#[test]
fn a_held_disk_takes_no_request_until_it_is_let_go() {
    let image = Image::new();
    let mut driver = Driver::started(image.device(), 0);
    let slot = Slot::new(&mut driver);
    driver.store(slot.data, &[1; 512]);
    driver.transport.pause().unwrap();
    let holds = [image.disk.hold().unwrap(), image.disk.hold().unwrap()];
    driver.transport.resume();
    slot.submit(&mut driver, VIRTIO_BLK_T_OUT, 0, 512);
    driver.kick(0);
    let [first, second] = holds;
    drop(first);
    // The second hold stands, however often the device looks at its queue.
    driver.transport.pause().unwrap();
    driver.transport.resume();
    assert_eq!(driver.try_used(0), None);
    assert_eq!(image.content(0, 512), [0; 512]);
    drop(second);
    driver.used(0);
    assert_eq!(image.content(0, 512), [1; 512]);
}
