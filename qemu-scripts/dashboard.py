#!/usr/bin/env python3
"""Draws a Grafana dashboard as SVG from what a Prometheus knows of the last minute.

usage: dashboard.py DASHBOARD.json http://HOST:PORT SECONDS FILE.svg

Panels, queries, legends and units are those of the dashboard; only lines are drawn. So what is seen is
what the queries answer, and a query that answers nothing leaves its panel empty.
"""

import json
import re
import sys
import time
import urllib.parse
import urllib.request
from xml.sax.saxutils import escape

WIDTH = 1000
UNIT = WIDTH / 24  # of the dashboard's grid
ROW = 23
COLOURS = ["#4ade80", "#22d3ee", "#facc15", "#f472b6", "#a78bfa", "#fb923c", "#94a3b8", "#f87171"]


def ask(base, expression, start, end):
    query = urllib.parse.urlencode({"query": expression, "start": start, "end": end, "step": 1})
    with urllib.request.urlopen(f"{base}/api/v1/query_range?{query}", timeout=20) as answer:
        return json.load(answer)["data"]["result"]


def number(value, unit):
    if unit == "s":
        for factor, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
            if value >= factor or name == "us":
                return f"{value / factor:.3g} {name}"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    names = ["", " Ki", " Mi", " Gi"] if unit in ("bytes", "Bps") else ["", " k", " M", " G"]
    base = 1024 if unit in ("bytes", "Bps") else 1000
    while value >= base and len(names) > 1:
        value, names = value / base, names[1:]
    suffix = {"bytes": "B", "Bps": "B/s", "reqps": "/s", "ops": "/s"}.get(unit, "")
    return f"{value:.3g}{names[0] or (' ' if suffix else '')}{suffix}"


def legend(pattern, labels):
    # Of a path the last part will do.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], "").rsplit("/", 1)[-1], pattern or "").strip()


def lines_of(panel, base, start, end):
    lines = []
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "5s").replace("$disk", ".*")
        for series in ask(base, expression, start, end):
            points = [(t, float(v)) for t, v in series["values"] if v not in ("NaN", "+Inf", "-Inf")]
            if points:
                lines.append((legend(target.get("legendFormat"), series["metric"]), points))
    return lines


def draw(panel, lines, start, end):
    at = panel["gridPos"]
    x, y = at["x"] * UNIT + 4, at["y"] * ROW + 4
    width, height = at["w"] * UNIT - 8, at["h"] * ROW - 8
    unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
    left, top, right, bottom = x + 8, y + 40, x + width - 8, y + height - 32
    highest = max((v for _, points in lines for _, v in points), default=0) or 1
    yield f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="4" fill="#1e293b"/>'
    yield f'<text x="{x + 8:.0f}" y="{y + 18:.0f}" fill="#ffffff" font-weight="bold">{escape(panel["title"])}</text>'
    yield f'<text x="{right:.0f}" y="{y + 18:.0f}" text-anchor="end" fill="#94a3b8">up to {number(highest, unit)}</text>'
    for part in (0, 0.5, 1):
        level = bottom - part * (bottom - top)
        yield f'<path d="M{left:.0f} {level:.0f}H{right:.0f}" stroke="#334155"/>'
    place = left
    for (name, points), colour in zip(lines, COLOURS * 8):
        path = " ".join(
            f"{left + (t - start) / (end - start) * (right - left):.1f},{bottom - v / highest * (bottom - top):.1f}"
            for t, v in points
        )
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        room = 7 * len(name) + 24
        if place + room <= right:
            yield f'<rect x="{place:.0f}" y="{bottom + 14:.0f}" width="10" height="3" fill="{colour}"/>'
            yield f'<text x="{place + 14:.0f}" y="{bottom + 20:.0f}" fill="#cbd5e1">{escape(name)}</text>'
            place += room


def main():
    dashboard, base, seconds, file = sys.argv[1:]
    with open(dashboard, encoding="utf-8") as text:
        panels = json.load(text)["panels"]
    end = time.time()
    start = end - float(seconds)
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) * ROW + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#0f172a"/>',
    ]
    drawn = 0
    for panel in panels:
        lines = lines_of(panel, base, start, end)
        drawn += len(lines)
        parts.extend(draw(panel, lines, start, end))
    if drawn == 0:
        sys.exit(f"dashboard.py: {base} knows nothing of the last {seconds} s")
    with open(file, "w", encoding="utf-8") as out:
        out.write("\n".join([*parts, "</svg>", ""]))


if __name__ == "__main__":
    main()
