//! Flags, environment and file, as every binary takes them, and what it says to wrong ones.
#![allow(clippy::unwrap_used, missing_docs)]

use weft_process_tests::{Home, PROCESSES, run};

#[test]
fn help_teaches_and_the_version_is_told() {
    let home = Home::new();
    for name in PROCESSES {
        let help = run(home.bare(name).arg("--help"));
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""), "{help:?}");
        let short = match name {
            "weft-agent" => "dataplane",
            other => other.trim_start_matches("weft-"),
        };
        for word in [
            "Usage:",
            "--check-config",
            "--config <FILE>",
            "WEFT_LOG=",
            "WEFT_METRICS_LISTEN",
            "/healthz",
            "Exit codes: 0",
            &format!("{short}.yaml"),
        ] {
            assert!(
                help.stdout.contains(word),
                "no {word:?} in {name} --help:\n{}",
                help.stdout
            );
        }
        let (own, shared) = help.stdout.split_once("Options of every Weft process").unwrap();
        assert!(
            own.contains("[env: WEFT_") && !own.contains("--check-config"),
            "{own}"
        );
        assert!(shared.contains("--check-config"), "{shared}");
    }
    for name in PROCESSES.into_iter().chain(["weft"]) {
        let version = run(home.bare(name).arg("--version"));
        let told = format!("{name} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((version.code, version.stdout), (Some(0), told));
    }
    let help = run(home.bare("weft").arg("--help"));
    for word in ["run", "status", "observe", "identity", "admin"] {
        let told = help
            .stdout
            .lines()
            .any(|l| l.trim_start().starts_with(&format!("{word} ")));
        assert!(told, "no {word} in {}", help.stdout);
    }
    let create = run(home
        .bare("weft")
        .args(["identity", "join-token", "create", "--help"]));
    assert!(create.stdout.contains("Examples:"), "{}", create.stdout);
}

#[test]
fn wrong_flags_are_one_line_and_exit_2() {
    let home = Home::new();
    for name in PROCESSES {
        run(home.bare(name).arg("--no-such-flag")).says(name, 2, &["--no-such-flag", "--help"]);
        run(home.bare(name).args(["--metrics-listen", "here"])).says(name, 2, &["here", "--metrics-listen"]);
        run(home.bare(name).args(["--log-format", "loud"])).says(name, 2, &["loud", "json"]);
        run(home.bare(name).env("WEFT_METRICS_LISTEN", "there")).says(name, 2, &["there"]);
    }
    for (arguments, words) in [
        (&["bogus"][..], &["bogus", "weft --help"][..]),
        (&["run", "--app-id", "a"], &["<COMMAND>"]),
        (
            &["run", "--app-id", "a", "--app-port", "99999", "--", "true"],
            &["99999", "--app-port"],
        ),
        (
            &["identity", "join-token", "create", "--kind", "x", "--name", "y"],
            &["--kind", "service, node"],
        ),
        (&["observe", "--since", "yesterday"], &["yesterday", "5m"]),
    ] {
        run(home.bare("weft").args(arguments)).says("weft", 2, words);
    }
}

#[test]
fn wrong_configuration_files_are_told_with_their_place() {
    let home = Home::new();
    let unknown = home.file("unknown.yaml", "# a comment\nlisten_on: 1\n");
    let nested = home.file("nested.yaml", "telemetry:\n  log: info\n  otlp: x\n");
    let broken = home.file("broken.yaml", "telemetry: {log: info\n");
    let list = home.file("list.yaml", "- telemetry\n");
    for name in PROCESSES {
        for (file, words) in [
            (&unknown, &["unknown.yaml:2:1", "listen_on"][..]),
            (&nested, &["nested.yaml:3:", "telemetry.otlp", "otlp_endpoint"]),
            (&broken, &["broken.yaml:"]),
            (&list, &["list.yaml:1:1", "mapping"]),
            (&home.at("nowhere.yaml"), &["nowhere.yaml", "No such file"]),
            (&home.path().to_owned(), &["cannot read", "directory"]),
        ] {
            let words: Vec<&str> = words.to_vec();
            run(home.bare(name).arg("--check-config").arg("--config").arg(file)).says(name, 2, &words);
            // Nor is it started.
            run(home.bare(name).arg("--config").arg(file)).says(name, 2, &words);
        }
    }
}

