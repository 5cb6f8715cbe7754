"""What a browser would show of an HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """The text of a page, the resources it asks for, and whether its tags match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.resources, self.open = [], [], []
        self.html = path.read_text()
        self.feed(self.html)
        self.words = re.sub(r"\s+", " ", " ".join(self.text))

    def handle_starttag(self, tag, attrs):
        self.resources += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")
        ]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
