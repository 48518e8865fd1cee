//! The document that defines the saved states, compared with the code.

use super::*;
use crate::block::{Block, Disk};
use crate::config::{DiskConfig, MacAddress, VsockConfig};
use crate::device::to_value;
use crate::driver::field;
use crate::net::NetState;
use crate::rng::Rng;
use crate::vsock::Vsock;

const SPECIFICATION: &str = include_str!("../../../../../fmt-spec/vmstate-v1.md");

/// Names and types of the fields in the tables of the clause with this heading, table by table.
fn tables(heading: &str) -> Vec<Vec<(String, String)>> {
    let clause = SPECIFICATION
        .split("\n## ")
        .flat_map(|chapter| chapter.split("\n### "));
    let clause = clause
        .into_iter()
        .find(|clause| clause.starts_with(heading))
        .expect("the clause");
    let mut tables = Vec::new();
    for line in clause.lines() {
        if line == "|---|---|---|" {
            tables.push(Vec::new());
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row.split(" | ");
            let name = cells.next().unwrap().trim_end_matches('`').to_owned();
            tables
                .last_mut()
                .unwrap()
                .push((name, cells.next().unwrap().to_owned()));
        }
    }
    tables
}

fn compare(state: &Value, table: &[(String, String)]) {
    let fields = state.as_map().unwrap();
    let names: Vec<&str> = fields.iter().filter_map(|(key, _)| key.as_text()).collect();
    assert_eq!(names, table.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for ((_, value), (name, kind)) in fields.iter().zip(table) {
        let right = match value {
            Value::Integer(_) => kind.starts_with("uint"),
            Value::Bool(_) => kind == "bool",
            Value::Array(_) => kind == "array of map",
            Value::Map(_) => kind == "map",
            Value::Text(_) => kind == "text",
            _ => false,
        };
        assert!(right, "{name}: {value:?} is no {kind}");
    }
}

#[test]
fn the_specification_lists_every_field_in_order_with_its_type() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(512).unwrap();
    let path = image.path().to_owned();
    let disk = Disk::open(&DiskConfig::new("d", path)).unwrap();

    let mut driver = Driver::started(Block::new(disk), 0);
    driver.transport.pause().unwrap();
    let mut state = driver.transport.save().unwrap();
    let transport = tables("5.4 ");
    assert_eq!(transport.len(), 2);
    compare(&state, &transport[0]);
    compare(&field(&mut state, "queues").as_array().unwrap()[0], &transport[1]);
    compare(field(&mut state, "device"), &tables("5.5 ")[0]);
    assert_eq!(Rng::new().save().unwrap(), Value::Map(Vec::new()));
    assert!(tables("5.6 ").is_empty());
    let net = NetState {
        mac: MacAddress([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
    };
    compare(&to_value(&net).unwrap(), &tables("5.7 ")[0]);
    let config = VsockConfig {
        cid: 3,
        uds: None,
        vhost: false,
    };
    compare(&Vsock::new(&config).unwrap().save().unwrap(), &tables("5.10 ")[0]);
}
