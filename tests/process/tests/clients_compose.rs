//! `docker-compose.yml` and its Dockerfile, in the eyes of docker-compose and of the binaries that they
//! start: without an engine. `cargo xtask images --try` runs them on one.
#![allow(clippy::unwrap_used, missing_docs)]

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use weft_process_tests::{Home, PROCESSES, run};

fn repository() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    path.canonicalize().unwrap()
}

/// What docker-compose makes of the file: anchors, merges and variables resolved, its schema checked.
fn resolved(file: &Path) -> Result<Value, String> {
    let out = Command::new("docker-compose")
        .args(["--project-directory", repository().to_str().unwrap(), "--file"])
        .arg(file)
        .arg("config")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .expect("docker-compose is missing: run `cargo xtask setup`");
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    serde_saphyr::from_slice(&out.stdout).map_err(|e| e.to_string())
}

/// An image of the Dockerfile.
#[derive(Debug, Default)]
struct Stage {
    from: String,
    user: String,
    entrypoint: Vec<String>,
    /// Binaries of ours in it.
    binaries: BTreeSet<String>,
}

fn stages() -> BTreeMap<String, Stage> {
    let text = fs::read_to_string(repository().join("deploy/docker/Dockerfile")).unwrap();
    let mut stages: BTreeMap<String, Stage> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        let (keyword, rest) = line.split_once(' ').unwrap_or((line, ""));
        if keyword == "FROM" {
            let (from, alias) = rest.split_once(" AS ").unwrap();
            name = alias.to_owned();
            stages.entry(name.clone()).or_default().from = from.to_owned();
        }
        // What is in front of the first stage is in none.
        let Some(stage) = stages.get_mut(&name) else {
            continue;
        };
        match keyword {
            "USER" => stage.user = rest.to_owned(),
            "ENTRYPOINT" => stage.entrypoint = serde_json::from_str(rest).unwrap(),
            "COPY" => {
                let ours = rest.split(' ').filter_map(|word| word.strip_prefix("/out/"));
                stage.binaries.extend(ours.map(str::to_owned));
            }
            _ => {}
        }
    }
    stages
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.map(|v| v.as_str().unwrap().to_owned()).collect()
}

