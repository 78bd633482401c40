//! What Python in this repository imports is in a list of packages that set-up installs, each in one version.

use catchment_tests::{Python, root};
use std::fs;
use std::path::Path;

const FOLDERS: [&str; 3] = ["tests", "benches", "examples"];

fn faults(root: &Path) -> (Vec<String>, Vec<String>) {
    let arguments = [&[root.to_str().expect("a path in UTF-8")], &FOLDERS[..]].concat();
    let text = Python::find().script("imports.py", &arguments);
    text.lines().map(str::to_string).partition(|line| !line.starts_with("looked at "))
}

#[test]
fn every_import_is_in_a_list_of_pinned_packages() {
    let (faults, looked) = faults(root());
    assert!(faults.is_empty(), "{faults:#?}");
    for list in ["tests/python/requirements.txt", "benches/peers/requirements.txt"] {
        assert!(looked.iter().any(|line| line.ends_with(list)), "no import was looked at for {list}: {looked:?}");
    }
}

/// Each kind of fault is found: imports of all forms, versions that are left open or differ, and nothing else.
#[test]
fn what_a_list_lacks_is_named() {
    let folder = tempfile::TempDir::new().expect("make a folder");
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, text).expect("write");
    };
    write("tests/python/requirements.txt", "# of tests\nnumpy==2.0.0\nPyYAML==6.0.2  # imports yaml\nopen>=1\n");
    write(
        "tests/python/used.py",
        "import os, numpy\nimport numpy.linalg as la\nimport yaml\nfrom . import near\nimport other\n",
    );
    write("tests/python/other.py", "\"\"\"\nimport nothing\n\"\"\"\ndef late():\n    from torch.nn import Linear\n");
    write("examples/deep/app.py", "import flwr\nfrom deep.part import x\nfrom __future__ import annotations\n");
    write("benches/peers/requirements.txt", "flwr==1.0\nnumpy==2.0.1\n");
    write("benches/peers/app/run.py", "import flwr, numpy, yaml\n");
    let (faults, looked) = faults(folder.path());
    assert_eq!(
        faults,
        [
            "benches/peers/app/run.py:1: benches/peers/requirements.txt does not name `yaml`",
            "examples/deep/app.py:1: tests/python/requirements.txt does not name `flwr`",
            "tests/python/other.py:5: tests/python/requirements.txt does not name `torch`",
            "tests/python/requirements.txt: numpy 2.0.0, and 2.0.1 elsewhere",
            "tests/python/requirements.txt:4: `open>=1` pins no version",
        ]
    );
    assert_eq!(looked.len(), 2, "{looked:?}");
}