/// Which of two tokens is meant is not guessed, wherever they come from.
#[test]
fn a_token_and_a_file_with_a_token_are_one_too_many() {
    let home = Home::new();
    // Well-formed; nobody is asked.
    let token = format!("weft1.{}.{}.{}", "A".repeat(43), "0".repeat(16), "A".repeat(43));
    let file = home.file("both.yaml", "join_token_file: /nowhere\n");
    for name in ["weft-policy", "weft-placement", "weft-agent"] {
        let command = |arguments: &[&str]| {
            let mut command = home.bare(name);
            command.args(["--config", "/dev/null"]).args(arguments);
            command
        };
        for one in [["--join-token", &token], ["--join-token-file", "/nowhere"]] {
            let good = run(command(&one).arg("--check-config"));
            assert_eq!(good.code, Some(0), "{good:?}");
        }
        let both = ["--join-token", &token, "--join-token-file", "/nowhere"];
        let words = ["join_token", "join_token_file", "one of them"];
        run(command(&both).arg("--check-config")).says(name, 2, &words);
        run(&mut command(&both)).says(name, 2, &words);
        run(command(&both[..2]).env("WEFT_JOIN_TOKEN_FILE", "/nowhere")).says(name, 2, &words);
        run(home.bare(name).arg("--config").arg(&file).args(&both[..2])).says(name, 2, &words);
    }
}

#[test]
fn a_log_filter_that_is_none_is_found_by_check_config() {
    let home = Home::new();
    for name in PROCESSES {
        let check = |filter: &str| {
            let mut command = home.bare(name);
            command.args(["--config", "/dev/null", "--check-config"]);
            run(command.env("WEFT_LOG", filter))
        };
        assert_eq!(check("info,weft_rpc=debug").code, Some(0), "{name}");
        check("weft_rpc=loud").says(name, 2, &["log filter", "weft_rpc=loud", "info,"]);
        let mut command = home.bare(name);
        command.args([
            "--config",
            "/dev/null",
            "--check-config",
            "--otlp-endpoint",
            "collector:4317",
        ]);
        run(&mut command).says(name, 2, &["collector:4317", "http://host:4317"]);
    }
}

/// Values that no start could make good, each with the name of its field.
#[test]
fn wrong_values_are_found_by_check_config() {
    let home = Home::new();
    let cases: &[(&str, &[&str], &str)] = &[
        ("weft-identity", &["--trust-domain", "UPPER"], "trust_domain"),
        ("weft-identity", &["--policy-addr", "nowhere"], "policy_addr"),
        ("weft-policy", &["--trust-domain", "UPPER"], "trust_domain"),
        ("weft-policy", &["--identity-addr", "nowhere"], "identity_addr"),
        ("weft-policy", &["--join-token", "weft1.short"], "join_token"),
        ("weft-placement", &["--trust-domain", "UPPER"], "trust_domain"),
        ("weft-placement", &["--identity-addr", ":7301"], "identity_addr"),
        ("weft-placement", &["--slots", "1000"], "slots"),
        ("weft-placement", &["--join-token", "weft1.short"], "join_token"),
        ("weft-agent", &["--trust-domain", "UPPER"], "trust_domain"),
        ("weft-agent", &["--identity", "nowhere"], "identity"),
        ("weft-agent", &["--policy", "nowhere:99999"], "policy"),
        ("weft-agent", &["--placement", ""], "placement"),
        ("weft-agent", &["--listen", "nowhere"], "listen"),
        ("weft-agent", &["--node", "Not_A_Name"], "node"),
        ("weft-agent", &["--join-token", "weft1.short"], "join_token"),
        ("weft-node", &["--node-name", "Not_A_Name"], "node_name"),
    ];
    for (name, arguments, field) in cases {
        let mut check = home.bare(name);
        check
            .args(["--config", "/dev/null", "--check-config"])
            .args(*arguments);
        let ended = run(&mut check);
        ended.says(name, 2, &[&format!("field {field}"), "flag or the environment"]);
        assert!(
            !ended.stderr.contains("weft1.short"),
            "a secret is shown: {ended:?}"
        );
    }
}

