"""The transform `strip_html`."""

import pytest
from ftrt_heads.strip_html import StripHtml, strip_html

from ftrt.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good<br /><br />film", "good film"),
        ("<p class='a'>one</p><p>two</p>", "one two"),
        ("a < b and c > d, I <3 it", "a < b and c > d, I <3 it"),
        ("Tom &amp; Jerry &lt;b&gt; &#39;x&#39; caf&eacute;", "Tom & Jerry <b> 'x' café"),
        ("a<!-- hidden <b> -->b<script>if (x<y) z()</script>c<STYLE>p{}</STYLE>d", "a b c d"),
        ("<!DOCTYPE html><html>x</html>", "x"),
        ("a&nbsp;b\nc", "a b\nc"),
        ("", ""),
        ("<br/>", ""),
    ],
)
def test_tags_become_spaces_and_entities_characters(text, expected):
    assert strip_html(text) == expected


def make(**options):
    return StripHtml(StripHtml.Config(**options))


def test_only_the_named_columns_change_and_the_row_is_copied():
    row = {"text": "<b>a</b>", "title": "<b>t</b>", "label": 1, "other": "<i>o</i>"}
    before = dict(row)
    found = make(columns=["text", "title"])(row)
    assert found == {"text": "a", "title": "t", "label": 1, "other": "<i>o</i>"}
    assert row == before


def test_an_empty_value_stays_empty():
    assert make()({"text": None}) == {"text": None}


def test_missing_columns_and_other_values_are_refused():
    with pytest.raises(DataError, match=r"column 'text' must be in the row; did you mean 'txt'\?"):
        make()({"txt": "a"})
    with pytest.raises(DataError, match=r"column 'text' must hold text; got int 5"):
        make()({"text": 5})
