//! What the help of the commands on disk images says beyond their options: examples, exit codes, promises.

/// Of all commands.
pub const EXIT_CODES: &str = "\
Exit codes:
  check:    0 clean, 1 could not do it, 2 corruptions, 3 leaks only, 63 nothing to check
  compare:  0 the same, 1 different, 2 could not do it
  diff:     0 the same, 1 different, 2 could not do it
  others:   0 done, 2 could not do it

An image that a machine runs on is locked and refused, as it is by qemu-img. info, check, map,
diff, compare and snapshot list read it nevertheless with --force-share, but what they see may
be half written.";

/// Of `info`.
pub const INFO_EXAMPLES: &str = "\
Examples:
  snaptool disk info data.qcow2
  snaptool disk info --force-share --json data.qcow2 | jq '.layers[].file'";

/// Of `check`.
pub const CHECK_EXAMPLES: &str = "\
Examples:
  snaptool disk check data.qcow2
  snaptool disk check --json data.qcow2 | jq .leaks
  snaptool disk check --repair leaks data.qcow2

The exit codes are those of qemu-img check: 0 clean, 1 could not do it, 2 corruptions, 3 leaks
only, 63 nothing to check. With --repair they are for the image as it is afterwards. Leaks waste
room and harm nothing; corruptions must be repaired before the image is written again.";

/// Of `repair`.
pub const REPAIR_EXAMPLES: &str = "\
Examples:
  snaptool disk repair data.qcow2
  snaptool disk repair --what leaks data.qcow2

Exit codes as those of `disk check`, for the image as it is afterwards. An interrupt or a crash
leaves the image as it was before or repaired.";

/// Of `snapshot`.
pub const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  snaptool disk snapshot list data.qcow2
  snaptool disk snapshot create before-upgrade data.qcow2
  snaptool disk snapshot apply before-upgrade data.qcow2
  snaptool disk snapshot delete 1 data.qcow2

A crash or an interrupt at any time leaves the image before or after the change, at worst with
leaked clusters. The snapshot file of a machine names the internal snapshots that it needs:
deleting one makes it unrestorable.";

/// Of `diff`.
pub const DIFF_EXAMPLES: &str = "\
Examples:
  snaptool disk diff data.qcow2 before-upgrade
  snaptool disk diff --limit 0 data.qcow2 1 2
  snaptool disk diff --json data.qcow2 1 | jq .differing_bytes

Tables and clusters that both share are equal and not read; the rest is compared byte by byte.";

/// Of `map`.
pub const MAP_EXAMPLES: &str = "\
Examples:
  snaptool disk map data.qcow2
  snaptool disk map --json data.qcow2 | jq '[.[] | select(.data) | .length] | add'";

/// Of `compare`.
pub const COMPARE_EXAMPLES: &str = "\
Examples:
  snaptool disk compare data.qcow2 copy.raw
  snaptool disk compare -f raw disk1 -F qcow2 disk2

Exit code 0: the same; 1: different; 2: could not do it. Where one disk is longer, the rest must
be zeros; with --strict the lengths must be equal.";

/// Of `flatten`.
pub const FLATTEN_EXAMPLES: &str = "\
Examples:
  snaptool disk flatten data.qcow2
  snaptool disk flatten --rate 100M data.qcow2

Backing files are only read and stay as they are. An interrupted run leaves a sound image that
still needs them; the next run goes on where it ended. The disk of a running machine is flattened
by `snapvm disk flatten`.";

/// Of `commit`.
pub const COMMIT_EXAMPLES: &str = "\
Examples:
  snaptool disk commit data.qcow2

The overlay stays as it is, so that an interrupt or a crash loses nothing: the next run writes
everything again. Every other overlay on the same backing file loses its base, and a snapshot
file that needs it can no longer be restored: where the image names such a snapshot, and it
exists, the command refuses.";

/// Of `create`.
pub const CREATE_EXAMPLES: &str = "\
Examples:
  snaptool disk create data.qcow2 20G
  snaptool disk create -b base.raw -F raw data.qcow2";
