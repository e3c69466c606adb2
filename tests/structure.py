"""The structure of the project in figures.

    python tests/structure.py [--trace] [--list] [--root CHECKOUT ...]

One column for each checkout; the default is this one. Everything but ``--trace`` reads the sources
of ``src/gptoss_tune`` and ``kernels/gptoss_kernels`` and needs no installed package. ``--trace``
trains a tiny model for three steps (about a minute) with the checkout's own code and counts calls.

What is counted:

- *Files* are those that hold more than a docstring. An import counts wherever it stands, in a
  function too, but not under ``if TYPE_CHECKING``.
- *Reached from train/run.py*: the files that importing everything it names, and what that names,
  would read, the packages' ``__init__.py`` included.
- *Functions that take a whole recipe*: those with a parameter whose annotation names ``Recipe``.
- *A room* is a folder of the package, subfolders apart from their parent, or a file at its top.
- *The recipe's way*: from the command line to ``Trainer.train`` of transformers. A file is visited
  when one of its functions is called; imports do not count. A *return* is a pair of files, the one
  calling into the other, where the called file had been visited before: what a reader who follows
  the calls has to turn back to. Every pair counts once, however often it happens.
- *From train/run.py to one optimizer step*: the files visited from the call of its ``train`` to the
  end of the first step, loading data and model included.
- *One optimizer step*: from the second call of ``Trainer.training_step`` to the third. A *move* is
  a call from a function of one file of the project into another file of it; code of libraries
  between the two does not count. Neither an evaluation nor a checkpoint lies in that step.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

PACKAGES = ("src/gptoss_tune", "kernels/gptoss_kernels")
MOST_FILES = 15
FEW_LINES = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=Path, action="append", help="a checkout; repeatable")
    parser.add_argument("--trace", action="store_true", help="train a tiny model, count its calls")
    parser.add_argument("--list", action="store_true", help="name what was counted")
    given = parser.parse_args()
    roots = given.root or [Path(__file__).resolve().parents[1]]
    columns = []
    for root in roots:
        found = figures(Sources(root.resolve()))
        columns.append({**found, **(traced(root.resolve()) if given.trace else {})})
    print("| figure |" + "".join(f" {root.resolve().name} |" for root in roots))
    print("|---|" + "---|" * len(roots))
    for name in columns[0]:
        print(f"| {name} |" + "".join(f" {number(column[name])} |" for column in columns))
    for root, column in zip(roots, columns, strict=True):
        for name, value in column.items():
            if given.list and isinstance(value, list) and value:
                print(f"\n{root}: {name}", *value, sep="\n  ")
    return 0


def number(value):
    return f"{len(value) if isinstance(value, list) else value:,}"


class Sources:
    """The modules of a checkout and who imports whom.

    Attributes:
        files: Dotted name of a module -> its file.
        imports: Name -> the modules it imports anywhere, type checking apart.
        imports_at_import: Name -> those it imports when it is imported itself.
        imports_for_types: Name -> those it imports for its annotations alone.
        external: Name -> what else it imports, annotations apart, such as ``torch.nn.Module``.
    """

    def __init__(self, root):
        self.root, self.files, self.trees = root, {}, {}
        for package in (root / name for name in PACKAGES):
            for path in sorted(package.rglob("*.py")):
                parts = path.relative_to(package.parent).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                self.files[name] = path
                self.trees[name] = ast.parse(path.read_text(encoding="utf-8"))
        self.imports, self.imports_at_import = {}, {}
        self.imports_for_types, self.external = {}, {}
        for name, tree in self.trees.items():
            found = {"now": set(), "later": set(), "types": set(), "external": set()}
            for kind, target in import_statements(tree):
                if module := self._module(target):
                    found[kind].add(module)
                elif kind != "types":
                    found["external"].add(target)
            self.imports[name] = (found["now"] | found["later"]) - {name}
            self.imports_at_import[name] = found["now"] - {name}
            self.imports_for_types[name] = found["types"]
            self.external[name] = found["external"]

    def _module(self, target):
        """Return the module that ``import target`` or ``from a import b`` (``a.b``) reads."""
        parent = target.rpartition(".")[0]
        return next((name for name in (target, parent) if name in self.files), None)

    def path(self, name):
        return str(self.files[name].relative_to(self.root))

    def lines(self, name):
        return len(self.files[name].read_text(encoding="utf-8").splitlines())

    def holds_code(self, name):
        body = self.trees[name].body
        return len(body) > bool(ast.get_docstring(self.trees[name]))

    def room(self, name):
        """Return the folder of a module; a file beside the package's ``__init__`` is its own."""
        is_package = self.files[name].name == "__init__.py"
        folder = name if is_package else name.rpartition(".")[0]
        return name if "." not in folder else folder

    def importers(self):
        return Counter(target for targets in self.imports.values() for target in targets)

    def reached(self, start):
        """Return every module that is read when all that ``start`` names is imported."""
        seen, waiting = set(), [start]
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            parents = {name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)}
            waiting += self.imports[name] | (parents & set(self.files))
        return {name for name in seen if self.holds_code(name)}

    def room_imports(self):
        rooms = {self.room(name): set() for name in self.files}
        for name, targets in self.imports.items():
            # The package's own __init__ is its front door: it names things of every room, lazily.
            if name not in ("gptoss_tune", "gptoss_kernels"):
                rooms[self.room(name)] |= {self.room(target) for target in targets}
        return {room: targets - {room, "gptoss_tune"} for room, targets in rooms.items()}


