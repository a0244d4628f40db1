"""What tags do, and the words by which web authors name the parts of a page: data for the kernels that read HTML.

A cue is a group of class, id, role or itemprop words that mean one thing; `scores` says what each is worth, so a group need not be "good"
or "bad". The words are those of the big publishing systems (WordPress, Drupal, MediaWiki, Discourse, Sphinx, Shopify ...), of schema.org and of ARIA.
"""

import numpy as np

from kernels import html_blocks as html
from kernels import html_text
from kernels.html_mentions import needles
from kernels.html_tokens import ATTRIBUTES, HIDDEN_CUE, table

_BLOCK = """address article aside blockquote body button center dd details dialog dir div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6
header hgroup hr html head legend li main menu nav noscript ol optgroup p pre search section summary table caption tbody td tfoot th thead tr ul xmp listing"""
_INLINE = """a abbr acronym b bdi bdo big br cite code data del dfn em font i img input ins kbd label mark nobr output picture q rp rt ruby s samp slot small
source span strike strong sub sup time tt u var wbr meta link base area col colgroup param track embed option tex script style title textarea iframe
noembed noframes template svg select datalist object audio video canvas map math applet"""
TAGS = (*_BLOCK.split(), *_INLINE.split())
TAG_ID = {tag: number for number, tag in enumerate(TAGS, 1)}
OTHER, ROOT = len(TAGS) + 1, len(TAGS) + 2  # a tag the standard does not know (a custom element: most hold blocks), and the page itself


def _traits() -> np.ndarray:
    traits = np.zeros(ROOT + 1, np.int32)
    traits[[OTHER, ROOT]] = html.BLOCK
    for names, trait in (
        (_BLOCK, html.BLOCK),
        ("area base br col embed hr img input link meta param source track wbr", html.VOID),
        ("script style title textarea iframe noembed noframes", html.RAW),
        ("template svg select datalist object audio video canvas map applet rt rp", html.SKIP),
        ("br", html.BREAK),
        ("pre xmp listing", html.PRE),
        ("a", html.LINK),
        ("td th table caption", html.FENCE),
        ("tex", html.FORMULA),
        ("p", html.PARAGRAPH),
    ):
        for name in names.split():
            traits[TAG_ID[name]] |= trait
    return traits


def _per_tag(groups: dict[str, int]) -> np.ndarray:
    values = np.zeros(ROOT + 1, np.int32)
    for names, bits in groups.items():
        for name in names.split():
            values[TAG_ID[name]] |= bits
    return values


TRAITS = _traits()
RAW = (TRAITS & html.RAW) > 0
# Elements that end an open one of their group (HTML standard, section 13.1.2.4), and what keeps them from it.
SIBLINGS = _per_tag({"li": 1, "dt dd": 2, "td th": 4, "tr": 8, "thead tbody tfoot": 16, "option": 32})
FENCES = _per_tag({"ul ol menu dir": 1, "dl": 2, "table": 1 | 2 | 4 | 8 | 16, "tr": 4, "select": 32})

CUES = {
    "article": "article articles story news",
    "post": "post posts entry hentry blog",
    "content": "content contents body text copy prose richtext wysiwyg markdown rte",
    "main": "main primary maincontent",
    "title": "title headline heading",
    "comment": "comment comments disqus reply replies respond discussion",
    "navigation": "nav navigation navbar menu menus submenu megamenu dropdown",
    "breadcrumb": "breadcrumb breadcrumbs crumb crumbs",
    "footer": "footer foot colophon contentinfo",
    "header": "header masthead topbar top head",
    "sidebar": "sidebar side aside rail complementary secondary",
    "widget": "widget widgets module",
    "related": "related recommended recommendations recommend similar popular trending latest recent more also suggested next previous prev",
    "share": "share sharing social follow facebook twitter addthis sharedaddy",
    "advertisement": "ad ads advert advertisement sponsor sponsored promo promotion promoted dfp taboola outbrain",
    "consent": "cookie cookies consent gdpr ccpa privacy",
    "newsletter": "newsletter subscribe subscription signup optin mailchimp register",
    "account": "login signin account user auth password",
    "search": "search searchform filter filters facet sort",
    "popup": "popup modal overlay dialog lightbox offcanvas drawer tooltip toast",
    "byline": "meta byline author authors date time published timestamp dateline posted",
    "tags": "tag tags category categories taxonomy topics keywords",
    "caption": "caption figcaption credit credits",
    "pagination": "pagination pager paging pages",
    "toc": "toc tableofcontents",
    "card": "card cards tile tiles teaser item items grid list listing feed result results archive",
    "product": "product products pdp sku price prices pricing cart shop buy stock shipping woocommerce",
    "review": "review reviews rating ratings testimonial testimonials stars",
    "description": "description desc summary detail specs specification specifications features overview info information excerpt lead intro abstract subtitle",
    "forum": "forum thread topic message messages postbody answer answers question questions cooked",
    "accordion": "faq faqs accordion collapse collapsible toggle tab tabs panel",
    "hero": "hero jumbotron cover carousel slider slide swiper gallery",
    "action": "cta button btn download action actions callout",
    "legal": "copyright legal disclaimer terms license",
    "code": "code highlight codehilite syntax snippet",
    "skip": "skip skiplink",
    "language": "language languages lang locale translations",
    "quote": "quote blockquote pullquote",
    "references": "infobox navbox hatnote references reference reflist footnote footnotes citation notes",
    "profile": "bio profile avatar",
    "contact": "contact address phone map location hours",
    "media": "video media image photo figure embed player",
    "print": "print noprint",
    "banner": "banner alert notice notification",
}
CUE_NAMES = tuple(CUES)
# Never text: numbers beside lines of code, anchors beside headings, the drawn twin of a formula.
_NEVER = "lineno linenos linenodiv headerlink anchorjs editsection drawnformula"
_UNSEEN = "sr visuallyhidden visually screenreader offscreen"  # for screen readers only

TAG_TABLE = table(TAG_ID)
WORD_TABLE = table(
    {word: 1 << bit for bit, words in enumerate(CUES.values()) for word in words.split()}
    | {word: html.SKIP_CUE for word in _NEVER.split()}
    | {word: HIDDEN_CUE for word in _UNSEEN.split()}
)
ATTRIBUTE_TABLE = table(ATTRIBUTES)

# What is looked for before licences are, and schema.org's types of pages that are made of posts.
LICENCE_WORDS, LICENCE_KEY, DEED_HOST = (b"icense", b"icence"), (b'"license"',), (b"creativecommons.org/",)
DISCUSSION = (b"DiscussionForumPosting", b"QAPage")
MENTIONS = (*LICENCE_WORDS, *LICENCE_KEY, *DEED_HOST, *DISCUSSION)
NEEDLES = needles(MENTIONS)


def mention_bits(words: tuple[bytes, ...]) -> int:
    """The bits that stand for some of `MENTIONS`."""
    return sum(1 << MENTIONS.index(word) for word in words)


# What a tag is to the writer.
ROLES = np.zeros(ROOT + 1, np.int32)
for _names, _role in (
    ("li", html_text.ITEM),
    ("ol", html_text.ORDERED),
    ("ul menu dir", html_text.LIST),
    ("td th", html_text.CELL),
    ("tr", html_text.ROW),
    ("table", html_text.TABLE),
    ("pre xmp listing", html_text.CODE),
    ("dt dd", html_text.TERM),
):
    for _name in _names.split():
        ROLES[TAG_ID[_name]] = _role
