"""The documentation is correct: snippets run, commands exist, links have targets, and outputs are real."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import numpy as np
import pytest
import torch
import yaml

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.config import flatten_settings, load_document, load_embedded
from fednar_ray.config.describe import list_sections
from fednar_ray.config.dotted_keys import SECTIONS
from fednar_ray.config.loading import parse_document
from tests.end_to_end.test_browser import CHROMIUM, QUIET
from tests.support.forked_workers import get_executable
from tests.support.servers import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts" / "documentation"))
from configuration import build_configuration_page  # noqa: E402
from drawings import list_sources, locate_picture  # noqa: E402
from hooks import FETCHED, PAGES  # noqa: E402
from record import CALLED, run, shorten  # noqa: E402
from snippets import DOCS, Block, iter_blocks, list_pages  # noqa: E402

ALL = [block for page in list_pages() for block in iter_blocks(page)]
SHELL = ("console", "sh", "")
INLINE = re.compile(r"`((?:fednar|scripts/)[^`]*)`")
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)|<img[^>]+src=\"([^\"]+)\"")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
PLACEHOLDERS = {"FILE", "NAME", "RUN", "KEY", "SEARCH"}
SHORT = ("federation.rounds=2", "execution.placement=serial")


def name_block(block: Block) -> str:
    return block.place


def select_blocks(*languages: str) -> list[Block]:
    return [block for block in ALL if block.language in languages]


# ——— Python ———

GIVEN: dict[str, Any] = {  # names that the README does not define
    **{name: np.random.default_rng(0).normal(size=(12, 8, 8)).astype(np.float32) for name in ("x0", "x1", "x")},
    **{name: np.arange(12) % 10 for name in ("y0", "y1", "y")},
    "module": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns one tracking store for all pages, because each new one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def directory(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns a new working directory, from which modules can be imported."""
    shutil.copytree(ROOT / "tune_configs", tmp_path / "tune_configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write_files(page: Path, directory: Path) -> None:
    for block in iter_blocks(page):
        if block.title:
            (directory / block.title).write_text(block.text + "\n")


@pytest.mark.parametrize("page", sorted({b.page for b in select_blocks("python")}), ids=lambda page: page.stem)
def test_python_runs_from_top_to_bottom(page: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code runs as written, except that an experiment from a file trains two rounds in this process."""
    load = fr.load
    monkeypatch.setattr(fr, "load", lambda path, overrides=(): load(path, [*overrides, *SHORT]))
    write_files(page, directory)
    names = {"__name__": "page", **(GIVEN if page.name == "README.md" else {})}
    for block in (block for block in iter_blocks(page) if block.language == "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.note is None and block.title is None:
            exec(code, names)  # noqa: S102 - our own page


# ——— YAML ———


@pytest.mark.parametrize("block", select_blocks("yaml"), ids=name_block)
def test_yaml_is_a_valid_experiment_or_a_section_of_one(block: Block) -> None:
    given = yaml.safe_load(block.text)
    ours = {*SECTIONS, *fr.Experiment.model_fields}
    if not isinstance(given, dict) or not ours & set(given):
        return  # a file for another program
    if "experiment" in given:
        parse_document(block.text, block.place, to_search="search" in given)
        return
    sections = load_embedded("digits").raw
    search = {"search": given.pop("search")} if "search" in given else {}
    parse_document(yaml.safe_dump({"experiment": {**sections, **given}, **search}), block.place)


# ——— commands ———


def iter_commands() -> Iterator[tuple[str, Path, str]]:
    for block in select_blocks(*SHELL):
        if block.note is not None and block.note[0] == "again":
            continue  # these commands are run, so they need no check
        for line in block.commands:
            if block.language or line.startswith(("fednar ", "scripts/")):
                yield block.place, block.page, line
    for page in list_pages():
        for found in INLINE.finditer(page.read_text()):
            yield str(page.relative_to(ROOT)), page, found[1]


def iter_simple_commands(line: str) -> Iterator[list[str]]:
    """Yields the commands of a line, without placeholders."""
    line = re.sub(r"\[[A-Za-z=]*(?: …)?\]|…", "", line)
    words = shlex.split(line.replace(";", " ; "), comments=True)
    command: list[str] = []
    for word in [*words, ";"]:
        if word in (";", "&&", "|"):
            yield command
            command = []
        else:
            command.append(word)


@pytest.mark.parametrize(
    ("place", "page", "line"), [*dict.fromkeys(iter_commands())], ids=lambda value: str(value)[-60:]
)
def test_a_command_exists_and_accepts_its_arguments(place: str, page: Path, line: str) -> None:
    for words in iter_simple_commands(line):
        if words and words[0].startswith("scripts/") and "/" not in words[0].removeprefix("scripts/").rstrip("/"):
            assert (ROOT / words[0]).exists(), f"{place}: {words[0]}"
        if "fednar" in words:
            check_fednar(place, page, words[words.index("fednar") + 1 :])


def check_fednar(place: str, page: Path, words: list[str]) -> None:
    command: click.Command = cli
    path = ["fednar"]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{place}: fednar has no command {words[0]}"
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if isinstance(command, click.Group) or not words or {"-h", "--help", "--version"} & set(words):
        return
    given = command.make_context(" ".join(path), words, parent=click.Context(cli)).params.get("arguments") or ()
    if path[-1] not in ("run", "compare", "tune", "inspect"):
        return
    overrides = [word for word in given if "=" in word and not word.startswith("key=")]
    files = [word for word in given if "=" not in word and word not in PLACEHOLDERS]
    to_search = path[-1] == "tune"
    titled = {block.title: block.text for block in iter_blocks(page) if block.title}
    if files and files[0] in titled:
        parse_document(titled[files[0]], place, overrides, to_search=to_search)
    elif files and any(f"wrote {files[0]}" in block.text for block in iter_blocks(page)):
        return  # a file that fednar init writes; its own tests run it
    elif files and not files[0].endswith("best.yaml"):
        load_document(ROOT / files[0], overrides, to_search=to_search)
    else:
        load_embedded("compare" if path[-1] == "compare" else "digits", overrides, to_search=to_search)


# ——— outputs ———


@pytest.mark.parametrize("block", select_blocks("console"), ids=name_block)
def test_a_console_block_shows_the_output_of_its_commands(block: Block) -> None:
    lines = block.text.splitlines()
    assert lines[0].startswith("$ "), f"{block.place}: a console block begins with a command"
    assert len(lines) > len(block.commands), f"{block.place}: nothing was printed; run scripts/docs record {block.page}"


@pytest.mark.parametrize(
    "block", [b for b in select_blocks("console") if b.note and b.note[0] == "again"], ids=name_block
)
@pytest.mark.usefixtures("processes")
def test_reproducible_output_is_printed_again(block: Block, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell runs the commands as typed; the ``fednar`` that it finds forks."""
    monkeypatch.setattr("record.BIN", Path(get_executable()).parent)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    write_files(block.page, directory)
    assert "\n".join(run(block, str(directory))) == block.text


@pytest.mark.parametrize(
    ("printed", "recorded", "shown"),
    [
        ("abc ef", "x…yz", "a…ef"),
        ("abcd f", "…z", "…f"),
        ("ab defg", "x…z", "a…defg"),  # a table is shown from its first line
        ("abcdef", "x…z", "abcdef"),
        ("abcdef", "x…", "a…"),
        ("abc", "x…yz", "abc"),  # nothing would be left out
        ("abcdef", "xyz", "abcdef"),
    ],
)
def test_an_output_is_shortened_as_the_recorded_one_is(printed: str, recorded: str, shown: str) -> None:
    assert shorten(list(printed), list(recorded)) == list(shown)


def test_no_page_contains_the_name_of_a_machine() -> None:
    for page in list_pages():
        found = re.search(r"(?<![\w.])/(?:tmp|root|work)/|(?<![\w.])/home/(?!you/)", page.read_text())
        assert found is None, f"{page.relative_to(ROOT)}: {found}"
    assert CALLED.startswith("/home/you/")


SCRIPTS = {"bench": "benchmarks/compare.py", "chaos": "chaos_runs/chaos.py", "check": None, "demo": None, "docs": None,
           "privacy_audit": "private/audit.py", "privacy_cost": "benchmarks/privacy_cost.py",
           "privacy_study": "private/study.py", "reproduce": "reproduction/reproduce.py",
           "screenshots": "browser/screenshots.py", "secure_cost": "benchmarks/secure_cost.py",
           "stress": "stress_runs/stress.py",
           "tuning_example": "tuning/example.py"}  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_a_script_names_its_options_and_installs_nothing(script: str, tmp_path: Path) -> None:
    """The script runs in a copy without an environment; installing one would create .venv."""
    copy = tmp_path / "scripts"
    copy.mkdir()
    for name in (script, "launch.sh", "setup"):
        shutil.copy(ROOT / "scripts" / name, copy)
    done = subprocess.run([copy / script, "--help"], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip()
    assert not (tmp_path / ".venv").exists()
    program = SCRIPTS[script]
    code = (ROOT / "scripts" / program).read_text() if program else ""
    options = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', code))
    assert options <= set(re.findall(r"--[a-z-]+", done.stdout))


# ——— drawings ———


def test_every_drawing_is_rendered_and_every_picture_has_a_drawing() -> None:
    drawn = {locate_picture(source).name for source in list_sources()}
    assert drawn
    assert drawn == {path.name for path in (DOCS / "images").glob("drawing-*.svg")}


# ——— pages ———


@pytest.mark.parametrize("page", list_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_have_targets(page: Path) -> None:
    for match in LINK.finditer(page.read_text()):
        target, _, anchor = (match[1] or match[2]).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.relative_to(ROOT)}: {target}"
        if anchor:
            assert anchor in list_anchors(path), f"{page.relative_to(ROOT)}: {target}#{anchor}"


@cache
def list_anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings as GitHub shows it. A generated page has those of its file in docs/."""
    found: Counter[str] = Counter()
    anchors = set()
    for heading in HEADING.findall(FENCED.sub("", page.read_text())):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        anchors.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return anchors


def test_generated_pages_have_a_file_that_a_plain_checkout_shows() -> None:
    for path in PAGES:
        assert (DOCS / path).is_file(), path


def test_the_tutorial_names_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = set(re.findall(r"pip install '\.\[(\w+)\]'", (DOCS / "tutorial.md").read_text()))
    assert named == set(project["optional-dependencies"])


def test_the_configuration_page_describes_every_key_with_an_example() -> None:
    page = build_configuration_page()
    for key in flatten_settings(load_embedded("digits").experiment):
        assert f"`{key}`" in page
    for section in list_sections():
        for key in section.list_keys():
            assert f"`{key.name}`\n:   " in page
            assert f"*Example*: `{key.example}`\n" in page


def test_every_public_name_is_in_the_python_reference() -> None:
    page = (DOCS / "reference" / "python.md").read_text()
    shown = set(re.findall(r"^::: fednar_ray\.(\w+)$", page, re.MULTILINE))
    errors = {
        name for name in fr.__all__ if isinstance(getattr(fr, name), type) and issubclass(getattr(fr, name), Exception)
    }
    assert set(fr.__all__) - errors - {"Experiment"} == shown  # Experiment: every key is in the configuration
    assert "::: fednar_ray.core.errors" in page


def test_every_metric_of_a_round_is_explained(directory: Path) -> None:
    explained = set(re.findall(r"`([a-z0-9_/]+)`", (DOCS / "figures.md").read_text()))
    overrides = (*SHORT, "evaluation.federated=true", "availability.speed={}")
    (*_, report) = fr.iter_rounds(load_embedded("digits", overrides).experiment)
    assert {name.removeprefix("test_").removeprefix("validation_") for name in report.metrics} <= explained


# ——— the built site ———

SOUGHT = {
    "own dataset": "own-data.html",
    "own data": "own-data.html",
    "slurm": "cluster.html",
    "resume": "resume.html",
    "gpu": "placement.html",
    "effective weight decay": "figures.html",
}
"""What a reader types into the search, and the page that must be among the first two that it finds."""
FORMULAS = ("concepts.html", "plug-in.html", "choosing-a.html")
LOOK = """<!DOCTYPE html><body><pre id="found"></pre>%s<script>
const look = page => ({
  pages: [...page.querySelectorAll(".md-search-result__item > .md-search-result__link")].map(each => each.href),
  formulas: page.querySelectorAll(".arithmatex").length,
  rendered: page.querySelectorAll(".arithmatex > .katex, .arithmatex > .katex-display").length,
  wrong: page.querySelectorAll(".katex-error").length,
  fonts: [...page.fonts].filter(each => each.family.startsWith("KaTeX")).map(each => each.status),
  width: page.documentElement.scrollWidth,
});
setTimeout(() => {
  const frames = [...document.querySelectorAll("iframe")];
  const found = Object.fromEntries(frames.map(each => [each.name, look(each.contentDocument)]));
  document.getElementById("found").textContent = JSON.stringify(found);
}, 20000);
</script></body>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the site as scripts/docs does; warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--config-file", ROOT / ".mkdocs.yml"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(
        [*command, "--site-dir", folder], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_the_built_site_has_no_dead_link(site: Path) -> None:
    texts = {page: page.read_text() for page in site.rglob("*.html")}
    anchors = {page: {unescape(found) for found in re.findall(r'\bid="([^"]+)"', text)} for page, text in texts.items()}
    for page, text in texts.items():
        for link in re.findall(r'\b(?:href|src)="([^"]*)"', text):
            target, _, anchor = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            path = (page.parent / target.partition("?")[0]).resolve() if target else page
            assert path.exists(), f"{page.relative_to(site)}: {link}"
            assert not anchor or path.suffix != ".html" or anchor in anchors[path], f"{page.relative_to(site)}: {link}"


def test_the_search_index_has_a_section_with_all_words_that_are_sought(site: Path) -> None:
    sections = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    for query, page in SOUGHT.items():
        texts = [f"{each['title']} {each['text']}".lower() for each in sections if each["location"].startswith(page)]
        assert any(all(word in text for word in query.split()) for text in texts), query


@pytest.fixture(scope="module")
def seen(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns what Chromium shows of the site's files, without a server: results of searches, and pages on a phone."""
    if CHROMIUM is None:
        pytest.skip("Debian's package chromium is not installed")
    addresses = {query: f"index.html?q={query.replace(' ', '%20')}" for query in SOUGHT}
    addresses |= {page: page for page in (*FORMULAS, "index.html", "browse.html")}
    frames = (
        f'<iframe name="{name}" src="{url}" width="390" height="900"></iframe>' for name, url in addresses.items()
    )
    (site / "look.html").write_text(LOOK % "".join(frames), encoding="utf-8")
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    command = [CHROMIUM, "--headless", *QUIET, profile, "--allow-file-access-from-files", "--virtual-time-budget=40000"]
    shown = subprocess.run(
        [*command, "--dump-dom", (site / "look.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    (site / "look.html").unlink()
    found = re.search(r'<pre id="found">(.+?)</pre>', shown.stdout, re.DOTALL)
    assert found is not None, shown.stdout[-500:]
    looked: dict[str, Any] = json.loads(unescape(found[1]))
    return looked


@pytest.mark.parametrize("query", SOUGHT)
def test_the_search_finds_the_page_first(query: str, seen: dict[str, Any]) -> None:
    """This is the theme's own search, in a browser."""
    first = [Path(url.partition("?")[0]).name for url in seen[query]["pages"][:2]]
    assert SOUGHT[query] in first


@pytest.mark.parametrize("page", FORMULAS)
def test_formulas_are_rendered_with_the_bundled_katex(page: str, seen: dict[str, Any]) -> None:
    found = seen[page]
    assert found["rendered"] == found["formulas"] > 0
    assert found["wrong"] == 0
    assert "loaded" in found["fonts"]
    assert "error" not in found["fonts"]


@pytest.mark.parametrize("page", [*FORMULAS, "index.html", "browse.html"])
def test_a_page_fits_the_width_of_a_phone(page: str, seen: dict[str, Any]) -> None:
    assert seen[page]["width"] <= 390


@pytest.mark.parametrize(
    ("markup", "fetches"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ("@font-face { src: url(https://fonts.example/x.woff2) }", True),
        ('<a href="https://arxiv.org/abs/2310.03163">the paper</a>', False),
        ('<link rel="canonical" href="https://docs.example/">', False),
        ('<img src="images/comparison.png">', False),
    ],
)
def test_a_site_that_fetches_from_the_network_is_detected(markup: str, fetches: bool) -> None:
    assert bool(FETCHED.search(markup)) is fetches


def test_the_citation_names_the_paper_and_the_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{cited["version"]}"' in (ROOT / "pyproject.toml").read_text()
    (paper,) = cited["references"]
    families = [author["family-names"] for author in paper["authors"]]
    assert families == ["Li", "Li", "Tian", "Ho", "Xing", "Wang"]
