"""Records the flags that a server's argument parser takes, read from its package's source.

    python tests/export/serve/record_flags.py vllm==0.33.0            # flags/vllm-0.33.0.json
    python tests/export/serve/record_flags.py vllm==0.33.0 --check    # compares: 1 if unlike
    python tests/export/serve/record_flags.py vllm==0.33.0 --wheel X.whl

The package is downloaded without what it depends on, so it cannot be imported: its syntax trees say
which names ``add_argument`` gets, and the annotations of its configuration classes say of which
type. What is recorded of a flag: ``flag`` takes no value, ``choice`` one of those listed, ``list``
several; anything that is none of the plain types is ``other``.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "flags"
PLAIN = {"int": "int", "float": "float", "str": "str", "bool": "flag"}
WRAPPERS = {"Annotated", "A", "Optional", "SkipValidation", "ClassVar"}


class Package:
    """The syntax trees of a package's folder."""

    def __init__(self, root, folders):
        self.root = root
        self.trees = {}
        for folder in folders:
            for path in sorted((root / folder).rglob("*.py") if folder else root.glob("*.py")):
                self.trees[path.relative_to(root).as_posix()] = ast.parse(path.read_text())
        self.classes, self.aliases = {}, {}
        for tree in self.trees.values():
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    self.classes.setdefault(node.name, node)
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self.aliases.setdefault(node.targets[0].id, node.value)
                elif isinstance(node, ast.AnnAssign) and node.value is not None:
                    self.aliases.setdefault(ast.unparse(node.target), node.value)

    def fields(self, name):
        """Annotation and default of each field of a class and its bases, both as syntax."""
        node = self.classes.get(name)
        if node is None:
            return {}
        found = {}
        for base in node.bases:
            found |= self.fields(ast.unparse(base).split("[")[0])
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                found[line.target.id] = (line.annotation, line.value)
        return found

    def kind(self, annotation):
        """What a value of this annotation is on a command line."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            return self.kind(ast.parse(annotation.value, mode="eval").body)
        if isinstance(annotation, ast.BinOp):
            return self._of_union([annotation.left, annotation.right])
        if isinstance(annotation, ast.Subscript):
            outer = ast.unparse(annotation.value).split(".")[-1]
            inner = annotation.slice
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if outer in WRAPPERS:
                return self.kind(parts[0])
            if outer == "Union":
                return self._of_union(parts)
            if outer == "Literal":
                return {"type": "choice", "choices": self._literals(parts)}
            if outer.lower() in ("list", "tuple", "set", "sequence"):
                return {"type": "list"}
            return {"type": "other"}
        name = ast.unparse(annotation)
        if name in PLAIN:
            return {"type": PLAIN[name]}
        if name in self.aliases and name not in self.classes:
            return self.kind(self.aliases[name])
        return {"type": "other"}

    def _of_union(self, parts):
        kinds = [self.kind(part) for part in parts if ast.unparse(part) != "None"]
        names = {kind["type"] for kind in kinds}
        return kinds[0] if len(names) == 1 else {"type": "list" if "list" in names else "other"}

    def _literals(self, parts):
        found = []
        for part in parts:
            if isinstance(part, ast.Constant):
                found.append(part.value)
            elif ast.unparse(part) in self.aliases:  # Literal[KVProducer, KVConsumer]
                found += self.kind(self.aliases[ast.unparse(part)]).get("choices", [])
        return found


def names_of(call):
    """The names that a call of ``add_argument`` gets."""
    return [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]


def add_argument_calls(node):
    """The calls of ``add_argument`` below a syntax node."""
    for call in ast.walk(node):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "add_argument"
        ):
            yield call


def written_kind(call):
    """The kind of an argument from ``type=`` and ``action=`` as they are written."""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    action = given.get("action", "")
    if "store_true" in action or "BooleanOptional" in action or "StoreTrue" in action:
        return {"type": "flag"}
    if "append" in action or given.get("nargs", "'?'") not in ("'?'", "None"):
        return {"type": "list"}
    return {"type": PLAIN.get(given.get("type", "str"), "other")}


def constant(node):
    """A default that is written as a constant, bare or in ``Field(default=...)``."""
    if isinstance(node, ast.Call):
        node = next((word.value for word in node.keywords if word.arg == "default"), None)
    return node.value if isinstance(node, ast.Constant) else None


def keys_of(tree, name):
    """The constant keys of a dictionary, or the items of a list, of this name at the top."""
    for node in ast.walk(tree):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(targets[0]) == name:
            values = node.value.keys if isinstance(node.value, ast.Dict) else node.value.elts
            return sorted(value.value for value in values)
    raise ValueError(f"no {name} in the package: its layout has changed, read it again")


def vllm(root):
    """The listing of vLLM: ``vllm serve``'s flags, the parsers' names, AsyncEngineArgs' fields."""
    package = Package(root / "vllm", ["config", "engine", "entrypoints", "tool_parsers"])
    engine = package.trees["engine/arg_utils.py"]
    sources = {}
    for node in ast.walk(engine):
        if isinstance(node, ast.Assign) and "get_kwargs(" in ast.unparse(node.value):
            inner = ast.unparse(node.value).split("get_kwargs(")[1]
            sources[ast.unparse(node.targets[0])] = inner.split(")")[0]
    flags = {}
    for call in add_argument_calls(engine):
        kind = written_kind(call)
        for word in call.keywords:
            if word.arg is None and isinstance(word.value, ast.Subscript):
                fields = package.fields(sources.get(ast.unparse(word.value.value), ""))
                field = ast.literal_eval(word.value.slice)
                kind = package.kind(fields[field][0]) if field in fields else {"type": "other"}
        flags |= dict.fromkeys(names_of(call), kind)
    for name, (annotation, _) in package.fields("FrontendArgs").items():
        flags[f"--{name.replace('_', '-')}"] = package.kind(annotation)
    for path, tree in package.trees.items():
        if path.endswith("cli_args.py"):
            for call in add_argument_calls(tree):
                if names_of(call):
                    flags |= dict.fromkeys(names_of(call), written_kind(call))
    fields = package.fields("AsyncEngineArgs")
    parsers = Package(root / "vllm", ["tool_parsers", "reasoning"])
    return {
        "flags": flags,
        "names": {
            "--tool-call-parser": keys_of(
                parsers.trees["tool_parsers/__init__.py"], "_TOOL_PARSERS_TO_REGISTER"
            ),
            "--reasoning-parser": keys_of(
                parsers.trees["reasoning/__init__.py"], "_REASONING_PARSERS_TO_REGISTER"
            ),
        },
        "engine_fields": {name: package.kind(kind) for name, (kind, _) in fields.items()},
        "defaults": {
            "gpu_memory_utilization": constant(
                package.fields("CacheConfig")["gpu_memory_utilization"][1]
            )
        },
    }


