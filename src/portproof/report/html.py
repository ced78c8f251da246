"""The HTML page: one file, no resource from anywhere else. Templates, style and script stand in `templates/`."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portproof.files import write_text

if TYPE_CHECKING:
    import jinja2

    from portproof.matrix.facts import Matrix
    from portproof.report import Report

_TEMPLATES = Path(__file__).parent / "templates"
# What HTML may not hold at all, as a character or by reference; a lone surrogate cannot even be encoded.
_NOT_HTML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def write_page(report: Report, path: Path | str) -> None:
    """Write the page of one run, complete or not at all; raises `OSError` if it cannot be written."""
    write_text(Path(path), to_html(report))


def to_html(report: Report) -> str:
    """The page of one run."""
    from portproof.report.html_page import SIGNS, WORDS, page_of

    return _rendered("check.html.jinja", page=page_of(report), signs=SIGNS, words=WORDS)


def write_matrix_page(matrix: Matrix, path: Path | str) -> None:
    """Write the page of a matrix, complete or not at all; raises `OSError` if it cannot be written."""
    write_text(Path(path), matrix_to_html(matrix))


def matrix_to_html(matrix: Matrix) -> str:
    """The page of a matrix."""
    from portproof.report.html_matrix import page_of_matrix
    from portproof.report.html_page import SIGNS, WORDS

    return _rendered("matrix.html.jinja", page=page_of_matrix(matrix), signs=SIGNS, words=WORDS)


def _rendered(template: str, **values: Any) -> str:
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    # Nothing but this very style and script is ever applied or run, not even what a name might smuggle in.
    allowed = f"style-src {_hash(style)}; script-src {_hash(script)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    return _environment().get_template(template).render(style=style, script=script, policy=policy, **values)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def _clean(value: object) -> object:
    """Text without what HTML cannot hold; what is markup already is ours."""
    return _NOT_HTML.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
