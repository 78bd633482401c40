"""Says which imports of Python files no list of packages names: imports.py ROOT DIR…

A file's list is the nearest `requirements.txt` in its folder or above it, else `tests/python/requirements.txt` of ROOT. A
package whose module is named otherwise says so in a comment: `PyYAML==6.0.2  # imports yaml`. Versions must be exact, and the
same in all lists. Prints one line for each fault, then how many imports were looked at, by list.
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(sys.argv[1])
COMMON = ROOT / "tests/python/requirements.txt"
LIST = "requirements.txt"


def above(path):
    """The folders of a file, innermost first, up to ROOT."""
    return [folder for folder in path.parents if folder.is_relative_to(ROOT)]


def packages(path):
    """What a list names: module by module, name and version."""
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text, _, comment = line.partition("#")
        if not text.strip():
            continue
        pinned = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][^\s;*]*)", text.strip())
        if pinned is None:
            faults.append(f"{path.relative_to(ROOT)}:{number}: `{text.strip()}` pins no version")
            continue
        name, version = pinned.groups()
        module = re.search(r"imports (\w+)", comment)
        found[module[1] if module else name.replace("-", "_").lower()] = (name.lower(), version)
    return found


def imports(path):
    """The modules that a file imports, wherever in it, by their first name."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


def ours(path, module):
    """Whether a module lies beside the file, or in a folder above it."""
    return any((folder / f"{module}.py").is_file() or (folder / module).is_dir() for folder in above(path)[:-1])


lists, looked, faults = {}, Counter(), []
for path in sorted(path for folder in sys.argv[2:] for path in (ROOT / folder).rglob("*.py")):
    nearest = next((folder / LIST for folder in above(path) if (folder / LIST).is_file()), COMMON)
    if nearest not in lists:
        lists[nearest] = packages(nearest)
    for line, module in imports(path):
        if module in sys.stdlib_module_names or ours(path, module):
            continue
        looked[nearest] += 1
        if module not in lists[nearest]:
            faults.append(f"{path.relative_to(ROOT)}:{line}: {nearest.relative_to(ROOT)} does not name `{module}`")
versions = {}
for path, named in lists.items():
    for name, version in named.values():
        if versions.setdefault(name, version) != version:
            faults.append(f"{path.relative_to(ROOT)}: {name} {version}, and {versions[name]} elsewhere")
for fault in sorted(faults):
    print(fault)
for path, count in sorted(looked.items()):
    print(f"looked at {count} imports for {path.relative_to(ROOT)}")
