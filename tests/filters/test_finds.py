"""Licences and language: hand-made cases."""

import pytest

from filters.language import detect
from filters.licence import identify, licence_class


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/deed.de", "cc-by-nc-sa-4.0", "non-commercial"),
        ("http://creativecommons.org/licenses/by/3.0/us/", "cc-by-3.0", "attribution"),
        ("//creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0", "public-domain"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0", "share-alike"),
        ("https://www.gnu.org/licenses/fdl-1.3.html", "gnu-fdl", "share-alike"),
        ("all rights reserved", "", "unknown"),
        ("https://opensource.org/licenses/MIT", "mit", "permissive"),
        ("https://www.apache.org/licenses/LICENSE-2.0.html", "apache-2.0", "permissive"),
        ("https://spdx.org/licenses/MPL-2.0.html", "mpl-2.0", "share-alike"),
        ("https://opendatacommons.org/licenses/odbl/1-0/", "odc-odbl", "share-alike"),
        ("http://www.nationalarchives.gov.uk/doc/open-government-licence/version/3/", "ogl-uk-3", "attribution"),
        ("https://creativecommons.org/licenses/by-nd/4.0", "cc-by-nd-4.0", "no-derivatives"),
    ],
)
def test_licences(given, name, kind):
    assert identify(given) == name and licence_class(name) == kind


def test_languages():
    codes, scores = detect(["The cat sat on the mat and looked at the dog.", "Der Hund lief über die Straße und bellte.", "Le chat dort sur le lit.", "12 34", ""])
    assert codes == ["en", "de", "fr", "und", "und"]
    assert (scores[:3] > 0.7).all() and (scores[3:] == 0).all() and scores.max() <= 1