fn environment(service: &Value) -> BTreeMap<String, String> {
    let pairs = service["environment"].as_object().into_iter().flatten();
    pairs
        .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// What is wrong with the command lines, images, checks and rights of all services.
fn problems(compose: &Value) -> Vec<String> {
    let (stages, home) = (stages(), Home::new());
    let services = compose["services"].as_object().unwrap();
    let built: BTreeMap<_, _> = services
        .values()
        .filter_map(|s| Some((s["image"].as_str()?, s["build"]["target"].as_str()?)))
        .collect();
    let mut problems = Vec::new();
    for (name, service) in services {
        let mut wrong = |what: String| problems.push(format!("{name}: {what}"));
        let image = service["image"].as_str().unwrap_or_default();
        let Some(stage) = built.get(image).and_then(|target| stages.get(*target)) else {
            wrong(format!("image {image} is built by no stage"));
            continue;
        };
        let mut words = stage.entrypoint.clone();
        words.extend(texts(&service["command"]));
        let program = words[0].rsplit('/').next().unwrap().to_owned();
        if program == "weft" {
            let told = run(home.bare("weft").args(&words[1..]).arg("--help"));
            if told.code != Some(0) {
                wrong(told.stderr);
            }
        }
        if PROCESSES.contains(&program.as_str()) {
            let mut taken = String::new();
            // weft-node hands its environment on.
            for binary in stage.binaries.iter().filter(|b| PROCESSES.contains(&b.as_str())) {
                let mut check = home.bare(binary);
                check.envs(environment(service)).arg("--check-config");
                if *binary == program {
                    check.args(&words[1..]);
                }
                let told = run(&mut check);
                if told.code != Some(0) {
                    wrong(told.stderr);
                }
                let help = run(home.bare(binary).arg("--help")).stdout;
                taken.extend(help.split_whitespace().flat_map(|word| [word, " "]));
            }
            for variable in environment(service).keys() {
                // A secret's value is not shown.
                let named = ["=", "]"].map(|end| taken.contains(&format!("[env: {variable}{end}")));
                if !named.contains(&true) {
                    wrong(format!("nobody takes {variable}"));
                }
            }
        }
        let check = texts(&service["healthcheck"]["test"]);
        if let Some(program) = check.get(1).and_then(|p| p.strip_prefix("/usr/bin/weft-")) {
            let program = format!("weft-{program}");
            // Nobody may serve there now; a wrong flag is another exit code.
            let told = run(home.bare(&program).args(&check[2..]));
            if !stage.binaries.contains(&program) || told.code == Some(2) {
                wrong(format!("healthcheck {check:?}: {}", told.stderr));
            }
        }
        let may_all = service["privileged"] == Value::Bool(true);
        if may_all != (name == "dataplane") {
            wrong("only the dataplane is privileged".into());
        }
        let bound = texts(&service["cap_drop"]) == ["ALL"]
            && service["read_only"] == Value::Bool(true)
            && texts(&service["security_opt"]) == ["no-new-privileges:true"];
        if !may_all && !bound {
            wrong("it has rights that it does not need".into());
        }
        for mount in texts(&service["volumes"]) {
            let source = Path::new(mount.split(':').next().unwrap());
            if source.starts_with(repository()) && !source.exists() {
                wrong(format!("{} is not there", source.display()));
            }
        }
        if environment(service)
            .values()
            .any(|v| v.contains('@') || v.to_lowercase().contains("password"))
        {
            wrong("a secret is in the file".into());
        }
    }
    problems
}

/// The file with one thing changed.
fn altered(from: &str, to: &str) -> Result<Value, String> {
    let text = fs::read_to_string(repository().join("docker-compose.yml")).unwrap();
    assert!(text.contains(from), "{from} is not in the file");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("docker-compose.yml");
    fs::write(&file, text.replace(from, to)).unwrap();
    resolved(&file)
}

#[test]
fn every_service_can_start_and_may_no_more_than_it_must() {
    let compose = resolved(&repository().join("docker-compose.yml")).unwrap();
    assert_eq!(problems(&compose), [""; 0]);
    // Each of these differs in one thing, and is found.
    for (from, to, found) in [
        (
            "--owner=7302",
            "--ownr=7302",
            "placement-token: weft: unexpected argument '--ownr",
        ),
        (
            "WEFT_PLACEMENT: 127",
            "WEFT_PLACEMENT_ADDR: 127",
            "dataplane: nobody takes WEFT_PLACEMENT_ADDR",
        ),
        (
            "WEFT_POLICY_ADDR: policy:7303",
            "WEFT_POLICY_ADDR: policy",
            "identity: ",
        ),
        (
            "/usr/bin/weft-policy, --check-health",
            "/usr/bin/weft-policy, --health",
            "policy: healthcheck",
        ),
        (
            "target: redis",
            "target: valkey",
            "redis: image weft/redis is built by no stage",
        ),
        (
            ":-./examples/whoami}",
            ":-./examples/whoareyou}",
            "whoareyou is not there",
        ),
        (
            "cap_drop: [ALL]\n  security",
            "cap_drop: [MKNOD]\n  security",
            "it has rights",
        ),
        (
            "postgres:///policy?",
            "postgres://u:p@h/policy?",
            "policy: a secret",
        ),
    ] {
        let found_now = problems(&altered(from, to).unwrap());
        assert!(
            found_now.iter().any(|p| p.contains(found)),
            "{from} -> {to}: {found_now:?}"
        );
    }
    // What docker-compose itself does not understand.
    let refused = altered("read_only: true", "readonly: true").unwrap_err();
    assert!(refused.contains("readonly"), "{refused}");
}

#[test]
fn images_of_ours_hold_nothing_but_static_programs() {
    let stages = stages();
    let shipped = stages.iter().filter(|(_, s)| !s.binaries.is_empty());
    let mut all = BTreeSet::new();
    for (name, stage) in shipped {
        assert_eq!(stage.from, "scratch", "{name}");
        // The dataplane is root by its nature; the command line becomes who it is told to be.
        let root = stage.user.is_empty() || stage.user.starts_with('0');
        assert_eq!(
            root,
            ["dataplane", "cli"].contains(&name.as_str()),
            "{name} runs as {:?}",
            stage.user
        );
        all.extend(stage.binaries.iter().map(String::as_str));
    }
    for name in PROCESSES.into_iter().chain(["weft"]) {
        assert!(all.contains(name), "{name} is in no image");
    }
    for (name, stage) in &stages {
        let base = ["scratch", "${BASE}", "${BUILDER}"].contains(&stage.from.as_str());
        assert!(base, "{name}: base image {} is no build argument", stage.from);
    }
}

/// Without them docker-compose would mount an empty folder, and the services know nothing.
#[test]
fn the_manifests_that_are_mounted_are_those_of_the_example() {
    let folder = repository().join("examples/whoami");
    let mut linked = BTreeSet::new();
    for entry in fs::read_dir(folder.join("compose")).unwrap() {
        let path = entry.unwrap().path();
        let target = fs::read_link(&path).unwrap_or_else(|_| panic!("{} is a copy", path.display()));
        assert!(path.exists() && target.starts_with(".."), "{}", path.display());
        linked.insert(target.file_name().unwrap().to_str().unwrap().to_owned());
    }
    for file in ["gateway.yaml", "services.yaml"] {
        assert!(linked.contains(file), "{linked:?}");
    }
}
