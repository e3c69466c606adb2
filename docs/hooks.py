"""What MkDocs does not do by itself: links out of ``docs/``, and notebooks as pages.

A page links to a recipe as ``../recipes/tiny/lora.yaml``, which is right in a checkout and on a
host of code. In the site such a file is a page of its own below ``repository/``, and the link leads
there; the same for what that page links to. Copies in ``docs/`` were the alternative: they would be
read when the originals have changed.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_SHOWN_AS_CODE = {".yaml": "yaml", ".py": "python", ".sh": "bash", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add notebooks, and every file outside ``docs/`` that some page links to."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            text = _notebook(Path(file.abs_src_path), file.src_uri.rsplit("/", 1)[-1])
            files.append(File.generated(config, page, content=text))
    waiting = [file.src_uri for file in files if file.src_uri.endswith(".md")]
    while waiting:
        place = waiting.pop()
        file = files.get_file_from_path(place)
        for target in _targets(_in_repository(place), file.content_string):
            if target.parts[0] == "docs" or not (ROOT / target).is_file():
                continue
            page = _in_site(target)
            if files.get_file_from_path(page) is None:
                files.append(_outside(config, target, page))
                if page.endswith(".md"):
                    waiting.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return a page with its links led to where the site has their targets."""
    here = page.file.src_uri
    source = _in_repository(here)

    def led(match: re.Match[str]) -> str:
        target = _resolved(source, match[1])
        if target.parts[:1] == ("docs",) or not (ROOT / target).is_file():
            place = str(PurePosixPath(*target.parts[1:])) if target.parts[0] == "docs" else ""
            return match[0] if not place else _from(here, place) + (match[2] or "")
        return _from(here, _in_site(target)) + (match[2] or "")

    return _outside_code(markdown, lambda text: _LINK.sub(led, text))


def _outside_code(text: str, change: Any) -> str:
    """Return a text with everything but its code blocks changed."""
    parts, end = [], 0
    for block in _CODE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])


def _targets(source: PurePosixPath, text: str) -> list[PurePosixPath]:
    return [_resolved(source, match[1]) for match in _LINK.finditer(_CODE.sub("", text))]


def _resolved(source: PurePosixPath, link: str) -> PurePosixPath:
    """Return the place in the repository that a link in the file ``source`` names."""
    return PurePosixPath(os.path.normpath(source.parent / link))


def _in_repository(page: str) -> PurePosixPath:
    """Return where the file of a page lies in the repository."""
    if not page.startswith("repository/"):
        return PurePosixPath("docs", page)
    path = PurePosixPath(page).relative_to("repository")
    as_code = path.suffix == ".md" and path.with_suffix("").suffix in _SHOWN_AS_CODE
    return path.with_suffix("") if as_code else path


def _in_site(target: PurePosixPath) -> str:
    """Return the page or file of the site that shows a file of the repository."""
    return f"repository/{target}" + (".md" if target.suffix in _SHOWN_AS_CODE else "")


def _from(page: str, target: str) -> str:
    return os.path.relpath(target, PurePosixPath(page).parent)


def _outside(config: Any, target: PurePosixPath, page: str) -> File:
    """Return a file of the repository as a file of the site."""
    language = _SHOWN_AS_CODE.get(target.suffix)
    if language is None and target.suffix != ".md":
        return File.generated(config, page, abs_src_path=str(ROOT / target))
    text = (ROOT / target).read_text(encoding="utf-8")
    if language is not None:
        text = f"# {target}\n\n````{language}\n{text.rstrip()}\n````\n"
    return File.generated(config, page, content=text)


def _notebook(path: Path, name: str) -> str:
    """Return a notebook as Markdown, with the file itself to download."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = parts
    return "\n\n".join([title, f"[Download the notebook]({name})", *rest]) + "\n"
