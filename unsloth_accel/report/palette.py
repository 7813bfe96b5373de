"""The colours, for light and dark pages: charts are drawn in the light ones, which stand for CSS variables."""

# name: (light, dark). The light ones are all different, because they are replaced by name in the SVG.
COLOURS = {
    "page": ("#f5f6f8", "#0f1216"),
    "card": ("#ffffff", "#171b21"),
    "ink": ("#1a1e24", "#e8ebef"),
    "muted": ("#5a6472", "#9aa5b3"),
    "line": ("#cfd5dd", "#3a424d"),
    "grid": ("#e8ebef", "#262c34"),
    "this-run": ("#3358d4", "#8aa6ff"),
    "other-run": ("#8b939e", "#a0a9b5"),
    "evaluation": ("#b4431c", "#ff9a6c"),
    "rank-0": ("#2f6fdb", "#6fa8ff"),
    "rank-1": ("#d97706", "#fbb04c"),
    "rank-2": ("#0f8a70", "#3ccfae"),
    "rank-3": ("#c0356d", "#ff82b2"),
    "rank-4": ("#7647cf", "#b79cff"),
    "rank-5": ("#7d6a00", "#dcc55a"),
    "rank-6": ("#0d86a8", "#5ccdf0"),
    "rank-7": ("#63707f", "#aab6c4"),
    "restart": ("#6d3fc4", "#bd9dff"),
    "plan": ("#46505c", "#b4bec9"),
    "split": ("#b45309", "#f3a553"),
    "note": ("#0c7a6b", "#4fd0bd"),
    "stop": ("#c02626", "#ff7f7f"),
}
EVENT_KINDS = ("stop", "restart", "split", "plan", "note")  # of those at one step, the first gives the colour
RANKS = 8  # with more, ranks are shown as a band


def light(name: str) -> str:
    """The colour that a chart is drawn in."""
    return COLOURS[name][0]


def with_variables(svg: str) -> str:
    """The SVG with a CSS variable in the place of each colour."""
    for name, (colour, _) in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def variables(dark: bool) -> str:
    """The CSS that gives the variables their values."""
    return " ".join(f"--{name}: {colours[dark]};" for name, colours in COLOURS.items())
