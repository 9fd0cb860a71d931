"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: int = 1,
    width: int | None = None,
    **options: Any,
) -> None:
    """The first `text` columns hold words, the others numbers. options: of rich's Table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", **options)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < text else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=width).print(table)
