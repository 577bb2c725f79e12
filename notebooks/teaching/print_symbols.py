"""Sets the hand-out on one sheet of A4: `python notebooks/teaching/print_symbols.py` writes symbols.pdf."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
SIZE, LEADING, WIDTH, HEIGHT, MARGIN = 8, 9.5, 595, 842, 24  # type, lines and sheet, in points
COLUMNS = {5: (76, 103, 47, 244, 77), 4: (97, 262, 108, 80)}  # of a table with so many cells in a row
CHINESE = ("Noto Sans CJK SC", "Source Han Sans SC", "Microsoft YaHei", "PingFang SC", "SimHei", "WenQuanYi Zen Hei",
           "Noto Sans CJK JP", "Hiragino Sans GB", "Arial Unicode MS")  # fmt: skip


def chinese_fonts() -> list[str]:
    """The fonts of this machine that hold Chinese characters, the best first."""
    names = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in CHINESE if name in names]


class Sheet:
    """An A4 figure that is filled from the top."""

    def __init__(self):
        self.figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        self.y, self.pen = HEIGHT - MARGIN, FigureCanvasAgg(self.figure).get_renderer()

    def write(self, x: float, y: float, text: str, **style):
        return self.figure.text(x / WIDTH, y / HEIGHT, text, va="baseline", fontsize=style.pop("size", SIZE), **style)

    def width(self, text: str, **style) -> float:
        drawn = self.write(0, 0, text, **style)
        box = drawn.get_window_extent(self.pen)
        drawn.remove()
        return box.width

    def wrap(self, text: str, room: float, **style) -> list[str]:
        """Lines that are at most `room` points wide; formulas are not broken."""
        if self.width(text, **style) <= room:
            return [text]
        lines = [""]
        for word in re.findall(r"(?:\$[^$]*\$|[^\s$])+|\S", text):
            longer = f"{lines[-1]} {word}".strip()
            fits = self.width(longer, **style) <= room
            lines = [*lines[:-1], longer] if fits or not lines[-1] else [*lines, word]
        return lines

    def row(self, cells: list[str], **style) -> None:
        """A row of a table, or a paragraph if there is one cell."""
        rooms = COLUMNS.get(len(cells), (WIDTH - 2 * MARGIN,))
        wrapped = [self.wrap(cell, room - 5, **style) for cell, room in zip(cells, rooms)]
        for i, lines in enumerate(wrapped):
            for k, line in enumerate(lines):
                self.write(MARGIN + sum(rooms[:i]), self.y - SIZE - k * LEADING, line, **style)
        self.y -= max(map(len, wrapped)) * LEADING + 3.2
        rule = plt.Line2D(
            [MARGIN / WIDTH, 1 - MARGIN / WIDTH], [(self.y + 0.6) / HEIGHT] * 2, color="0.8", linewidth=0.4
        )
        self.figure.add_artist(rule)


def draw(markdown: str) -> Sheet:
    """Title, paragraphs and tables of a page of Markdown; marks of code and of emphasis are left out."""
    sheet = Sheet()
    lines = markdown.splitlines()
    for before, line in zip(["", *lines], lines):
        if not line or line.startswith("|---"):
            continue
        plain = re.sub(r"`|\*\*", "", line)
        if line.startswith("# "):
            sheet.write(MARGIN, sheet.y - 13, plain[2:], size=13, weight="bold")
            sheet.y -= 20
            continue
        cells = [cell.strip() for cell in plain.strip("|").split("|")]
        heading = line.startswith("|") and not before.startswith("|")
        sheet.y -= 4 * (heading or len(cells) == 1)
        sheet.row(cells, weight="bold" if heading else "normal")
    return sheet


if __name__ == "__main__":
    fonts = chinese_fonts()
    if not fonts:
        raise SystemExit(f"no font with Chinese characters was found; install one of: {', '.join(CHINESE)}")
    with plt.rc_context({"font.family": [*fonts[:1], "DejaVu Sans"], "mathtext.fontset": "dejavusans"}):
        sheet = draw((HERE / "symbols.md").read_text(encoding="utf-8"))
        sheet.figure.savefig("symbols.pdf")
    print(f"symbols.pdf: one sheet of A4, {sheet.y - MARGIN:.0f} points are free above the margin")
