"""Turn a command's terminal output into an SVG picture: script -qc "COMMAND" /dev/null | python docs/terminal.py TITLE

Reads standard input and writes the picture to standard output. Knows bold; a carriage return starts a line anew.
"""

from __future__ import annotations

import re
import sys
from html import escape

COLUMN, ROW, MARGIN, BAR = 7.83, 18, 18, 34  # pixels; a column is 0.6 em of 13 px, the width of common monospaced fonts
STYLE = """\
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d6dbe5;
       white-space: pre; }
.bold { font-weight: bold; fill: #ffffff; } .title { fill: #8b93a5; } .prompt { fill: #7fd1a3; }
"""


def spans(line: str) -> list[tuple[str, bool]]:
    """A line's pieces of text, each with whether it is bold; other escape sequences are dropped."""
    pieces, bold = [], False
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z])", line):
        if part.startswith("\x1b"):
            bold = part == "\x1b[1m" if part.endswith("m") else bold
        elif part:
            pieces.append((part, bold))
    return pieces


def picture(output: str, title: str) -> str:
    """The SVG of a terminal window that shows `title` as the command typed and `output` below."""
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in output.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    columns = max(sum(len(text) for text, _ in spans(line)) for line in [*lines, title + "  "])
    width, height = round(columns * COLUMN + 2 * MARGIN), BAR + ROW * (len(lines) + 1) + MARGIN
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#171b24"/>',
        *(f'<circle cx="{MARGIN + 4 + 18 * i}" cy="17" r="5.5" fill="#3b4252"/>' for i in range(3)),
        f'<text x="{MARGIN}" y="{BAR + ROW - 5}"><tspan class="prompt">$</tspan> {escape(title)}</text>',
    ]
    for number, line in enumerate(lines, start=2):
        if line:
            body = "".join(f'<tspan class="bold">{escape(t)}</tspan>' if bold else escape(t) for t, bold in spans(line))
            svg.append(f'<text x="{MARGIN}" y="{BAR + ROW * number - 5}" xml:space="preserve">{body}</text>')
    return "\n".join([*svg, "</svg>", ""])


if __name__ == "__main__":
    sys.stdout.write(picture(sys.stdin.read(), " ".join(sys.argv[1:]) or "q8c"))
