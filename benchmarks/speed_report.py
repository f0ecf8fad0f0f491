"""From measurements to words and pictures: the goals as a checklist, a table in Markdown, a log-log plot."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from speed_jobs import FAMILIES, FLOOR, Setting

# What is to be reached. Everything else here is computed.
MAIN, SMALL, QUARTER, LARGE = Setting(1024, 512, 4), Setting(128, 512, 4), Setting(256, 512, 4), Setting(4096, 512, 4)
MANY = Setting(4096, 512, 32)
FLOORS: Mapping[str, float] = {
    "RAW": 1.0,
    "MultiSimilarity": 1.0,
    "BinomialDevianceLoss": 1.0,
    "BatchAll": 1.0,
    "NCA": 1.0,
    "Contrastive2018": 1.0,
    "BatchHard": 0.6,
    **dict.fromkeys(("DecoupledContrastive", "HardnessWeightedContrastive", "HCL", "H-SCL", "Debiased", "SCT"), 1.0),
    **dict.fromkeys(("SmoothAP", "SupAPLoss", "RS@k", "SupRecall", "PNP"), 4.0),
}
OTHER_ROW_FLOOR, CENTER_FLOOR, SMALL_FLOOR = 1.5, 0.5, 3.0
LOOP_SPEEDUP = 10.0
STOCK_SPEEDUPS: Sequence[tuple[str, Setting, float]] = (
    ("RAW", MAIN, 5.0),
    ("BatchAll", MAIN, 40.0),
    ("MultiSimilarity", MAIN, 2.5),
    ("LiftedStructure", QUARTER, 100.0),
    ("Histogram", QUARTER, 100.0),
    ("DistanceWeightedMiner", MAIN, 25.0),
)
MANY_TRIPLETS_MEGABYTES = 300.0
TIME_POWER, MEMORY_POWER = 2.1, 2.0
# Of the largest batch with a chunk size; and linear, with a little for what is measured.
LINEAR_MEGABYTES, LINEAR_POWER = 2000.0, 1.1


class Goal(NamedTuple):
    """One line of the checklist: a value, None if it was not measured, and what it is to be at most or at least."""

    what: str
    value: float | None
    bound: float
    at_most: bool
    unit: str

    @property
    def is_met(self) -> bool | None:
        """Whether it is met; None if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def line(self) -> str:
        """The line in Markdown."""
        sign = "at most" if self.at_most else "at least"
        bound = f"{sign} {self.bound:g}{self.unit}"
        if self.value is None:
            return f"- [ ] {self.what}: not measured ({bound})"
        verdict = "met" if self.is_met else f"missed by {abs(self.value / self.bound - 1):.0%}"
        return f"- [{'x' if self.is_met else ' '}] {self.what}: {self.value:.3g}{self.unit} ({bound}): {verdict}"


class Lines:
    """The measurements by what and where; the last of each counts, of the floor the first.

    Attributes:
        later: of each day and commit after the first its jobs, in order, and the seconds of the floor on `MAIN` then.
    """

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self.all = list(lines)
        self.found = {(line["job"], self.setting(line)): line for line in self.all if line["mode"] == "full"}
        self.later: dict[tuple[str, str], tuple[list[str], list[float]]] = {}
        for line in self.all:
            made = line["date"][:10], line["commit"]
            if line["mode"] != "full" or made == (self.all[0]["date"][:10], self.all[0]["commit"]):
                continue
            jobs, floors = self.later.setdefault(made, ([], []))
            if line["family"] != "floor":
                jobs.append(line["job"].partition(", ")[0])
            elif self.setting(line) == MAIN:
                floors.append(line["seconds"])
        for line in reversed(self.all):
            if line["family"] == "floor":
                self.found[line["job"], self.setting(line)] = line
        self.linear = {(line["job"], self.setting(line)): line for line in self.all if line["mode"] == "linear"}

    @staticmethod
    def setting(line: Mapping[str, Any]) -> Setting:
        """The batch of a measurement."""
        return Setting(line["n"], line["d"], line["per_class"])

    def value(self, job: str, setting: Setting, field: str) -> float | None:
        """A number, or None if it was not measured."""
        line = self.found.get((job, setting))
        return None if line is None else line.get(field)

    def names(self, family: str) -> list[str]:
        """The jobs of a family, in order."""
        return list(dict.fromkeys(line["job"] for line in self.all if line["family"] == family))

    def settings(self) -> list[Setting]:
        """The batches, by what they share."""
        return sorted({setting for _, setting in self.found}, key=lambda s: (s.d, s.per_class, s.n))

    def quotient(self, job: str, other: str, setting: Setting, field: str = "ratio") -> float | None:
        """How many times more the other takes."""
        own, others = self.value(job, setting, field), self.value(other, setting, field)
        return None if own is None or others is None else others / own

    def power(self, job: str, small: Setting, large: Setting, field: str) -> float | None:
        """The p in n^p between two batches."""
        before, after = self.value(job, small, field), self.value(job, large, field)
        if before is None or after is None or min(before, after) <= 0:
            return None
        return math.log(after / before) / math.log(large.n / small.n)


