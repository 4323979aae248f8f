//! The hash from actor ids to slots, against vectors made by the C implementation.
#![allow(clippy::unwrap_used)]

use weft_placement_protocol::{DEFAULT_SLOTS, SlotCount};

#[test]
fn slots_are_bit_stable() {
    let wide = SlotCount::new(65_536).unwrap();
    let mut seen = 0;
    for line in include_str!("slots.txt").lines().filter(|l| !l.starts_with('#')) {
        let mut fields = line.splitn(4, ' ');
        let hash = u64::from_str_radix(fields.next().unwrap(), 16).unwrap();
        let slots: [u32; 2] = [(); 2].map(|()| fields.next().unwrap().parse().unwrap());
        let id = match fields.next().unwrap() {
            text if text.ends_with("*x") => "x".repeat(text.trim_end_matches("*x").parse().unwrap()),
            text => text.to_owned(),
        };
        assert_eq!([DEFAULT_SLOTS.slot_of(&id), wide.slot_of(&id)], slots, "{line}");
        for bits in 1..=16 {
            assert_eq!(
                u64::from(SlotCount::new(1 << bits).unwrap().slot_of(&id)),
                hash >> (64 - bits)
            );
        }
        seen += 1;
    }
    assert_eq!(seen, 93);
}

#[test]
fn only_powers_of_two_are_slot_counts() {
    for bad in [0, 1, 3, 4095, 65_537, 1 << 17, u32::MAX] {
        assert!(SlotCount::new(bad).is_err(), "{bad} was taken");
    }
    assert_eq!(DEFAULT_SLOTS.get(), 4096);
}