def import_statements(tree):
    """Yield ``(kind, dotted name)``: ``now``, ``later`` in a function, ``types`` for a checker."""
    waiting = [(tree, "now")]
    while waiting:
        node, kind = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            kind = "later" if kind == "now" else kind
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += [(child, "types") for child in node.body]
            waiting += [(child, kind) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            yield from ((kind, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((kind, f"{node.module}.{alias.name}") for alias in node.names)
        waiting += [(child, kind) for child in ast.iter_child_nodes(node)]


def circles(graph):
    """Return the groups of nodes that can be reached from each other, of two nodes and more."""
    reach = {}
    for start in graph:
        seen, waiting = set(), list(graph[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += graph.get(node, ())
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach.get(b, ()))) for a in graph}
    return sorted(" - ".join(group) for group in groups if len(group) > 1)


def big_folders(root, tops=("src", "kernels", "tests")):
    """Return ``folder: count`` of the folders that hold too many Python files."""
    counts = Counter(path.parent for top in tops for path in (root / top).rglob("*.py"))
    big = sorted((folder, n) for folder, n in counts.items() if n > MOST_FILES)
    return [f"{folder.relative_to(root)}: {n}" for folder, n in big]


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def takes_recipe(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    nodes = [node for a in every if a.annotation for node in ast.walk(a.annotation)]
    return any("Recipe" in (getattr(n, "id", None), getattr(n, "attr", None)) for n in nodes)


def figures(sources):
    files = [name for name in sources.files if sources.holds_code(name)]
    importers = sources.importers()
    single = [
        name
        for name in files
        if importers[name] == 1 and sources.files[name].name not in ("__init__.py", "__main__.py")
    ]
    whole = [
        f"{sources.path(name)}:{function.lineno} {function.name}"
        for name in files
        for function in functions(sources.trees[name])
        if takes_recipe(function)
    ]
    small = [name for name in single if sources.lines(name) < FEW_LINES]
    return {
        "files": len(files),
        "lines": sum(sources.lines(name) for name in files),
        "rooms": len(sources.room_imports()),
        "files reached from train/run.py": [
            sources.path(name) for name in sorted(sources.reached("gptoss_tune.train.run"))
        ],
        "functions that take a whole recipe": whole,
        "files with one importer": [sources.path(name) for name in single],
        f"of these, under {FEW_LINES} lines": [sources.path(name) for name in small],
        f"folders over {MOST_FILES} Python files": big_folders(sources.root),
        "circles between rooms": circles(sources.room_imports()),
        "circles between files": circles(sources.imports_at_import),
    }


def traced(root):
    """Train the tiny model in a process of its own, with the code of ``root``."""
    with tempfile.TemporaryDirectory(prefix="structure-") as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(root / p) for p in ("src", "kernels")),
            **dict.fromkeys(("XDG_CACHE_HOME", "HF_HOME"), folder),
            **{"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        }
        command = [sys.executable, str(Path(__file__).with_name("structure_trace.py")), str(root)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        result = Path(folder, "counted.json")
        if not result.exists():
            sys.exit(f"the run that was to be traced failed\n{done.stdout}\n{done.stderr}")
        return json.loads(result.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
