"""Charts as SVG: lines, points with intervals, steps, on linear or logarithmic axes.

Plain text, the same bytes for the same numbers; readable in light and dark
(prefers-color-scheme), and without colour: each series has its own mark and
dash, and its name stands at its end.
"""
import math
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 190, 54, 56
LINE = 16  # between two labels
STYLE = """
 text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
 .title { font-weight: 600; font-size: 15px; }
 .tick, .axis { fill: #59636e; font-size: 12px; }
 .back { fill: #ffffff; }
 .grid { stroke: #d1d9e0; stroke-width: 1; }
 .frame { stroke: #818b98; stroke-width: 1; fill: none; }
 .target { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 6 4; }
 .target-text { fill: #cf222e; font-size: 12px; }
 .line { fill: none; stroke-width: 2; }
 .s0 { stroke: #0969da; } .f0 { fill: #0969da; }
 .s1 { stroke: #bc4c00; stroke-dasharray: 7 3; } .f1 { fill: #bc4c00; }
 .s2 { stroke: #1a7f37; stroke-dasharray: 2 3; } .f2 { fill: #1a7f37; }
 .s3 { stroke: #8250df; stroke-dasharray: 9 3 2 3; } .f3 { fill: #8250df; }
 .mark { stroke: none; }
 .bar { stroke-width: 1.5; stroke-dasharray: none; }
 @media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc; }
  .tick, .axis { fill: #b1bac4; }
  .back { fill: #0d1117; }
  .grid { stroke: #30363d; }
  .frame { stroke: #6e7681; }
  .target { stroke: #ff7b72; }
  .target-text { fill: #ff7b72; }
  .s0 { stroke: #58a6ff; } .f0 { fill: #58a6ff; }
  .s1 { stroke: #f0883e; } .f1 { fill: #f0883e; }
  .s2 { stroke: #3fb950; } .f2 { fill: #3fb950; }
  .s3 { stroke: #bc8cff; } .f3 { fill: #bc8cff; }
 }
"""


class Axis:
    """Values to pixels between two ends, with round ticks."""

    def __init__(self, values, begin, end, log=False, zero=False):
        self.begin, self.end, self.log = begin, end, log
        low, high = min(values), max(values)
        if log:
            self.ticks = [m * 10 ** e for e in range(-3, 7) for m in (1, 2, 5) if low / 2.2 < m * 10 ** e < high * 2.2]
            self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])
            return
        low = min(0, low) if zero else low
        span = high - low or abs(high) or 1
        step = 10 ** math.floor(math.log10(span / 4))
        step = next(step * m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 6)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        self.ticks = [k * step for k in range(first, last + 1)]
        self.low, self.high = self.ticks[0], self.ticks[-1]

    def at(self, v):
        f = (lambda x: math.log10(x)) if self.log else (lambda x: x)
        share = (f(v) - f(self.low)) / (f(self.high) - f(self.low) or 1)
        return self.begin + (self.end - self.begin) * share


def number(v):
    text = "%.6g" % v
    return text


def mark(kind, x, y):
    c = 'class="mark f%d"' % kind
    if kind == 0:
        return '<circle %s cx="%.1f" cy="%.1f" r="4.5"/>' % (c, x, y)
    if kind == 1:
        return '<rect %s x="%.1f" y="%.1f" width="8" height="8"/>' % (c, x - 4, y - 4)
    if kind == 2:
        return '<path %s d="M%.1f %.1fl5 9h-10z"/>' % (c, x, y - 5)
    return '<path %s d="M%.1f %.1fl5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>' % (c, x, y - 5.5)


def apart(labels):
    """(y, ...) in order of y, moved so that no two are closer than LINE."""
    labels = sorted(labels, key=lambda l: l[0])
    ys = [l[0] for l in labels]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + LINE)
    over = max(0, (ys[-1] if ys else 0) - (HEIGHT - BOTTOM))
    return [(y - over,) + l[1:] for y, l in zip(ys, labels)]


