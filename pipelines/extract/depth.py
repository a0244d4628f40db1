"""How deeply a page's tags nest, before a tree is built: extractors take quadratic time on hostile depth.

Browsers stop at a depth of 512 (Chromium); no honest page comes near. A wall-clock limit would make the output depend on
the machine's load, a depth limit does not.
"""

import re

import numpy as np

MAX_DEPTH = 1000
_TAG = re.compile(rb"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^<>]{0,2000}?(/?)>")
# Void elements never nest; the others close themselves when a sibling opens (HTML standard, section 13.1.2.4).
_FLAT = frozenset(b"area base br col embed hr img input link meta param source track wbr p li dt dd tr td th option thead tbody tfoot".split())


def too_deep(body: bytes) -> bool:
    """Whether more than `MAX_DEPTH` elements are open at once. Exact counting only runs where a rough upper bound exceeds it."""
    data = np.frombuffer(body, dtype=np.uint8)
    opens = np.flatnonzero(data[:-1] == 0x3C) if len(data) > 1 else np.empty(0, dtype=np.int64)
    following = data[opens + 1]
    letters = (following | 0x20) - 0x61 < 26  # uint8 arithmetic wraps: one comparison for a..z
    steps = letters.astype(np.int32) - (following == 0x2F)
    depths = np.cumsum(steps)
    if not len(depths) or int((depths - np.minimum.accumulate(depths)).max()) <= MAX_DEPTH:
        return False
    depth = deepest = 0
    for match in _TAG.finditer(body):
        if match.group(2).lower() in _FLAT or match.group(3):
            continue
        depth = max(depth - 1, 0) if match.group(1) else depth + 1
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
