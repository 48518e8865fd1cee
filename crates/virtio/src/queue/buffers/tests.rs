use proptest::prelude::*;

use super::*;
use crate::driver::memory;

fn segments(pieces: &[(u64, u32)]) -> Segments {
    let piece = |&(address, len)| Segment {
        address: GuestAddress(address),
        len,
    };
    Segments {
        pieces: pieces.iter().map(piece).collect(),
    }
}

#[test]
fn splits_inside_and_between_pieces() {
    let mut all = segments(&[(0, 4), (100, 0), (200, 6)]);
    assert_eq!(all.len_bytes(), 10);
    assert_eq!(all.split_front(11), None);
    assert_eq!(all.split_back(11), None);
    assert_eq!(all.split_front(4).unwrap(), segments(&[(0, 4)]));
    assert_eq!(all.split_back(1).unwrap(), segments(&[(205, 1)]));
    assert_eq!(all.split_front(2).unwrap(), segments(&[(200, 2)]));
    assert_eq!(all, segments(&[(202, 3)]));
    assert_eq!(all.split_front(0).unwrap().len_bytes(), 0);
    assert_eq!(all.split_back(3).unwrap(), segments(&[(202, 3)]));
    assert_eq!(all.len_bytes(), 0);
}

#[test]
fn copies_only_what_is_there() {
    let memory = memory();
    let all = segments(&[(16, 2), (32, 3)]);
    all.write(&memory, b"abcde").unwrap();
    let mut data = [0; 5];
    all.read(&memory, &mut data).unwrap();
    assert_eq!(&data, b"abcde");
    assert!(all.read(&memory, &mut [0; 6]).is_err());
    assert!(all.write(&memory, &[0; 6]).is_err());
    let hole = segments(&[(16, 2), (12 << 20, 3)]);
    assert!(hole.read(&memory, &mut [0; 3]).is_err());
    assert!(hole.slices(&memory).is_err());
    assert!(segments(&[(u64::MAX, 2)]).slices(&memory).is_err());
}

proptest! {
    #[test]
    fn what_is_split_is_the_same_bytes(
        pieces in proptest::collection::vec((0..4096u64, 0..64u32), 0..8),
        front in 0..600u64,
    ) {
        let bytes = |segments: &Segments| -> Vec<u64> {
            let piece = |piece: &Segment| piece.address.0..piece.address.0 + u64::from(piece.len);
            segments.pieces.iter().flat_map(piece).collect()
        };
        let whole = segments(&pieces);
        let mut back = whole.clone();
        match back.split_front(front) {
            Some(split) => {
                prop_assert_eq!(split.len_bytes(), front);
                prop_assert_eq!([bytes(&split), bytes(&back)].concat(), bytes(&whole));
                let mut front = whole.clone();
                prop_assert_eq!(front.split_back(back.len_bytes()), Some(back));
                prop_assert_eq!(bytes(&front), bytes(&split));
            }
            None => prop_assert!(front > whole.len_bytes()),
        }
    }
}