/// A flag counts before the environment, that before the file, that before what is built in.
#[test]
fn one_precedence_for_all() {
    let home = Home::new();
    for (name, field, flag, variable, default) in [
        (
            "weft-identity",
            "policy_addr",
            "--policy-addr",
            "WEFT_POLICY_ADDR",
            "null",
        ),
        (
            "weft-policy",
            "identity_addr",
            "--identity-addr",
            "WEFT_IDENTITY_ADDR",
            "127.0.0.1:7301",
        ),
        (
            "weft-placement",
            "state_dir",
            "--state-dir",
            "WEFT_PLACEMENT_STATE_DIR",
            "placement",
        ),
        (
            "weft-agent",
            "policy",
            "--policy",
            "WEFT_POLICY",
            "127.0.0.1:7303",
        ),
        ("weft-node", "run_dir", "--run-dir", "WEFT_RUN_DIR", "weft"),
    ] {
        let file = home.file(
            "layers.yaml",
            &format!("{field}: file.example:1\ntelemetry: {{log: warn}}\n"),
        );
        let in_force = |configure: &dyn Fn(&mut std::process::Command)| {
            let mut command = home.bare(name);
            configure(command.arg("--check-config"));
            let shown = run(&mut command);
            assert_eq!((shown.code, shown.stderr.as_str()), (Some(0), ""), "{shown:?}");
            let of = |key: &str| {
                let line = shown
                    .stdout
                    .lines()
                    .find_map(|l| l.trim().strip_prefix(&format!("{key}: ")));
                line.unwrap_or_else(|| panic!("no {key} in {}", shown.stdout))
                    .trim_matches('"')
                    .to_owned()
            };
            (of(field), of("log"))
        };
        let (value, log) = in_force(&|c| {
            c.args(["--config", "/dev/null"]);
        });
        assert!(value.contains(default) && log == "info", "{name}: {value} {log}");
        let with_file = |c: &mut std::process::Command| {
            c.arg("--config").arg(&file);
        };
        let (value, log) = in_force(&with_file);
        assert_eq!(
            (value.as_str(), log.as_str()),
            ("file.example:1", "warn"),
            "{name}"
        );
        let with_environment = |c: &mut std::process::Command| {
            with_file(c);
            c.env(variable, "environment.example:1").env("WEFT_LOG", "debug");
        };
        let (value, log) = in_force(&with_environment);
        assert_eq!(
            (value.as_str(), log.as_str()),
            ("environment.example:1", "debug"),
            "{name}"
        );
        let (value, log) = in_force(&|c| {
            with_environment(c);
            c.args([flag, "flag.example:1", "--log", "trace"]);
        });
        assert_eq!(
            (value.as_str(), log.as_str()),
            ("flag.example:1", "trace"),
            "{name}"
        );
    }
}

/// What `--check-config` prints is a configuration file that says the same.
#[test]
fn what_is_in_force_can_be_written_to_a_file() {
    let home = Home::new();
    for name in PROCESSES {
        let shown = run(home
            .bare(name)
            .args(["--config", "/dev/null", "--check-config", "--log", "warn"]));
        assert_eq!(shown.code, Some(0), "{shown:?}");
        // A reader that goes away at once (`| head`) is no failure.
        let mut unread = home.bare(name);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let unread = unread
            .args(["--config", "/dev/null", "--check-config"])
            .stdout(writer);
        assert_eq!(unread.status().unwrap().code(), Some(0), "{name}");
        let file = home.file("again.yaml", &shown.stdout);
        let again = run(home.bare(name).arg("--check-config").arg("--config").arg(&file));
        assert_eq!(
            (again.code, &again.stdout),
            (Some(0), &shown.stdout),
            "{}",
            again.stderr
        );
    }
}
