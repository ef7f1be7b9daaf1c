"""The documentation as data: blocks, headings, tables and links of a Markdown page."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# the data set, model and run names that examples use, and what stands for them in the tests
STAND_INS = {"asset:all-MiniLM-L6-v2": "model", "asset:rotten-tomatoes": "reviews.jsonl"}
FENCE = re.compile(r"^```(\w*)\s*$")
HEADING = re.compile(r"^(#+) (.+?)\s*$")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, the line it starts on, and the headings above it."""

    page: str
    language: str
    text: str
    line: int
    section: str
    subsection: str

    def __str__(self):
        return f"{self.page}:{self.line}"

    def run(self, namespace):
        """Execute Python; a traceback names the page and its line."""
        source = "\n" * self.line + stood_in(self.text)
        exec(compile(source, str(REPOSITORY / self.page), "exec"), namespace)


@dataclass(frozen=True)
class Table:
    """A table: its header and rows as lists of cells."""

    section: str
    subsection: str
    header: list[str]
    rows: list[list[str]]

    def column(self, name):
        """The cells under one header."""
        return [row[self.header.index(name)] for row in self.rows]


@dataclass
class Page:
    """One Markdown file, read."""

    name: str
    text: str
    blocks: list[Block] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    headings: list[tuple[int, str]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def blocks_of(self, *languages, section=None):
        """The blocks in these languages, of one section or of all."""
        return [
            block
            for block in self.blocks
            if block.language in languages and section in (None, block.section, block.subsection)
        ]

    def table(self, section, index=0):
        """A table of a section or subsection."""
        return [t for t in self.tables if section in (t.section, t.subsection)][index]

    def section_text(self, title):
        """The text under a heading, up to the next of its level or above."""
        lines = self.text.splitlines()
        start = next(
            i for i, line in enumerate(lines) if re.fullmatch(rf"#+ {re.escape(title)}", line)
        )
        level = len(lines[start].partition(" ")[0])
        end = next(
            (
                i
                for i in range(start + 1, len(lines))
                if (match := HEADING.match(lines[i])) and len(match[1]) <= level
            ),
            len(lines),
        )
        return "\n".join(lines[start:end])


def read(name):
    """A page by its path in the repository."""
    page = Page(name, (REPOSITORY / name).read_text(encoding="utf-8"))
    section = subsection = ""
    fence, body, cells = None, [], []
    for number, line in enumerate([*page.text.splitlines(), ""], 1):
        if fence is not None:
            if line.strip() == "```":
                text = "\n".join(body) + "\n"
                page.blocks.append(Block(name, fence[0], text, fence[1], section, subsection))
                fence = None
            else:
                body.append(line)
            continue
        if opened := FENCE.match(line):
            fence, body = (opened[1], number), []
        elif heading := HEADING.match(line):
            page.headings.append((len(heading[1]), heading[2]))
            if len(heading[1]) <= 2:
                section, subsection = heading[2], ""
            else:
                subsection = heading[2]
        page.links += LINK.findall(line)
        if line.startswith("|"):
            cells.append(_cells(line))
        elif cells:
            page.tables.append(Table(section, subsection, cells[0], cells[2:]))
            cells = []
    return page


def _cells(line):
    # a bar inside a cell is written \|
    parts = re.split(r"(?<!\\)\|", line.strip().strip("|"))
    return [part.strip().replace("\\|", "|") for part in parts]


def code_names(cell):
    """The `names` in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def stood_in(text):
    """An example with what has to be fetched replaced by what stands in the folder."""
    for name, local in STAND_INS.items():
        text = text.replace(name, local)
    return text


def ftrt_commands(text):
    """The arguments of each `ftrt` line of a console block."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == "ftrt"]
