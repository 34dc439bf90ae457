"""The report's sample page as a browser meets it: every element closed, nothing from outside, every picture described."""
import html.parser
import pathlib
import subprocess
import sys
import tempfile

VOID = {"meta"}
REFERENCES = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids, self.named, self.without_scope = [], [], [], [], 0

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not REFERENCES & attrs.keys(), (tag, attrs)
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        self.seen.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.named += attrs.get("aria-labelledby", "").split()
        self.without_scope += tag == "th" and "scope" not in attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> at {self.getpos()}, open: {self.open}"
        self.open.pop()


with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "report.html")
    subprocess.run([sys.argv[1], path], check=True)
    text = path.read_text(encoding="utf-8")

page = Page()
page.feed(text)
page.close()
assert not page.open, page.open
for tag in ("script", "img", "link", "iframe", "object", "base", "form", "use", "image"):
    assert tag not in page.seen, tag
assert "url(" not in text and "@import" not in text
assert "default-src 'none'" in text
assert page.seen.count("svg") == 4
assert page.seen.count("desc") == page.seen.count("svg") == page.seen.count("title") - 1
assert len(page.ids) == len(set(page.ids)) and set(page.named) <= set(page.ids) and len(page.named) == 8
assert page.seen.count("caption") == page.seen.count("table") == 3
assert page.without_scope == 0
assert page.seen.count("h1") == 1
