from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer.main
import yaml

from docs import reference
from neurofoundry.cli.main import app
from pipelines import compiled
from pipelines.__main__ import app as pipelines

ROOT = Path(__file__).resolve().parents[1]
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()
PAGES = [ROOT / name for name in TRACKED if re.fullmatch(r"(docs/.*|[^/]*)\.md", name)]
"""Pages for people; those within the package are templates."""
CODE = [
    ROOT / name
    for name in TRACKED
    if re.search(r"(\.py|\.yaml|\.toml|\.html|Dockerfile|Makefile|^neurofoundry/.*\.md)$", name)
]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
PATH = re.compile(
    r"(?<![\w/.-])(?:neurofoundry|components|pipelines|tests|docs|benchmarks|docker|params)"
    r"/[\w./-]*[\w/]"
)
COMMAND = re.compile(r"(?<![\w/.-])(neurofoundry|python -m pipelines) (.+)")
PARAMETER = re.compile(
    r"(?<![\w/.-])(?:ingest|preprocess|pretrain|finetune|evaluate|tracking)(?:\.\w+)+(?![\w/(])"
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    found: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        words = LINK.sub(lambda link: link[0].partition("]")[0].lstrip("!["), heading)
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def code_of(page: Path) -> Iterator[str]:
    """Lines of code of a page, in blocks and within text; a line that goes on is one."""
    text = page.read_text().replace("\\\n", " ")
    for block in FENCE.findall(text):
        yield from block.splitlines()[1:-1]
    yield from CODE_SPAN.findall(FENCE.sub("", text))


def commands(page: Path) -> Iterator[tuple[str, list[str], str]]:
    """Program, words and options of every command line of a page."""
    for line in code_of(page):
        for program, rest in COMMAND.findall(line.partition(" #")[0]):
            words = re.split(r"[;|&]", rest)[0]
            yield program, words.split(), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    for line in code_of(page):
        for path in PATH.findall(line):
            pattern = re.sub(r"(?<=/)[A-Z]+(?=[/.])", "*", path)  # such as STAGE
            assert any(ROOT.glob(pattern.rstrip("/"))), path


def test_every_page_that_the_code_names_is_there() -> None:
    named = {
        path
        for file in CODE
        for path in re.findall(r"docs/[\w/.-]+\.(?:md|yaml)", file.read_text())
    }
    assert "docs/architecture.md" in named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for link in LINK.findall(index.read_text())
    }
    pages = {page for page in PAGES if ROOT / "docs" in page.parents and page != index}
    assert pages - linked == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_names_commands_and_options_that_there_are(page: Path) -> None:
    groups = {"neurofoundry": app, "python -m pipelines": pipelines}
    known = compiled.parameters(compiled.read(compiled.COMMITTED))
    for program, words, line in commands(page):
        command = typer.main.get_command(groups[program])
        for word in words:
            if not hasattr(command, "commands") or word.startswith("-"):
                break
            assert word in command.commands, line
            command = command.commands[word]
        options = {"--help", *(name for each in command.params for name in each.opts)}
        options |= {name for each in command.params for name in each.secondary_opts}
        assert set(OPTION.findall(line)) <= options, line
        for setting in re.findall(r"--param '?(\w+)=", line):
            assert setting in known, line


def test_make_has_every_target_that_the_pages_name() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (name_of(page), target)
        for page in PAGES
        for line in code_of(page)
        for target in re.findall(r"(?:^|&& )make ([a-z]+)", line)
    }
    assert len(named) > 5
    assert [each for each in sorted(named) if each[1] not in targets] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "CHANGELOG"], ids=name_of)
def test_every_parameter_that_a_page_names_is_there(page: Path) -> None:
    keys = {key.replace("[]", "").replace("NAME", "*") for key in reference.parameter_keys()}
    keys |= {key.rpartition(".")[0] for key in keys}
    for line in code_of(page):
        for key in PARAMETER.findall(line):
            named = re.sub(r"(?<=\.)[A-Z]+(?=\.|$)", "*", key)  # such as NAME
            assert any(fnmatch(known, named) or fnmatch(named, known) for known in keys), key


@pytest.mark.parametrize("page", reference.PAGES)
def test_the_reference_is_what_the_code_says(page: str) -> None:
    said = reference.PAGES[page]()
    assert (reference.DOCS / page).read_text() == said, "Run `make docs`."


def test_the_hooks_are_local_and_those_of_make_lint() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    lint = (ROOT / "Makefile").read_text().partition("lint:")[2].partition("\n\n")[0]
    tools = [line.split()[0] for line in lint.splitlines()[1:]]
    assert [entry.split()[0] for entry in entries] == tools
