"""A self-contained HTML page: its style, tables and pictures, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --rule: #8884; --soft: #8881 }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; max-width: 70rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word }
h1 { line-height: 1.2; margin: .5rem 0 }
h2 { margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--rule) }
nav a { margin-right: 1rem; display: inline-block; padding: .4rem 0 }
.scroll { overflow-x: auto; margin: .5rem 0 1.5rem }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap }
th { background: var(--soft) }
th:first-child, td:first-child, .settings td { text-align: left }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas }
.settings td { white-space: normal; overflow-wrap: anywhere; vertical-align: top }
figure { margin: 1rem 0 2rem }
figure img { display: block; background: #fff; border-radius: 4px }
.plot img { width: 100%; min-width: 36rem; height: auto }
.sheets { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)) }
.sheets figure { margin: 0 }
.sheets img { width: 100%; height: auto }
figcaption { font-size: .875rem; opacity: .8 }
"""


def page(title: str, lead: str, sections: Mapping[str, str]) -> str:
    """The whole page from plain title and lead and from sections {title: HTML}."""
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(
        f'<section id="{name.lower()}"><h2>{name}</h2>\n{text}</section>\n'
        for name, text in sections.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n<nav>{links}</nav>\n"
        f"<main>\n{body}</main></body></html>\n"
    )


def markdown_to_html(text: str) -> str:
    """The markdown of section.py: its headings but the first, paragraphs and tables."""
    parts, cells = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells.append([cell.strip() for cell in line.strip("| ").split("|")])
            continue
        if cells:  # their second row is the rule
            parts.append(table(cells[0], cells[2:]))
            cells = []
        if line.startswith("## "):
            parts.append(f"<h3>{escape(line[3:])}</h3>\n")
        elif line and not line.startswith("# "):
            text = line.replace("\\*", "*")
            parts.append(f"<p>{escape(text)}</p>\n")
    return "".join(parts)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    """A table of plain text that scrolls by itself where the screen is narrow."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table class="{style}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def image(path: Path, alternative: str) -> str:
    """An <img> that holds the PNG or JPEG itself."""
    kind = {".jpg": "jpeg", ".png": "png"}[path.suffix]
    with Image.open(path) as picture:
        width, height = picture.size
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(alternative)}">'
    )
