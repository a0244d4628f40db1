"""One page -> its main text, deterministically: a fast pass for every page, a slow one where the fast pass shows it failed.

resiliparse's main-content heuristic costs milliseconds and is right on most pages; trafilatura is better on articles with
unusual markup and ten times as slow. The fast result is distrusted by what it looks like - far too little of the page's
visible text, or mostly links - never by how long anything took.
"""

import re
from dataclasses import dataclass
from html import unescape

import trafilatura
from resiliparse.extract.html2text import extract_plain_text

from pipelines.extract.charset import decode
from pipelines.extract.depth import too_deep
from pipelines.extract.metadata import metadata_of

SHORT_TEXT = 400  # characters of main content below which a page with much more visible text is looked at again
MUCH_MORE = 4  # visible text over main content
LINK_SHARE = 0.5  # of the main content's characters inside links
SLOW_LIMIT = 2 << 20  # characters of HTML beyond which the slow pass is not tried
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_LINE_ENDS = re.compile(r"[ \t\u00a0]+\n")
_LABEL = re.compile(r"<a\b[^>]*>\s*(?:<(?:span|b|strong|em|i)\b[^>]*>)?([^<]{1,300})<", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
# Sphinx and docutils append a pilcrow or hash to every heading as a link to itself.
_HEADING_LINK = re.compile(r"[ \t]*¶[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Extraction:
    """`text` is "" when nothing could be extracted; `failure` then says why ("too_deep", "no_text").

    `method` names the pass whose text was taken ("main", "fallback", "plain"). `license`, `canonical_url` and
    `language_hint` are "" where the page says nothing.
    """

    text: str
    title: str = ""
    charset: str = ""
    license: str = ""
    canonical_url: str = ""
    language_hint: str = ""
    method: str = "main"
    failure: str = ""


def extract(body: bytes, url: str = "", content_type: str | None = None) -> Extraction:
    """Main text and metadata of one HTML page.

    Args:
        body: the page's bytes, transfer and content encodings undone.
        url: where it was captured; resolves relative addresses.
        content_type: the HTTP header; its charset ranks between a byte-order mark and <meta>.
    """
    if too_deep(body):
        return Extraction("", failure="too_deep")
    html, charset = decode(body, content_type)
    text = tidy(extract_plain_text(html, main_content=True, alt_texts=False))
    method = "main"
    if _distrusted(html, text) and len(html) <= SLOW_LIMIT:
        second = tidy(trafilatura.extract(html, url=url or None, include_comments=False, deduplicate=False, fast=True) or "")
        if len(second) > len(text) or (len(second) >= SHORT_TEXT and _link_share(html, text) > LINK_SHARE):
            text, method = second, "fallback"
    about = metadata_of(html, url)
    return Extraction(
        text=text,
        title=about.title,
        charset=charset,
        license=about.license,
        canonical_url=about.canonical_url,
        language_hint=about.language_hint,
        method=method,
        failure="" if text else "no_text",
    )


def tidy(text: str) -> str:
    """Trailing space, control characters, heading anchors and runs of blank lines go; nothing else changes."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _HEADING_LINK.sub("", text) if "¶" in text else text
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("\n", text)).strip()


def _distrusted(html: str, text: str) -> bool:
    if len(text) < SHORT_TEXT:
        visible = extract_plain_text(html, main_content=False, preserve_formatting=False, alt_texts=False)
        return len(visible) > MUCH_MORE * max(len(text), SHORT_TEXT // 2)
    return _link_share(html, text) > LINK_SHARE


def _link_share(html: str, text: str) -> float:
    """Share of the text's characters in lines that are exactly a link's label on the page."""
    lines = [stripped for line in text.split("\n") if (stripped := line.strip(" •-*\t"))]
    labels = {" ".join(unescape(label).split()) for label in _LABEL.findall(html)}
    return sum(len(line) for line in lines if line in labels) / len(text) if text else 0.0
