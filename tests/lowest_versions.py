"""Print the lower ends of the ranges that a pyproject.toml declares, as pip's constraints.

Of the base dependencies and of the extra ``train``: tools of development are taken as they come.
"""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text("utf-8"))["project"]
for line in [*project["dependencies"], *project["optional-dependencies"]["train"]]:
    found = re.match(r"([\w-]+)>=([\d.]+)", line)
    if found is not None:
        print(f"{found[1]}=={found[2]}")