class Chart:
    """series: dicts of name, points [(x, y) or (x, y, low, high)], and optionally line (False: marks alone), kind
    (0..3: colour, mark and dash), marks (False: the line alone)."""

    def __init__(self, title, about, xname, yname, series, xlog=False, ylog=False, xzero=False, yzero=False, xtarget=None, ytarget=None, unit=" ms", xticks=None, goal="target"):
        self.title, self.about, self.series = title, about, series
        self.xname, self.yname, self.xtarget, self.ytarget, self.unit, self.goal = xname, yname, xtarget, ytarget, unit, goal
        points = [p for s in series for p in s["points"]]
        xs = [p[0] for p in points] + [v for v in [xtarget] if v is not None]
        ys = [v for p in points for v in p[1:]] + [v for v in [ytarget] if v is not None]
        self.x = Axis(xs, LEFT, WIDTH - RIGHT, xlog, xzero)
        self.y = Axis(ys, HEIGHT - BOTTOM, TOP, ylog, yzero)
        if xticks:
            self.x.ticks = xticks

    def render(self):
        x, y = self.x, self.y
        out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="title">' % (WIDTH, HEIGHT, WIDTH, HEIGHT),
               '<title id="title">%s</title>' % escape(self.about), "<style>%s</style>" % STYLE, '<rect class="back" width="%d" height="%d" rx="6"/>' % (WIDTH, HEIGHT),
               '<text class="title" x="%d" y="28">%s</text>' % (LEFT, escape(self.title))]
        for t in x.ticks:
            p = x.at(t)
            out.append('<path class="grid" d="M%.1f %dV%d"/><text class="tick" x="%.1f" y="%d" text-anchor="middle">%s</text>' % (p, TOP, HEIGHT - BOTTOM, p, HEIGHT - BOTTOM + 18, number(t)))
        for t in y.ticks:
            p = y.at(t)
            out.append('<path class="grid" d="M%d %.1fH%d"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>' % (LEFT, p, WIDTH - RIGHT, LEFT - 8, p + 4, number(t)))
        out.append('<rect class="frame" x="%d" y="%d" width="%d" height="%d"/>' % (LEFT, TOP, WIDTH - RIGHT - LEFT, HEIGHT - BOTTOM - TOP))
        out.append('<text class="axis" x="%d" y="%d" text-anchor="middle">%s</text>' % ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, escape(self.xname)))
        out.append('<text class="axis" transform="translate(20 %d) rotate(-90)" text-anchor="middle">%s</text>' % ((TOP + HEIGHT - BOTTOM) / 2, escape(self.yname)))
        labels = []
        for i, s in enumerate(self.series):
            kind = s.get("kind", i)
            at = [(x.at(p[0]), y.at(p[1])) for p in s["points"]]
            if s.get("line", True) and len(at) > 1:
                out.append('<path class="line s%d" d="M%s"/>' % (kind, "L".join("%.1f %.1f" % p for p in at)))
            for p, (px, py) in zip(s["points"], at):
                if len(p) == 4:
                    out.append('<path class="bar s%d" d="M%.1f %.1fV%.1f"/>' % (kind, px, y.at(p[2]), y.at(p[3])))
                if s.get("marks", True):
                    out.append(mark(kind, px, py))
            labels.append((at[-1][1], kind, s["name"]))
        if self.xtarget is not None:
            p = x.at(self.xtarget)
            out.append('<path class="target" d="M%.1f %dV%d"/><text class="target-text" x="%.1f" y="%d" text-anchor="end">target %s%s</text>'
                       % (p, TOP, HEIGHT - BOTTOM, p, TOP - 6, number(self.xtarget), self.unit))
        if self.ytarget is not None:
            p = y.at(self.ytarget)
            out.append('<path class="target" d="M%d %.1fH%d"/>' % (LEFT, p, WIDTH - RIGHT))
            labels.append((p, None, "%s %s%s" % (self.goal, number(self.ytarget), self.unit)))
        px = WIDTH - RIGHT + 12
        for py, kind, name in apart(labels):
            if kind is None:
                out.append('<text class="target-text" x="%.1f" y="%.1f">%s</text>' % (px + 10, py + 4.5, escape(name)))
            else:
                out.append(mark(kind, px, py) + '<text x="%.1f" y="%.1f">%s</text>' % (px + 10, py + 4.5, escape(name)))
        return "\n".join(out) + "\n</svg>\n"
