"""Formulas as MathML, made when the pages are built: a browser shows them without a script."""

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_) -> str:
    def formula(match: re.Match[str]) -> str:
        tag, kind, latex = match.groups()
        display = "block" if kind == "[" else "inline"
        return f'<{tag} class="formula">{convert(html.unescape(latex), display=display)}</{tag}>'

    return FORMULA.sub(formula, content)
