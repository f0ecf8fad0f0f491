"""Formulas of docstrings as HTML that needs no script and no font of another host.

Most are plain text, `L_i = mean_{p in P_i} [D_ip - pos_margin]+`: they get Greek letters, indices and exponents. Those
of `pml_ext.evaluation` are LaTeX below `.. math::`: they become MathML.
"""

import re
from html import escape

_GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "theta": "θ",
    "lambda": "λ",
    "mu": "μ",
    "phi": "φ",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "Delta": "Δ",
    "Omega": "Ω",
}
_OPERATORS = {"sum": "∑", "mean": "mean", "max": "max", "min": "min", "argmax": "argmax"}
_BRACES, _PARENTHESES = r"\{(?:[^{}]|\{[^{}]*\})*\}", r"\((?:[^()]|\([^()]*\))*\)"
# Above: a power, or the sign of a set, which no operand follows. Below: an index.
_ABOVE = rf"\^(?:{_BRACES}|{_PARENTHESES}|-?[A-Za-z0-9]+|-)|[+-]{{1,2}}(?![\w(])|[+-]{{1,2}}(?=_)"
_BELOW = rf"_(?:{_BRACES}|{_PARENTHESES}|[A-Za-z0-9]+\*?)"
_HEADS = "|".join([*_GREEK, *_OPERATORS, "[A-Za-z]"])
_TOKEN = re.compile(
    rf"""(?P<article>a(?=[ ][a-z]{{2}}))
    |(?P<head>{_HEADS})(?![A-Za-z0-9])(?P<prime>'?)(?P<above>{_ABOVE})?(?P<below>{_BELOW})?
    |(?P<power>\^(?:{_BRACES}|{_PARENTHESES}|-?[A-Za-z0-9]+))
    |(?P<hinge>\]\+)
    |(?P<word>"[^"]*"|\w+)
    |(?P<sign>!=|<=|>=|<-|\|\||(?<![^\s(\[{{^])-(?=[\s\w(]))
    """,
    re.VERBOSE,
)
_SIGNS = {"!=": "≠", "<=": "≤", ">=": "≥", "<-": "←", "||": "‖", "-": "−"}
_SECTION = re.compile(r"^(Args|Shape|Defaults|Source|Raises|Examples?|Attributes|Returns|Yields):$", re.MULTILINE)
_BLOCK = re.compile(r"(?<=\n\n)((?:[ ]{4}.*(?:\n|\Z)|\n(?=[ ]{4}))+)")
_MATH = re.compile(r"^\.\. math::(?: +(?=\S)|\n\n(?=[ ]{4}))((?:.+(?:\n|\Z)|\n(?=[ ]{4}))+)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")


def with_formulas(docstring: str) -> str:
    """The docstring with what is a formula as HTML; code stays code."""
    docstring = _MATH.sub(lambda found: f'<div class="formula">{mathml(found[1])}</div>\n\n', docstring)
    docstring = _INLINE.sub(lambda found: mathml(found[1], display="inline"), docstring)
    section = _SECTION.search(docstring)
    end = section.start() if section else len(docstring)
    return _BLOCK.sub(_block, docstring[:end]) + docstring[end:]


def _block(found: re.Match[str]) -> str:
    lines = [line[4:] for line in found[1].rstrip().splitlines()]
    is_code = any("()" in line or line.endswith(":") or "`" in line for line in lines)
    return found[1] if is_code else f'<pre class="formula">{typeset(chr(10).join(lines))}</pre>\n\n'


def typeset(text: str) -> str:
    """A formula in plain text as HTML."""
    text = re.sub(r"(?<=[\w)]) in (?=[A-Z(])", " ∈ ", text)
    out, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found and found["head"] and _is_identifier(found):
            found = re.compile(r"(?P<word>\w+)").match(text, at)
        out.append(_html(found) if found else escape(text[at]))
        at = found.end() if found else at + 1
    return "".join(out)


def _is_identifier(found: re.Match[str]) -> bool:
    """`k_temperature` is the name of an argument, `D_ip`, `R_max` and `sum_{..}` have an index."""
    index = (found["below"] or "").removeprefix("_")
    return index.isalnum() and len(index) > 3 and not found["head"].isupper()


def _html(found: re.Match[str]) -> str:
    groups = found.groupdict()
    if head := groups.get("head"):
        letter = _GREEK.get(head) or _OPERATORS.get(head) or f"<i>{head}</i>"
        return f"{letter}{'′' if groups['prime'] else ''}{_raised(groups['above'])}{_lowered(groups['below'])}"
    if power := groups.get("power"):
        return _raised(power)
    if groups.get("hinge"):
        return "]<sub>+</sub>"
    return _SIGNS.get(found[0], escape(found[0]))


def _raised(written: str | None) -> str:
    power = _inner((written or "").removeprefix("^"))
    sign = power.replace("-", "−") if set(power) <= {"+", "-"} else ""
    return f"<sup>{sign or typeset(power)}</sup>" if power else ""


def _lowered(written: str | None) -> str:
    index = _inner((written or "").removeprefix("_"))
    several = re.fullmatch(r"[a-z]{2,3}\*?", index)  # D_ip: the letters are indices
    return f"<sub>{f'<i>{index}</i>' if several else typeset(index)}</sub>" if index else ""


def _inner(written: str) -> str:
    """An index or a power without what groups it; that of an order statistic keeps its parentheses."""
    if re.fullmatch(r"\([a-z]\)", written):
        return written
    return written[1:-1] if written[:1] + written[-1:] in ("{}", "()") else written


def mathml(latex: str, display: str = "block") -> str:
    """A formula in LaTeX as MathML; lines that are aligned stay so."""
    from latex2mathml import converter

    latex = latex.strip().rstrip(",").strip().replace(r"\_", "_")
    if r"\\" in latex or "&" in latex:
        latex = rf"\begin{{align*}} {latex} \end{{align*}}"
    return converter.convert(" ".join(latex.split()), display=display)
