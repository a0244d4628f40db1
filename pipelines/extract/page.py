"""One page -> its main text, deterministically: bytes to text, tags to blocks, blocks chosen, the chosen written.

No step has a time limit; what is bounded is how much is looked at (`layout`), and every step is linear in it.
"""

import re
from dataclasses import dataclass

from pipelines.extract.charset import decode
from pipelines.extract.choose import main_text
from pipelines.extract.formulas import keep_formulas
from pipelines.extract.layout import TooManyBlocks, lay_out
from pipelines.extract.metadata import metadata_of
from pipelines.extract.writer import write_text

_BLANK_LINES = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)*")
_LINE_ENDS = re.compile(r"[ \t]+\n")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
# Sphinx and docutils append a pilcrow or hash to every heading as a link to itself.
_HEADING_LINK = re.compile(r"[ \t]*¶[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Extraction:
    """`text` is "" when nothing could be extracted; `failure` then says why ("too_many_blocks", "no_text").

    `license`, `canonical_url` and `language_hint` are "" where the page says nothing.
    """

    text: str
    title: str = ""
    charset: str = ""
    license: str = ""
    canonical_url: str = ""
    language_hint: str = ""
    failure: str = ""


def extract(body: bytes, url: str = "", content_type: str | None = None) -> Extraction:
    """Main text and metadata of one HTML page.

    Args:
        body: the page's bytes, transfer and content encodings undone.
        url: where it was captured; resolves relative addresses.
        content_type: the HTTP header; its charset ranks between a byte-order mark and <meta>.
    """
    html, charset = decode(body, content_type)
    try:
        page = lay_out(keep_formulas(html).encode("utf-8", "replace"))
    except TooManyBlocks:
        return Extraction("", charset=charset, failure="too_many_blocks")
    text = tidy(write_text(page, main_text(page)))
    about = metadata_of(page, url)
    return Extraction(
        text=text,
        title=about.title,
        charset=charset,
        license=about.license,
        canonical_url=about.canonical_url,
        language_hint=about.language_hint,
        failure="" if text else "no_text",
    )


def tidy(text: str) -> str:
    """Trailing space, control characters, heading anchors and runs of blank lines go, no-break spaces become spaces; nothing else changes."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " "))
    text = _HEADING_LINK.sub("", text) if "¶" in text else text
    text = _LINE_ENDS.sub("\n", text) if " \n" in text or "\t\n" in text else text
    return _BLANK_LINES.sub("\n\n", text).strip()
