"""The site: built without a warning, complete, and without a byte from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself; a link that somebody follows is none of it.
FETCHED = (
    r"<(?:script|img|iframe|source)[^>]*\ssrc=\"(https?:)?//",
    r"<link[^>]*rel=\"(?:stylesheet|preload|preconnect|icon)\"[^>]*href=\"(https?:)?//",
)


def pages_of(navigation):
    for entry in navigation:
        for value in entry.values():
            yield from pages_of(value) if isinstance(value, list) else [value]


def test_every_page_is_in_the_navigation():
    listed = set(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    written = {page.name for page in (ROOT / "docs").glob("*.md")}
    notebooks = {f"notebooks/{page.stem}.md" for page in (ROOT / "docs/notebooks").glob("*.ipynb")}
    assert listed == written | notebooks


@pytest.mark.slow
def test_the_site_is_built_strictly_and_fetches_nothing(tmp_path):
    """A link that leads nowhere is a warning, and a warning ends the build."""
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0 and not made.stderr, made.stderr
    site = tmp_path / "site"
    for name in ("index", "first-hour", "reference", "notebooks/tiny"):
        assert (site / f"{name}.html").is_file()
    # What a page links to outside docs/ is a page too, recipes with their own text.
    recipe = (site / "repository/recipes/gpt-oss-20b/qlora.yaml.html").read_text()
    assert "openai/gpt-oss-20b" in recipe
    assert "recipes/gpt-oss-20b/qlora.yaml.html" in (site / "memory.html").read_text()
    for page in site.rglob("*.html"):
        for pattern in FETCHED:
            assert not re.search(pattern, page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text()), sheet
