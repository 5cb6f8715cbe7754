from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

from neurofoundry.runtime.templates import render

LOOP = "{% for name in names %}\n  {% if name %}\n{{ name }}\n  {% endif %}\n{% endfor %}\nend\n"


@pytest.mark.parametrize(
    ("suffix", "written"),
    [(".html", "&lt;b&gt;\nA &amp; B\np &lt; 1\nend"), (".md", "&lt;b>\nA & B\np < 1\nend")],
)
def test_values_are_no_html_and_tags_of_the_template_leave_no_blank_lines(
    tmp_path: Path, suffix: str, written: str
) -> None:
    template = tmp_path / f"page{suffix}"
    template.write_text(LOOP)
    assert render(template, {"names": ["<b>", "", "A & B", "p < 1"]}) == written


def test_a_name_that_the_context_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("{{ missing }}")
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        render(tmp_path / "page.md", {})


def test_a_template_includes_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<style>{% include "style.css" %}</style>')
    (tmp_path / "style.css").write_text("p { color: red }\n")
    assert render(tmp_path / "page.html", {}) == "<style>p { color: red }</style>"
