"""Says what this Python lacks of lists of pinned packages: installed.py LIST…

Fails when it lacks one or has another version, with one line that names them.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def lacks(line):
    pinned = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)", line)
    if pinned is None:
        return f"`{line}` pins no version"
    name, wanted = pinned.groups()
    try:
        found = version(name)
    except PackageNotFoundError:
        return f"{name} is missing"
    return None if found == wanted else f"{name} is {found}, not {wanted}"


lines = [line.split("#")[0].strip() for path in sys.argv[1:] for line in Path(path).read_text().splitlines()]
wanting = [lacks(line) for line in lines if line and not line.startswith("-")]
sys.exit("; ".join(filter(None, wanting)) or None)
