//! Other engines, each in a process of its own: the program in `tests/peers`.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

/// How an engine ended.
#[derive(Debug)]
pub struct End {
    pub status: ExitStatus,
    pub stderr: String,
}

/// Builds the program, once; where that cannot be done the named test says that it is skipped.
///
/// It is a workspace of its own whose crates come from the registry, so it needs the network or a filled cache.
pub fn program(test: &str) -> Option<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match PROGRAM.get_or_init(build) {
        Ok(path) => Some(path),
        Err(why) => {
            eprintln!("SKIPPED: {test}: tests/peers cannot be built: {why}");
            None
        }
    }
}

/// Lets an engine obey a script on an image.
pub fn run(program: &Path, engine: &str, image: &Path, script: &[String]) -> End {
    let mut child = Command::new(program)
        .arg(engine)
        .arg(image)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("its input");
    for line in script {
        // An engine that has ended does not listen; how it ended is the answer.
        let _ = writeln!(input, "{line}");
    }
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    End {
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn build() -> Result<PathBuf, String> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    // The test stands in TARGET/PROFILE/deps.
    let test = env::current_exe().map_err(|error| error.to_string())?;
    let target = test
        .ancestors()
        .nth(3)
        .ok_or("no target directory")?
        .join("peers");
    let output = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(target.join("debug/peers"))
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(said.lines().last().unwrap_or("cargo failed").to_owned())
    }
}
