"""Records the flags of llama.cpp's programs, read from the table in its source.

    python tests/export/serve/laptop/record_llama_flags.py SOURCE           # flags.json beside this
    python tests/export/serve/laptop/record_llama_flags.py SOURCE --check   # compares: 1 if unlike

SOURCE is a folder of llama.cpp, such as ``vendor/llama.cpp`` of llama-cpp-python's sdist. Of a flag
is recorded whether a value follows it.
"""

import json
import re
import sys
from pathlib import Path

FLAGS = Path(__file__).with_name("flags.json")
OPTION = re.compile(
    r"common_arg\(\s*((?:\{[^{}]*\},?\s*)+)(.*?)\[[^\]]*\]\s*\(([^)]*)\)", re.DOTALL
)


def read(source):
    text = (Path(source) / "common" / "arg.cpp").read_text()
    found = {}
    for names, _, parameters in OPTION.findall(text):
        takes = re.search(r"const std::string ?&|, int ", parameters) is not None
        for name in re.findall(r'"(--?[A-Za-z][\w-]*)"', names):
            found[name] = takes or found.get(name, False)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    told = {"source": "llama.cpp as in the sdist of llama-cpp-python 0.3.36, common/arg.cpp"}
    told["takes a value"] = read(sys.argv[1])
    text = json.dumps(told, indent=1) + "\n"
    if "--check" in sys.argv:
        sys.exit(text != FLAGS.read_text())
    FLAGS.write_text(text)
