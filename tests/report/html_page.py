"""Pages read as HTML, and what is put into the files they are made of: hostile, strange."""

import copy
import json
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = (
    "</script><script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\">"
    "' onload=alert(1) \u202egnp.exe\u2066 \x1b[2J &amp; ]]> </svg></style></title>"
)


class Strict(HTMLParser):
    """Refuses a page whose elements do not nest."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.words, self.ids = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        assert not any(name.startswith("on") for name in names), (tag, names)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def parsed(path):
    page = Strict()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def words(page):
    return " ".join(" ".join(page.words).split())


STRANGE = (
    None, True, 0, -1, -0.5, 1e308, -1e308, 1e-320, 10**400, -(10**30), 2**70, "x", "", [], {}, [1],
    float("nan"), float("inf"), [[-1, 5], [2, 2]],
)  # fmt: skip


def strange(value, draw, changes):
    """Return a JSON value with something strange in ``changes`` of its places."""
    value = json.loads(json.dumps(value))
    for _ in range(changes):
        holder = value
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            if not keys:
                break
            key = draw.choice(keys)
            inner = holder[key]
            if not isinstance(inner, dict | list) or draw.random() < 0.3:
                holder[key] = copy.deepcopy(draw.choice(STRANGE))
                break
            holder = inner
    return value
