"""Means with their intervals, as SVG that takes the colors of the page that it stands in."""

from collections.abc import Iterator, Mapping
from html import escape

from measured import retrieval

from pml_ext.benchmark.result import BASELINES
from pml_ext.evaluation import Interval

_NAMES, _WIDTH, _ROW, _FOOT = 190, 400, 19, 34


def picture(file: str, data: str, metric: str, title: str, count: int) -> str:
    """The methods with the highest means, best first, and the untrained network that they started from."""
    found = {name: metrics[metric] for name, metrics in retrieval(file)[data].items()}
    trained = sorted((name for name in found if name not in BASELINES), key=lambda name: -found[name].mean)
    shown = [*trained[:count], *(name for name in BASELINES if name in found)]
    height = _ROW * len(shown) + _FOOT
    return "\n".join(
        [
            "<figure>",
            f'<svg class="weights" role="img" viewBox="0 0 {_NAMES + _WIDTH + 20} {height}" style="max-width: 610px">',
            f"<title>{escape(title)}: means and 95 % intervals</title>",
            *_rows({name: found[name] for name in shown}, title),
            "</svg>",
            "</figure>",
        ]
    )


def _rows(shown: Mapping[str, Interval], title: str) -> Iterator[str]:
    ends = [end for value in shown.values() for end in _ends(value)]
    low, high = min(ends), max(ends)

    def place(value: float) -> float:
        return round(_NAMES + _WIDTH * (value - low) / ((high - low) or 1), 1)

    bottom = _ROW * len(shown) + 4
    ticks = range(int(-(-low // 1)), int(high // 1) + 1)
    lines = "".join(f"M{place(tick)} {bottom}v4" for tick in ticks)
    yield f'<path class="axes" d="M{_NAMES} {bottom}h{_WIDTH}{lines}"/>'
    for tick in ticks:
        yield f'<text x="{place(tick)}" y="{bottom + 14}" text-anchor="middle">{tick}</text>'
    yield f'<text x="{_NAMES + _WIDTH / 2:g}" y="{bottom + 27}" text-anchor="middle">{escape(title)}</text>'
    for row, (name, value) in enumerate(shown.items()):
        y = _ROW * row + 12
        kind = "push" if name in BASELINES else "pull"
        left, right = _ends(value)
        yield f'<text x="{_NAMES - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
        yield f'<path class="{kind} solid" d="M{place(left)} {y}H{place(right)}"/>'
        yield f'<path class="{kind} points mean" d="M{place(value.mean)} {y}h0"/>'


def _ends(value: Interval) -> tuple[float, float]:
    return (value.low, value.high) if value.valid > 1 else (value.mean, value.mean)
