"""How report.html looks: a light page, one column, tables and cards that wrap on a small screen."""

STYLE = """
:root { --ink: #1c2430; --soft: #5b6472; --line: #dfe3ea; --paper: #ffffff; --ground: #f5f6f9;
  --good: #1b7f4d; --bad: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; letter-spacing: -0.01em; }
header p { margin: 6px 0 20px; color: var(--soft); }
h2 { margin: 0 0 14px; font-size: 19px; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 22px 24px; margin: 0 0 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 14px;
  margin-bottom: 18px; }
.tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.tile .what { color: var(--soft); font-size: 14px; }
.tile .value { font-size: 27px; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tile.met .value { color: var(--good); }
.tile.missed .value { color: var(--bad); }
.note { color: var(--soft); font-size: 13.5px; margin: 8px 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:first-child th { color: var(--soft); font-weight: 500; font-size: 14px; }
tr:last-child > * { border-bottom: 0; }
table.success th { font-weight: 550; white-space: nowrap; }
table.success td { min-width: 170px; }
table.success small { color: var(--soft); }
tr.total > * { border-top: 2px solid var(--line); }
.bar { position: relative; height: 12px; background: #edf0f5; border-radius: 3px; margin: 5px 0 4px; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 3px; opacity: 0.82; }
.bar u { position: absolute; top: 5px; height: 2px; background: var(--ink); }
.bar u::before, .bar u::after { content: ""; position: absolute; top: -3px; width: 2px; height: 8px;
  background: var(--ink); }
.bar u::before { left: 0; } .bar u::after { right: 0; }
.bar b { position: absolute; top: -4px; bottom: -4px; width: 0; border-left: 2px dashed #8a93a3; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 20px; }
figure { margin: 0; min-width: 0; max-width: 640px; }
figcaption { font-weight: 550; margin-bottom: 4px; }
.chart { width: 100%; height: auto; display: block; }
.chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .grid { stroke: var(--line); }
.chart text { fill: var(--soft); font-size: 13px; }
.chart .label { text-anchor: middle; }
.legend span { margin-right: 18px; font-size: 14px; color: var(--soft); }
.legend i { display: inline-block; width: 14px; height: 3px; margin-right: 6px; vertical-align: middle; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px; }
article { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--paper); }
article video { width: 100%; display: block; background: #000; aspect-ratio: 4 / 3; object-fit: contain; }
article img { width: 100%; display: block; margin-top: 10px; }
article p { margin: 10px 14px 0; }
article p.note { margin: 2px 14px 0; }
.badge { display: inline-block; border-radius: 4px; padding: 0 7px; font-size: 13px; font-weight: 600;
  color: #fff; background: var(--good); }
.failure .badge { background: var(--bad); }
.film { width: 100%; max-width: 720px; display: block; background: #000; image-rendering: pixelated; }
.command { display: flex; gap: 10px; align-items: start; margin-top: 6px; }
.command button { font: inherit; font-size: 13px; padding: 6px 12px; border: 1px solid var(--line);
  border-radius: 8px; background: var(--paper); cursor: pointer; }
pre { background: #f1f3f7; border-radius: 8px; padding: 14px 16px; margin: 0; flex: 1; min-width: 0;
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all;
  font: 13.5px/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { background: #f1f3f7; border-radius: 8px; padding: 14px 16px; margin: 0; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13.5px/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre .comment { color: var(--soft); }
@media (max-width: 520px) { .charts { grid-template-columns: 1fr; } section { padding: 16px; } }
"""