def goals(lines: Lines) -> Iterator[Goal]:
    """The checklist."""
    rows, centers = lines.names("row"), lines.names("center")
    for name in dict.fromkeys([*FLOORS, *rows, *centers]):
        bound = FLOORS.get(name, CENTER_FLOOR if name in centers else OTHER_ROW_FLOOR)
        yield Goal(f"{name}, {_words(MAIN)}", lines.value(name, MAIN, "ratio"), bound, True, " F")
    for name in dict.fromkeys([*FLOORS, *rows, *centers]):
        yield Goal(f"{name}, {_words(SMALL)}", lines.value(name, SMALL, "ratio"), SMALL_FLOOR, True, " F")
    for setting in (SMALL, MAIN):
        for loop in lines.names("loop"):
            name = loop.removesuffix(", loop")
            value = lines.quotient(name, loop, setting)
            yield Goal(f"{name} against a loop over anchors, {_words(setting)}", value, LOOP_SPEEDUP, False, " x")
    for name, setting, bound in STOCK_SPEEDUPS:
        value = lines.quotient(name, f"{name}, stock", setting)
        yield Goal(f"{name} against PML, {_words(setting)}", value, bound, False, " x")
    what = f"memory of BatchAll, {_words(MANY)}, {MANY.triplets:.2g} triplets"
    yield Goal(what, lines.value("BatchAll", MANY, "peak_mb"), MANY_TRIPLETS_MEGABYTES, True, " MB")
    small = LARGE._replace(n=512)
    for field, word, bound in (("seconds", "time", TIME_POWER), ("peak_mb", "memory", MEMORY_POWER)):
        for name in dict.fromkeys([*FLOORS, *rows]):
            what = f"growth of the {word} of {name} from n = {small.n} to {LARGE.n}, the power of n"
            yield Goal(what, lines.power(name, small, LARGE, field), bound, True, "")
    for name in dict.fromkeys(job for job, _ in lines.linear):
        found = {setting: line for (job, setting), line in lines.linear.items() if job == name}
        few, many = min(found), max(found)
        what = f"memory of {name} with chunk_size={found[many]['chunk_size']}"
        yield Goal(f"{what}, {_words(many)}", found[many]["peak_mb"], LINEAR_MEGABYTES, True, " MB")
        if few < many:
            power = math.log(found[many]["peak_mb"] / found[few]["peak_mb"]) / math.log(many.n / few.n)
            yield Goal(
                f"growth of the {what} from n = {few.n} to {many.n}, the power of n", power, LINEAR_POWER, True, ""
            )


def checklist(lines: Lines) -> str:
    """The goals, those measured first."""
    found = list(goals(lines))
    met, missed = sum(goal.is_met is True for goal in found), sum(goal.is_met is False for goal in found)
    head = f"{met} met, {missed} missed, {len(found) - met - missed} not measured"
    return "\n".join([head, "", *(goal.line() for goal in found)])


def _words(setting: Setting) -> str:
    return f"n = {setting.n}, d = {setting.d}, {setting.per_class} per class"


def table(lines: Lines, command: str) -> str:
    """All of it in Markdown."""
    first = lines.all[0]
    cpu = first["device"] == "cpu"
    about = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    parts = [
        "# Speed and memory",
        f"`{command}` made this page on {first['date'][:10]}, commit {first['commit']}, on {first['hardware']}"
        f"{', one thread' if cpu else ''}; {about}.",
        "F is the time of the three matrix products that a pair loss must compute, through autograd, taken before each "
        "sample; numbers are medians of the ratios of a forward and backward pass to it. Memory is the peak above the "
        f"inputs, in MB of 10^6 bytes{', of a process of its own' if cpu else ''}. PML is the stock loss or miner of "
        "the same formula, a loop the usual code that selects pairs anchor by anchor: how many times more they take.",
    ]
    parts += [
        f"Measured later, on {date}, commit {commit}: {', '.join(dict.fromkeys(jobs))}."
        + (f" F with {_words(MAIN)} took {1e3 * floors[0]:.1f} ms then: compare ratios, not times." if floors else "")
        for (date, commit), (jobs, floors) in lines.later.items()
    ]
    main = MAIN if any(setting == MAIN for _, setting in lines.found) else lines.settings()[-1]
    parts += [f"## {_words(main)}", _main_table(lines, main)]
    peers = {line["job"].removesuffix(", stock"): line["what"] for line in lines.all if line["family"] == "stock"}
    if peers:
        said = "; ".join(f"{name}: {what}" for name, what in peers.items())
        parts += [f"What PML has. {said}."]
    parts += ["## Ratio to F, by n x d / per class", _ratio_table(lines, "ratio", "{:.2f}")]
    parts += ["## Memory in MB, by n x d / per class", _ratio_table(lines, "peak_mb", "{:.0f}")]
    if lines.linear:
        commits = ", ".join(dict.fromkeys(line["commit"] for line in lines.linear.values()))
        about = f"Measured for the memory: the seconds are those of one step. Commit {commits}."
        parts += ["## Memory that is linear in n: `chunk_size`", about, _linear_table(lines)]
    skipped = [line for line in lines.all if line.get("skipped")]
    if skipped:
        text = "\n".join(f"- {line['job']}, {_words(Lines.setting(line))}: {line['skipped']}" for line in skipped)
        parts += ["## Not measured", text]
    if cpu:
        parts += ["## Goals", checklist(lines)]
    return "\n\n".join(parts) + "\n"


