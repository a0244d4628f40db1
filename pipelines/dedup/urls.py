"""One name for a page that has several: the canonical URL under which captures of it meet.

Dropped: the scheme, "www.", the default port, the fragment, a trailing slash, and query parameters that only say where the visitor came
from. Kept: the path's case and every other parameter, sorted, because they may name another page.
"""

from urllib.parse import parse_qsl, urlencode, urlsplit

TRACKING = frozenset({"gclid", "fbclid", "msclkid", "dclid", "yclid", "igshid", "mc_cid", "mc_eid", "ref_src", "_ga"})
TRACKING_PREFIX = "utm_"
DEFAULT_PORTS = {"http": 80, "https": 443}


def canonical_url(url: str) -> str:
    """The canonical form; a string that is no URL is its own."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:  # e.g. an unclosed IPv6 bracket: compared as it stands
        return url.strip()
    if not parts.hostname:
        return url.strip()
    host = parts.hostname.rstrip(".").removeprefix("www.")
    if port is not None and port != DEFAULT_PORTS.get(parts.scheme.lower()):
        host = f"{host}:{port}"
    query = parts.query
    if query:
        pairs = parse_qsl(query, keep_blank_values=True)
        query = urlencode(sorted((k, v) for k, v in pairs if k.lower() not in TRACKING and not k.lower().startswith(TRACKING_PREFIX)))
    return host + (parts.path.rstrip("/") or "") + (f"?{query}" if query else "")
