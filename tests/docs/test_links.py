"""Every link of a page leads to a file that is there, and to a heading that it has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (".", "docs", "recipes", "data", "kernels", "kernels/bench", "tests/faults", ".github")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")


def prose(page):
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page):
    """Return the anchors of a page's headings, as hosts of code and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    kept = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in plain)
    return {re.sub(r"[ ]+", "-", heading) for heading in kept}


def test_there_are_pages_and_the_index_leads_to_each():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    linked = {Path(target).name for target, _ in LINK.findall(index)}
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    # What a reader of a page needs next, or who works on the program.
    assert pages - linked <= {"faults.md", "run-card.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(prose(page)):
        place = (page.parent / target) if target else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{page.name}: {target}#{anchor}"
