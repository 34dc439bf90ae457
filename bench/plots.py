"""plots - simple pictures of tables: SVG files that need nothing else."""
import html
import math

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 70, 170, 40, 50
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8a5a9e", "#c98a1b", "#555555")


def number(text):
    """The first number of a cell, or None."""
    try:
        return float(str(text).split()[0])
    except (ValueError, IndexError):
        return None


def ticks(most):
    step = 10 ** math.floor(math.log10(most or 1))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if most / s <= 6)
    return [i * step for i in range(int(most / step) + 1)]


def lines(path, title, x_label, y_label, series, log_x=False):
    """series: name -> [(x, y)]."""
    points = [p for s in series.values() for p in s]
    if not points:
        return
    place = (lambda x: math.log2(x)) if log_x else (lambda x: x)
    low, high, most = place(min(p[0] for p in points)), place(max(p[0] for p in points)), max(p[1] for p in points) or 1

    def at(x, y):
        return (LEFT + (WIDTH - LEFT - RIGHT) * ((place(x) - low) / (high - low) if high > low else 0.5),
                HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / most)

    out = head(title, x_label, y_label)
    for y in ticks(most):
        out += grid(at(min(p[0] for p in points), y)[1], y)
    for x in sorted({p[0] for p in points}):
        out += f'<text x="{at(x, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>\n'
    for i, (name, s) in enumerate(series.items()):
        path_of = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*p) for p in sorted(s)))
        out += f'<polyline points="{path_of}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"/>\n'
        out += "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{COLOURS[i % len(COLOURS)]}"/>\n' for a, b in (at(*p) for p in s))
        out += legend(i, name)
    write(path, out)


def bars(path, title, y_label, values):
    """values: [(name, value)]."""
    values = [v for v in values if v[1] is not None]
    if not values:
        return
    most, out = max(v for _, v in values) or 1, head(title, "", y_label)
    for y in ticks(most):
        out += grid(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / most, y)
    step = (WIDTH - LEFT - RIGHT) / len(values)
    for i, (name, value) in enumerate(values):
        tall = (HEIGHT - TOP - BOTTOM) * value / most
        out += (f'<rect x="{LEFT + step * (i + 0.15):.1f}" y="{HEIGHT - BOTTOM - tall:.1f}" width="{step * 0.7:.1f}" height="{tall:.1f}" '
                f'fill="{COLOURS[i % len(COLOURS)]}"/>\n'
                f'<text x="{LEFT + step * (i + 0.5):.1f}" y="{HEIGHT - BOTTOM - tall - 4:.1f}" text-anchor="middle">{value:g}</text>\n')
        out += legend(i, name)
    write(path, out)


def head(title, x_label, y_label):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif" font-size="11">\n<rect width="100%" height="100%" fill="white"/>\n'
            f'<text x="{LEFT}" y="22" font-size="14">{html.escape(title)}</text>\n'
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{html.escape(x_label)}</text>\n'
            f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {HEIGHT / 2})">{html.escape(y_label)}</text>\n')


def grid(at, value):
    return (f'<line x1="{LEFT}" y1="{at:.1f}" x2="{WIDTH - RIGHT}" y2="{at:.1f}" stroke="#dddddd"/>\n'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>\n')


def legend(i, name):
    y = TOP + 14 * i
    return (f'<rect x="{WIDTH - RIGHT + 8}" y="{y}" width="9" height="9" fill="{COLOURS[i % len(COLOURS)]}"/>\n'
            f'<text x="{WIDTH - RIGHT + 21}" y="{y + 9}">{html.escape(str(name)[:24])}</text>\n')


def write(path, out):
    with open(path, "w", encoding="utf-8") as f:
        f.write(out + "</svg>\n")
