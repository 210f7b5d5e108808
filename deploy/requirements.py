"""Prints what a project needs to be built and to run, with some of its extras, one requirement a line.

python requirements.py pyproject.toml [EXTRA ...]
"""

import sys
import tomllib
from pathlib import Path

contents = tomllib.loads(Path(sys.argv[1]).read_text())
project, build = contents["project"], contents["build-system"]["requires"]
extras = [project["optional-dependencies"][extra] for extra in sys.argv[2:]]
print(*build, *project["dependencies"], *(requirement for extra in extras for requirement in extra), sep="\n")
