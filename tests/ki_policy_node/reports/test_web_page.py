"""Pages from templates: everything is escaped, nothing is left out silently, a spot is filled again and again."""

from __future__ import annotations

import jinja2
import pytest

from ki_policy_node.reports.web_page import TEMPLATES, Verdict, fill, image, render, spot

BAD = '<script>alert(1)</script>"\'&'


def test_every_value_is_escaped() -> None:
    verdict = Verdict([BAD], [BAD], [BAD])
    page = render('base.html', title=BAD, plotly='', verdict=verdict)
    assert '<script>' not in page
    assert page.count('&lt;script&gt;') == 5
    assert '<script>' not in render('real_part.html', sentences=[BAD], link=BAD)
    assert str(image(b'', 'png', BAD)).count('"') == 4


def test_a_value_that_a_template_does_not_get_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match='verdict'):
        render('base.html', title='', plotly='')


@pytest.mark.parametrize('name', sorted(path.name for path in TEMPLATES.iterdir()))
def test_no_template_switches_the_escaping_off(name: str) -> None:
    text = (TEMPLATES / name).read_text()
    assert 'safe' not in text
    assert 'autoescape' not in text


def test_a_spot_is_filled_and_filled_anew() -> None:
    page = f'<p>a</p>{spot("real")}<p>b</p>'
    once = fill(page, 'real', '<i>1</i>')
    assert '<i>1</i>' in once
    assert fill(once, 'real', '<i>2</i>') == once.replace('1', '2')
    assert fill('<p>none</p>', 'real', '<i>1</i>') == '<p>none</p>'
