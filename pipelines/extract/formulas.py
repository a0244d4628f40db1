"""Formulas as their TeX source, before the page is laid out: MathML, MathJax and KaTeX.

A formula on a page is drawn by script or style, and its characters read as text are noise ("E=mc2E = mc^2"). What the author wrote is kept
instead: the TeX annotation of a MathML tree, its `alttext`, the source in <script type="math/tex">, else the tree's own symbols linearised.
Only pages that mention any of these are looked at. Every scan is linear, whatever is left unclosed.
"""

import re
from html import escape, unescape

_MATH = re.compile(r"<(/?)(?:[a-z]+:)?math\b([^<>]*)>", re.IGNORECASE)
_SOURCE = re.compile(r"<script\b[^<>]{0,500}?\btype\s*=\s*[\"']?math/tex([^\"'<>]{0,100})[^<>]{0,500}>", re.IGNORECASE)
_SCRIPT_END = re.compile(r"</script\s*>", re.IGNORECASE)
_ANNOTATION = re.compile(r"<annotation\b[^<>]{0,500}?\bencoding\s*=\s*[\"'](?:application/x-)?(?:la)?tex[\"'][^<>]*>([^<]*)", re.IGNORECASE)
_OTHER_ANNOTATION = re.compile(r"<annotation(?:-xml)?\b.*", re.IGNORECASE | re.DOTALL)
_ALTTEXT = re.compile(r"\balttext\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.IGNORECASE)
_BLOCK = re.compile(r"\bdisplay\s*=\s*[\"']?block|mode\s*=\s*display", re.IGNORECASE)
_DRAWN = re.compile(r"(<(?:span|div)\b[^<>]{0,500}?\bclass\s*=\s*[\"']?)(?=MathJax|MJX|mjx-|katex-html)", re.IGNORECASE)
_ASSISTIVE = re.compile(r"MJX_Assistive_MathML[^<>]{0,200}>\s*$", re.IGNORECASE)
_PIECE = re.compile(r"<\s*(/?)\s*(?:[a-z]+:)?(\w+)[^<>]*?(/?)>|([^<]+)", re.IGNORECASE)
_STYLE = re.compile(r"\{\\(?:displaystyle|textstyle)\s*(.*)\}", re.DOTALL)
# What stands between the children of an element of presentation MathML.
_JOINED = {"mfrac": "/", "msup": "^", "msub": "_", "mover": "^", "munder": "_", "msubsup": "_^", "munderover": "_^"}


def keep_formulas(html: str) -> str:
    """The page with each formula as <tex>source</tex> in place of its markup, and its drawn twins marked as never text."""
    if "math" not in html:
        return html
    scripted = "math/tex" in html
    if not scripted and "<math" not in html and ":math" not in html:
        return html
    if scripted:
        html = _from_scripts(html)
    if scripted or "katex-html" in html or "mjx-" in html:
        html = _DRAWN.sub(r"\1drawnformula ", html)
    return _from_trees(html, scripted)


def _from_scripts(html: str) -> str:
    pieces, at = [], 0
    while (opening := _SOURCE.search(html, at)) and (closing := _SCRIPT_END.search(html, opening.end())):
        pieces += [html[at : opening.start()], _tex(unescape(html[opening.end() : closing.start()]), bool(_BLOCK.search(opening.group(1))))]
        at = closing.end()
    return "".join([*pieces, html[at:]])


def _from_trees(html: str, scripted: bool) -> str:
    """Each outermost <math> ... </math>; one left open ends nowhere and is left as it is."""
    pieces, at, opening = [], 0, None
    for tag in _MATH.finditer(html):
        if not tag.group(1):
            opening = opening or tag
        elif opening:
            pieces.append(html[at : opening.start()])
            drawn = scripted and _ASSISTIVE.search(html, max(0, opening.start() - 300), opening.start())  # its script has been read
            if not drawn:
                pieces.append(_tex(_source(opening.group(2), html[opening.end() : tag.start()]), bool(_BLOCK.search(opening.group(2)))))
            at, opening = tag.end(), None
    return "".join([*pieces, html[at:]])


def _source(attributes: str, inside: str) -> str:
    if annotation := _ANNOTATION.search(inside):
        source = unescape(annotation.group(1))
    elif alternative := _ALTTEXT.search(attributes):
        source = unescape(alternative.group(1) or alternative.group(2) or "")
    else:
        return linearise(inside)
    source = " ".join(source.split())
    styled = _STYLE.fullmatch(source)  # MediaWiki wraps every formula
    return styled.group(1).strip() if styled else source


def linearise(mathml: str) -> str:
    """Presentation MathML as one line: fractions with "/", scripts with "^" and "_", roots by name, parentheses where a group has parts."""
    open_elements: list[tuple[str, list[str]]] = [("math", [])]
    for piece in _PIECE.finditer(_OTHER_ANNOTATION.sub("", mathml)):
        closing, name, alone, text = piece.groups()
        if text is not None:
            if text.strip():
                open_elements[-1][1].append(unescape(text).strip())
        elif alone:
            continue
        elif not closing:
            open_elements.append((name.lower(), []))
        elif len(open_elements) > 1:
            element, parts = open_elements.pop()
            open_elements[-1][1].append(_joined(element, [part for part in parts if part]))
    while len(open_elements) > 1:
        element, parts = open_elements.pop()
        open_elements[-1][1].append(_joined(element, parts))
    return "".join(open_elements[0][1])


def _joined(element: str, parts: list[str]) -> str:
    if element in ("msqrt", "mroot"):
        return f"sqrt({''.join(parts[:1] if element == 'mroot' else parts)})"
    if element == "mtr":
        return ", ".join(parts) + "; "
    if element not in _JOINED or len(parts) < 2:
        return f" {''.join(parts)} " if element == "mo" and "".join(parts) in ("=", "+", "-", "−", "<", ">", "≤", "≥", "∈", "→") else "".join(parts)
    groups = [part if len(part) == 1 or part.isalnum() else f"({part.strip()})" for part in parts]
    joints = _JOINED[element]
    return "".join(groups[:1] + [joints[min(place, len(joints) - 1)] + group for place, group in enumerate(groups[1:])])


def _tex(source: str, display: bool) -> str:
    source = source.strip()
    mark = "$$" if display else "$"
    return f"<tex>{mark}{escape(source, quote=False)}{mark}</tex>" if source else ""
