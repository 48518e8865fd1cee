use super::*;

fn disk(id: &str) -> DiskConfig {
    DiskConfig::new(id, "d.raw")
}

#[test]
fn an_empty_description_asks_for_the_entropy_device_alone() {
    let devices: DevicesConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(devices, DevicesConfig::default());
    assert!(devices.rng && devices.disks.is_empty() && devices.console.is_none());
}

#[test]
fn a_description_survives_json() {
    let devices = DevicesConfig {
        disks: vec![disk("root")],
        nets: vec![NetConfig {
            id: "net0".to_owned(),
            tap: "tap0".to_owned(),
            mac: Some(MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
            vhost: true,
        }],
        vsock: Some(VsockConfig {
            cid: 3,
            uds: Some("v.sock".into()),
            vhost: false,
        }),
        console: Some(ConsoleConfig {
            output: ConsoleOutput::File("console.log".into()),
        }),
        balloon: Some(BalloonConfig {
            free_page_reporting: true,
            target_bytes: 1 << 20,
        }),
        rng: false,
    };
    let text = serde_json::to_string(&devices).unwrap();
    assert!(text.contains("\"mac\":\"52:54:00:12:34:56\""), "{text}");
    assert_eq!(serde_json::from_str::<DevicesConfig>(&text).unwrap(), devices);
}

#[test]
fn a_misspelt_field_is_refused() {
    let text = r#"{"disks": [{"id": "a", "file": "f", "read_only": true}]}"#;
    assert!(serde_json::from_str::<DevicesConfig>(text).is_err());
}

#[test]
fn ids_that_cannot_be_part_of_a_name_are_refused() {
    for id in ["", "a/b", "a b", "123456789012345678901", "\u{e4}"] {
        let devices = DevicesConfig {
            disks: vec![disk(id)],
            ..DevicesConfig::none()
        };
        assert!(
            matches!(devices.validate(), Err(InvalidDevices::Id { field: "disks", .. })),
            "{id:?}"
        );
    }
}

#[test]
fn an_id_that_stands_twice_is_refused() {
    let devices = DevicesConfig {
        disks: vec![disk("a"), disk("a")],
        ..DevicesConfig::none()
    };
    let expected = InvalidDevices::RepeatedId {
        field: "disks",
        id: "a".to_owned(),
    };
    assert_eq!(devices.validate(), Err(expected));
}

#[test]
fn reserved_context_ids_are_refused() {
    for (cid, good) in [
        (0, false),
        (2, false),
        (3, true),
        (u32::MAX - 1, true),
        (u32::MAX, false),
    ] {
        let vsock = Some(VsockConfig {
            cid,
            uds: None,
            vhost: true,
        });
        assert_eq!(
            DevicesConfig {
                vsock,
                ..DevicesConfig::none()
            }
            .validate()
            .is_ok(),
            good,
            "{cid}"
        );
    }
}

#[test]
fn only_six_hexadecimal_bytes_are_an_ethernet_address() {
    assert_eq!(
        "0A:0b:0c:0d:0e:ff".parse(),
        Ok(MacAddress([10, 11, 12, 13, 14, 255]))
    );
    for text in [
        "",
        "0a:0b:0c:0d:0e",
        "0a:0b:0c:0d:0e:0f:00",
        "0a:0b:0c:0d:0e:+f",
        "a:b:c:d:e:f",
        "0g:0:0:0:0:0",
    ] {
        assert!(text.parse::<MacAddress>().is_err(), "{text}");
    }
}

#[test]
fn a_disk_says_only_what_differs_from_the_defaults_that_came_later() {
    let plain = serde_json::to_value(disk("d")).unwrap();
    let expected = serde_json::json!({"id": "d", "file": "d.raw", "format": "raw", "readonly": false});
    assert_eq!(plain, expected, "as before caches and full media were known");
    let text = r#"{"id": "d", "file": "d", "format": "qcow2", "cache": "none", "on_full": "pause"}"#;
    let all: DiskConfig = serde_json::from_str(text).unwrap();
    assert_eq!(
        (all.format, all.cache, all.on_full),
        (DiskFormat::Qcow2, DiskCache::None, OnFull::Pause)
    );
    let again = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<DiskConfig>(&again).unwrap(), all);
    serde_json::from_str::<DiskConfig>(&text.replace("pause", "stop")).unwrap_err();
}
