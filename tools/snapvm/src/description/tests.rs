use std::path::PathBuf;

use clap::Parser;
use serde_json::json;

use super::*;
use crate::cli::{Cli, Command};

fn of_flags(flags: &[&str]) -> MachineDescription {
    let line = ["snapvm", "run"].iter().chain(flags);
    match Cli::try_parse_from(line).unwrap().command {
        Command::Run(args) => args.description().unwrap(),
        _ => panic!("not run"),
    }
}

const EVERY_FLAG: [&str; 30] = [
    "--kernel",
    "vmlinuz",
    "--initrd",
    "initrd",
    "--cmdline",
    "console=ttyS0",
    "--memory",
    "256M",
    "--cpus",
    "2",
    "--cpu",
    "x86-64-v2",
    "--disk",
    "file=d.raw,format=raw,id=data,readonly",
    "--disk",
    "file=e.raw",
    "--net",
    "tap=tap0,mac=52:54:00:12:34:56,vhost",
    "--vsock",
    "cid=3,uds=v.sock",
    "--console",
    "file:c.log",
    "--balloon",
    "free-page-reporting,target=16M",
    "--serial",
    "null",
    "--name",
    "web",
    "--memory-backing",
    "memfd",
];

#[test]
fn flags_toml_and_json_describe_the_same_machine() {
    let mut flags = EVERY_FLAG.to_vec();
    flags.extend(["--no-rng", "--no-thp"]);
    let toml = r#"
        name = "web"
        memory = "256M"
        cpus = 2
        cpu = "x86-64-v2"
        kernel = "vmlinuz"
        initrd = "initrd"
        cmdline = "console=ttyS0"
        memory_backing = "memfd"
        thp = false
        serial = "null"
        console = "file:c.log"
        rng = false

        [vsock]
        cid = 3
        uds = "v.sock"

        [balloon]
        free_page_reporting = true
        target_bytes = 16777216

        [[disks]]
        id = "data"
        file = "d.raw"
        format = "raw"
        readonly = true

        [[disks]]
        id = "disk1"
        file = "e.raw"

        [[nets]]
        id = "net0"
        tap = "tap0"
        mac = "52:54:00:12:34:56"
        vhost = true
    "#;
    let described: MachineDescription = toml::from_str(toml).unwrap();
    assert_eq!(of_flags(&flags), described);
    described.validate().unwrap();
    let text = serde_json::to_string(&described).unwrap();
    assert_eq!(
        serde_json::from_str::<MachineDescription>(&text).unwrap(),
        described
    );
    let text = toml::to_string(&described).unwrap();
    assert_eq!(toml::from_str::<MachineDescription>(&text).unwrap(), described);
}

#[test]
fn what_is_left_out_is_the_same_everywhere() {
    let described: MachineDescription = serde_json::from_value(json!({"builtin": {}})).unwrap();
    assert_eq!(of_flags(&["--builtin"]), described);
    assert_eq!(
        toml::from_str::<MachineDescription>("[builtin]").unwrap(),
        described
    );
    assert!(described.rng && described.thp && described.serial == Terminal::Stdio);
}

#[test]
fn the_built_in_guest_is_described_by_the_names_of_its_flags() {
    let flags = [
        "--builtin",
        "--working-set",
        "64M",
        "--write-rate",
        "1000",
        "--words",
        "9",
        "--incompressible",
        "50",
        "--seed",
        "7",
    ];
    let described = json!({"builtin": {"working_set": "64M", "write_rate": 1000, "words": 9, "incompressible": 50, "seed": 7}});
    assert_eq!(of_flags(&flags), serde_json::from_value(described).unwrap());
}

#[test]
fn the_configuration_has_everything_that_was_described() {
    let config = of_flags(&EVERY_FLAG).to_config();
    assert_eq!(
        (config.memory_bytes, config.cpus, config.cpu),
        (256 << 20, 2, CpuModel::X86_64V2)
    );
    assert_eq!(
        (config.initrd, config.cmdline.as_str()),
        (Some(PathBuf::from("initrd")), "console=ttyS0")
    );
    assert!(matches!(config.kernel, Some(Kernel::File(path)) if path.as_os_str() == "vmlinuz"));
    assert_eq!((config.devices.disks.len(), config.devices.nets.len()), (2, 1));
    assert_eq!(
        config.devices.console.unwrap().output,
        ConsoleOutput::File("c.log".into())
    );
    assert!(config.devices.rng && config.transparent_huge_pages);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (described, problem) in [
        (json!({}), "nothing to boot"),
        (json!({"kernel": "k", "builtin": {}}), "only one"),
        (json!({"builtin": {}, "initrd": "i"}), "initrd"),
        (json!({"builtin": {}, "console": "stdio"}), "both be stdio"),
        (json!({"builtin": {}, "vsock": {"cid": 2}}), "cid 2"),
        (
            json!({"builtin": {}, "disks": [{"id": "a/b", "file": "f"}]}),
            "a/b",
        ),
    ] {
        let description: MachineDescription = serde_json::from_value(described).unwrap();
        let refused = description.validate().unwrap_err();
        assert!(refused.contains(problem), "{refused}");
    }
}

#[test]
fn unknown_fields_and_values_are_refused() {
    for described in [
        json!({"builtin": {}, "colour": "red"}),
        json!({"builtin": {"colour": 1}}),
        json!({"memory": "lots"}),
        json!({"memory": -1}),
        json!({"cpu": "z80"}),
        json!({"serial": "tty"}),
        json!({"disks": [{"id": "a", "file": "f", "read_only": true}]}),
    ] {
        let text = described.to_string();
        assert!(
            serde_json::from_value::<MachineDescription>(described).is_err(),
            "{text}"
        );
    }
}

#[test]
fn a_relative_path_is_found_wherever_it_stands() {
    for described in [
        json!({"kernel": "k"}),
        json!({"kernel": "/k", "initrd": "i"}),
        json!({"disks": [{"id": "a", "file": "f"}]}),
        json!({"vsock": {"cid": 3, "uds": "v"}}),
        json!({"serial": "file:s"}),
        json!({"console": "file:c"}),
    ] {
        let text = described.to_string();
        let description: MachineDescription = serde_json::from_value(described).unwrap();
        assert!(description.require_absolute_paths().is_err(), "{text}");
    }
    let absolute = json!({"kernel": "/k", "serial": "file:/s", "console": "null"});
    let description: MachineDescription = serde_json::from_value(absolute).unwrap();
    assert_eq!(description.require_absolute_paths(), Ok(()));
}

#[test]
fn a_file_says_where_it_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let read_as = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(
        read_as("m.json", r#"{"builtin": {}}"#).unwrap(),
        read_as("m.toml", "[builtin]").unwrap()
    );
    for (name, text, problem) in [
        ("a.toml", "cpus = 1\ncolour = 3\n", "line 2"),
        ("b.json", "{\"cpus\": 1,\n\"colour\": 3}", "line 2"),
        ("c.toml", "cpus = 1", "nothing to boot"),
        ("d.yaml", "cpus: 1", ".toml or .json"),
    ] {
        let refused = read_as(name, text).unwrap_err();
        assert!(refused.contains(problem) && refused.contains(name), "{refused}");
    }
    assert!(
        format!("{:#}", read(&directory.path().join("missing.toml")).unwrap_err()).contains("No such file")
    );
}