def _main_table(lines: Lines, setting: Setting) -> str:
    rows = ["| method | ms | x F | MB | PML takes | PML: MB | a loop takes |", "|---|---|---|---|---|---|---|"]
    base = lines.value(FLOOR, setting, "seconds")
    rows.append(f"| F | {_number(base, '{:.1f}', 1e3)} | 1 | {_number(lines.value(FLOOR, setting, 'peak_mb'))} | | | |")
    for family, title in FAMILIES.items():
        names = [name for name in lines.names(family) if (name, setting) in lines.found]
        rows += [f"| **{title}** | | | | | | |"] if names else []
        for name in sorted(names, key=lambda name: lines.value(name, setting, "ratio") or math.inf):
            cells = (
                _number(lines.value(name, setting, "seconds"), "{:.1f}", 1e3),
                _number(lines.value(name, setting, "ratio"), "{:.2f}"),
                _number(lines.value(name, setting, "peak_mb")),
                _number(lines.quotient(name, f"{name}, stock", setting), "{:.1f} x"),
                _number(lines.value(f"{name}, stock", setting, "peak_mb")),
                _number(lines.quotient(name, f"{name}, loop", setting), "{:.1f} x"),
            )
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _ratio_table(lines: Lines, field: str, form: str) -> str:
    settings = [s for s in lines.settings() if any(lines.value(job, s, field) is not None for job, _ in lines.found)]
    head = " | ".join(f"{s.n} x {s.d} / {s.per_class}" for s in settings)
    rows = [f"| method | {head} |", f"|---|{'---|' * len(settings)}"]
    for job in dict.fromkeys(job for job, _ in lines.found):
        cells = " | ".join(_number(lines.value(job, s, field), form) for s in settings)
        rows.append(f"| {job} | {cells} |")
    return "\n".join(rows)


def _linear_table(lines: Lines) -> str:
    rows = ["| method | n | d | chunk_size | MB | s |", "|---|---|---|---|---|---|"]
    for (name, _), line in lines.linear.items():
        peak, spent = _number(line.get("peak_mb")), _number(line.get("seconds"), "{:.1f}")
        rows.append(f"| {name} | {line['n']} | {line['d']} | {line['chunk_size']} | {peak} | {spent} |")
    return "\n".join(rows)


def _number(value: float | None, form: str = "{:.0f}", factor: float = 1) -> str:
    return "" if value is None else form.format(value * factor)


# One line of each kind that differs: ours in full lines, PML's of the same color in dashes, loops in dots.
PLOTTED = ("RAW", "BatchAll", "BatchHard", "LiftedStructure", "Histogram", "CenterNCA")


def plot(lines: Lines, path: Path) -> None:
    """Time and memory against n, on logarithmic axes, at the dimension and class size with the most batches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    counts: dict[tuple[int, int], int] = {}
    for setting in lines.settings():
        counts[setting.d, setting.per_class] = counts.get((setting.d, setting.per_class), 0) + 1
    d, per_class = max(counts, key=lambda key: (counts[key], key[0]))
    ours = [name for name in PLOTTED if any(job == name for job, _ in lines.found)]
    ours = ours or [name for family in FAMILIES for name in lines.names(family)][:6]
    styles = [(FLOOR, "-", "black", "F, three matrix products")]
    for number, name in enumerate(ours):
        styles.append((name, "-", f"C{number}", name))
        styles.append((f"{name}, stock", "--", f"C{number}", f"{name}, PML"))
        styles.append((f"{name}, loop", ":", f"C{number}", f"{name}, loop"))
    figure, panels = plt.subplots(1, 2, figsize=(11, 5.6), layout="constrained")
    for axis, field, factor, label in (
        (panels[0], "seconds", 1e3, "ms, forward and backward"),
        (panels[1], "peak_mb", 1, "MB above the inputs"),
    ):
        for job, style, color, text in styles:
            points = sorted(
                (setting.n, line[field] * factor)
                for (name, setting), line in lines.found.items()
                if name == job and (setting.d, setting.per_class) == (d, per_class) and line.get(field)
            )
            if points:
                width = 2.2 if job == FLOOR else 1.4
                axis.plot(*zip(*points, strict=True), style, color=color, marker=".", linewidth=width, label=text)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(f"n, the batch (d = {d}, {per_class} per class)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    # Below both: within a panel it would hide the peers.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    figure.savefig(path, dpi=90)
    plt.close(figure)
