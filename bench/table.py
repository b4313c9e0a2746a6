"""Medians of interleaved rounds, printed as ratios to what stands below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.load import Sample


@dataclass(frozen=True, slots=True)
class Row:
    """All rounds of one contender at one concurrency."""

    what: str
    contender: str
    samples: tuple[Sample, ...]

    @property
    def in_flight(self) -> int:
        """How many calls were kept going."""
        return self.samples[0].in_flight

    @property
    def per_second(self) -> float:
        """Median over the rounds."""
        return median(sample.per_second for sample in self.samples)

    @property
    def p50_ms(self) -> float:
        """Median over the rounds."""
        return median(sample.p50_ms for sample in self.samples)

    @property
    def p99_ms(self) -> float:
        """Median over the rounds."""
        return median(sample.p99_ms for sample in self.samples)

    @property
    def errors(self) -> int:
        """All calls that failed, over all rounds."""
        return sum(sample.errors for sample in self.samples)


def ratio(row: Row, base: Row, figure: str) -> float:
    """The median of the rounds' own ratios: each round is compared with its neighbour in time."""
    pairs = zip(row.samples, base.samples, strict=True)
    ratios: list[float] = [getattr(a, figure) / (getattr(b, figure) or float("nan")) for a, b in pairs]
    return median(ratios)


def render(rows: Sequence[Row], bases: Sequence[str]) -> str:
    """A Markdown table; one column of ratios for each base that the rows are compared with."""
    heads = ["what", "contender", "in flight", "per s", "p50 ms", "p99 ms"]
    heads += [f"rate / {base}, p50 / {base}" for base in bases]
    lines = [_line(heads), _line(["---", "---", *["---:"] * (len(heads) - 2)])]
    for row in rows:
        cells = [row.what, row.contender, str(row.in_flight), f"{row.per_second:,.0f}"]
        cells += [f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}"]
        cells += [_against(row, base, rows) for base in bases]
        lines.append(_line(cells) + (f"  {row.errors} calls failed" if row.errors else ""))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _against(row: Row, base: str, rows: Sequence[Row]) -> str:
    peers = [r for r in rows if (r.what, r.in_flight, r.contender) == (row.what, row.in_flight, base)]
    if not peers or peers[0] is row:
        return ""
    return f"{ratio(row, peers[0], 'per_second'):.2f}, {ratio(row, peers[0], 'p50_ms'):.2f}"