def sglang(root):
    """The listing of SGLang's ``launch_server``."""
    package = Package(root / "sglang/srt", ["arg_groups", "parser", "function_call", ""])
    flags = {}
    for path, tree in package.trees.items():
        if not path.startswith("arg_groups/fields/"):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                flags |= _flags_of_fields(package, node)
    for call in add_argument_calls(package.trees["server_args.py"]):
        if names_of(call):
            flags |= dict.fromkeys(names_of(call), written_kind(call))
    lists = {"--reasoning-parser": "REASONING_PARSER_NAMES"}
    lists["--tool-call-parser"] = "TOOL_CALL_PARSER_NAMES"
    places = {"--reasoning-parser": "parser/reasoning_parser_names.py"}
    places["--tool-call-parser"] = "function_call/parser_names.py"
    names = {flag: keys_of(package.trees[places[flag]], lists[flag]) for flag in lists}
    return {"flags": flags, "names": names}


def _flags_of_fields(package, node):
    """The flags of a class whose fields are written ``name: A[type, Arg(...)]``."""
    flags = {}
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.annotation, ast.Subscript):
            continue
        if ast.unparse(line.annotation.value) != "A":
            continue
        kind = package.kind(line.annotation)
        names = [f"--{line.target.id.replace('_', '-')}"]
        for part in line.annotation.slice.elts[1:]:
            if isinstance(part, ast.Call) and ast.unparse(part.func) == "Arg":
                given = {word.arg: word.value for word in part.keywords}
                if "no_cli" in given:
                    names = []
                if "cli_name" in given:
                    names = [ast.literal_eval(given["cli_name"])]
                if "aliases" in given:
                    names += ast.literal_eval(given["aliases"])
                if isinstance(given.get("choices"), ast.List):
                    kind = {"type": "choice", "choices": ast.literal_eval(given["choices"])}
        flags |= dict.fromkeys(names, kind)
    return flags


READERS = {"vllm": vllm, "sglang": sglang}


def unpacked(requirement, wheel, folder):
    """Unpack a package's Python files, downloaded without a ``wheel``, and return the root."""
    if wheel is None:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, requirement]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (wheel,) = Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith((".py", "METADATA"))]
        archive.extractall(Path(folder) / "package", names)
    return Path(folder) / "package"


def listing(requirement, wheel=None):
    """What is recorded of a package, sorted."""
    name, version = requirement.split("==")
    with tempfile.TemporaryDirectory() as folder:
        root = unpacked(requirement, wheel, folder)
        if not list(root.glob(f"{name}-{version}.dist-info")):
            raise SystemExit(f"{wheel}: is not {requirement}")
        found = READERS[name](root)
    found["flags"] = dict(sorted(found["flags"].items()))
    return {"package": name, "version": version, **found}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("requirement", help="NAME==VERSION, of vllm or sglang")
    parser.add_argument("--wheel", help="a wheel that is on disk already")
    parser.add_argument("--check", action="store_true", help="compare with what is recorded")
    arguments = parser.parse_args()
    found = listing(arguments.requirement, arguments.wheel)
    path = FOLDER / f"{arguments.requirement.replace('==', '-')}.json"
    text = json.dumps(found, indent=1) + "\n"
    if not arguments.check:
        path.write_text(text)
        print(f"{path}: {len(found['flags'])} flags")
    elif path.read_text() != text:
        raise SystemExit(f"{path}: is not what {arguments.requirement} has; record it again")
    else:
        print(f"{path}: equal, {len(found['flags'])} flags")


if __name__ == "__main__":
    main()
