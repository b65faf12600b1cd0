"""The frame of a report page: its style, and the script that reads values out under the pointer.

Without the script everything is still there to see.
"""

from html import escape

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1c1f23; --soft: #646b75; --rule: #e3e5e8;
  --good: #0a7a4b; --bad: #b3261e; --warn: #8a5a00; --warn-card: #fff7e5;
  --c0: #2f6fde; --c1: #d9730d; --c2: #0b8f6a; --c3: #b3308f; --c4: #6d4fd3; --c5: #0a8aa6; --c6: #c23b3b; --c7: #6b7a1f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121417; --card: #1a1d21; --ink: #e6e8ea; --soft: #98a1ab; --rule: #2c3137;
    --good: #4cc38a; --bad: #ff8a80; --warn: #f2c46d; --warn-card: #2a2415;
    --c0: #6ea8fe; --c1: #f5a35c; --c2: #4cc9a0; --c3: #e884cb; --c4: #a994f7; --c5: #5cc7df; --c6: #f08a8a; --c7: #b9c76a;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 48px; max-width: 1220px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 21px; margin: 0 0 6px; }
h2 { font-size: 15px; margin: 30px 0 10px; }
.runs { list-style: none; margin: 0 0 18px; padding: 0; color: var(--soft); }
.runs b { color: var(--ink); font-weight: 600; }
.key {
  display: inline-block; width: 18px; height: 0; border-top: 3px solid; vertical-align: middle; margin-right: 8px;
  border-radius: 2px;
}
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 18px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 11px 14px; }
.tile .name { color: var(--soft); font-size: 12px; }
.tile .value { font-size: 23px; font-weight: 600; line-height: 1.3; white-space: nowrap; }
.tile .value small { font-size: 13px; font-weight: 400; color: var(--soft); }
.tile .note { color: var(--soft); font-size: 12px; }
.remarks {
  background: var(--warn-card); color: var(--warn); border-radius: 10px; padding: 10px 16px; margin: 0 0 18px;
  list-style: none;
}
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 14px; }
.chart {
  position: relative; margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 12px 12px 4px;
}
.chart figcaption { font-weight: 600; margin: 0 4px 6px; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart .empty { color: var(--soft); padding: 40px; text-align: center; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick, .unit, .marked { fill: var(--soft); font-size: 11px; }
.mark { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 4 3; opacity: .65; }
.marked { fill: var(--ink); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.faint { stroke-width: 1.4; stroke-dasharray: 5 4; opacity: .75; }
.c0 { stroke: var(--c0); border-color: var(--c0); }
.c1 { stroke: var(--c1); border-color: var(--c1); }
.c2 { stroke: var(--c2); border-color: var(--c2); }
.c3 { stroke: var(--c3); border-color: var(--c3); }
.c4 { stroke: var(--c4); border-color: var(--c4); }
.c5 { stroke: var(--c5); border-color: var(--c5); }
.c6 { stroke: var(--c6); border-color: var(--c6); }
.c7 { stroke: var(--c7); border-color: var(--c7); }
.pointer line { stroke: var(--soft); stroke-width: 1; }
.pointer circle { fill: var(--card); stroke-width: 2; }
.readout { position: absolute; pointer-events: none; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 6px 10px; font-size: 12px; box-shadow: 0 4px 14px rgb(0 0 0 / .16); white-space: nowrap; z-index: 2; }
.readout b { display: block; color: var(--soft); font-weight: 400; }
.wide { width: fit-content; min-width: min(100%, 640px); max-width: 100%; overflow-x: auto;
  background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: 6px 14px; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; font-size: 12px; }
th:first-child, td:first-child { text-align: left; }
td.best { color: var(--good); font-weight: 600; }
td small, td.unit { color: var(--soft); font-weight: 400; }
td small { display: inline-block; min-width: 46px; }
.errors li { color: var(--bad); }
details { margin-top: 24px; } summary { cursor: pointer; color: var(--soft); } details .wide { margin-top: 10px; }
"""

SCRIPT = """
for (const chart of document.querySelectorAll(".chart[data-lines]")) {
  const lines = JSON.parse(chart.dataset.lines), along = chart.dataset.by === "x" ? 0 : 1;
  const svg = chart.querySelector("svg"), pointer = svg.querySelector(".pointer"), view = svg.viewBox.baseVal;
  const readout = document.createElement("div");
  readout.className = "readout"; readout.hidden = true; chart.append(readout);
  const hide = () => { pointer.replaceChildren(); readout.hidden = true; };
  const shape = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    pointer.append(made);
  };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), zoom = view.width / box.width;
    const at = [(event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom];
    hide();
    let heading = "";
    const rows = [];
    for (const line of lines) {
      if (!line.points.length) continue;
      const near = line.points.reduce((a, b) => Math.abs(b[along] - at[along]) < Math.abs(a[along] - at[along]) ? b : a);
      if (!heading) {
        heading = near[2];
        const across = {x1: 56, x2: view.width - 14, y1: near[1], y2: near[1]};
        const upright = {x1: near[0], x2: near[0], y1: 22, y2: view.height - 36};
        shape("line", along ? across : upright);
      }
      shape("circle", {cx: near[0], cy: near[1], r: 4, class: "c" + line.colour});
      rows.push([line, near[3]]);
    }
    const head = document.createElement("b");
    head.textContent = heading;
    readout.replaceChildren(head, ...rows.map(([line, value]) => {
      const row = document.createElement("div"), key = document.createElement("span");
      key.className = "key c" + line.colour;
      row.append(key, line.label + ": " + value);
      return row;
    }));
    readout.hidden = false;
    const left = event.clientX - chart.getBoundingClientRect().left;
    readout.style.left = Math.max(4, left + (left > chart.clientWidth / 2 ? -readout.offsetWidth - 14 : 14)) + "px";
    readout.style.top = Math.max(4, event.clientY - chart.getBoundingClientRect().top - readout.offsetHeight - 8) + "px";
  });
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML document. `body` is HTML, `title` is plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{body}<script>{SCRIPT}</script></body></html>\n"
    )
