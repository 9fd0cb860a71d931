"""Reports as one HTML file that needs nothing else: light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1d2126; --dim: #5c6570; --line: #dde1e6;
  --lane: #f1f3f5; --first: #2f7de1; --second: #d9822b; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --text: #e6e9ed; --dim: #9aa4b0;
  --line: #30363d; --lane: #1f242a; --first: #5b9df0; --second: #eda04f; } }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { color: var(--dim); }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 2rem; padding: 0; list-style: none; }
.figures li { color: var(--dim); } .figures b { display: block; color: var(--text);
  font-size: 1.3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; }
.text { text-align: left; } th:first-child, td:first-child { padding-left: 0; }
.lanes { display: grid; grid-template-columns: max-content 1fr; gap: .3rem .7rem;
  align-items: center; font-size: .85rem; }
.lane { position: relative; height: 1.1rem; background: var(--lane); border-radius: 3px;
  overflow: hidden; }
.lane i { position: absolute; top: 0; bottom: 0; min-width: 1px; }
.bars { display: flex; align-items: flex-end; gap: 1px; height: 8rem; background: var(--lane);
  border-radius: 3px; }
.bars i { flex: 1; min-width: 1px; max-width: 3rem; }
.axis { display: flex; justify-content: space-between; color: var(--dim); font-size: .8rem; }
.axis b { font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1.5rem; }
figure { margin: 0; } figcaption { font-weight: 500; } .unit { color: var(--dim);
  font-weight: 400; }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 12px; fill: var(--dim); }
.grid { stroke: var(--line); fill: none; }
.series path { stroke: var(--colour); stroke-width: 2; fill: none; }
.series circle { fill: var(--colour); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; padding: 0; list-style: none;
  overflow-wrap: anywhere; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px;
  margin-right: .5rem; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page; parts: HTML below the heading."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> str:
    """Scrolls sideways where it is too wide; the first `text` columns hold words, the others
    numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        tags = [f'{tag} class="text"' if i < text else tag for i in range(len(cells))]
        made = (f"<{t}>{escape(cell)}</{tag}>" for t, cell in zip(tags, cells, strict=True))
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(head, "th")}{body}</table></div>'
