"""The style of the report's page: one sheet, for light, dark and small ones."""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #ffffff; --text: #1c2430; --soft: #5b6675; --line: #d9dee5;
  --panel: #f5f7f9; --mark: #fff1c2; --accent: #1f6feb; --bad: #b42318;
  --c0: #1f6feb; --c1: #d9730d; --c2: #1a7f4b; --c3: #a333c8;
  --c4: #b42318; --c5: #0e8a93; --c6: #7a5c00; --c7: #5b6675;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14181e; --text: #e6eaf0; --soft: #9aa5b4; --line: #333c48;
    --panel: #1d232b; --mark: #4a3d10; --accent: #6ea8fe; --bad: #ff8a80;
    --c0: #6ea8fe; --c1: #f0a35c; --c2: #5cc98f; --c3: #d08bea;
    --c4: #ff8a80; --c5: #5bc8d1; --c6: #d9bd5a; --c7: #9aa5b4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 0 16px 64px; }
h1 { font-size: 26px; margin: 24px 0 4px; }
h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p, li { max-width: 80ch; overflow-wrap: anywhere; }
p { margin: 8px 0; color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; }
a { color: var(--accent); }
.scroll { overflow: auto; max-height: 80vh; margin: 10px 0; }
#list { max-height: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td {
  padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line);
  text-align: left; white-space: nowrap; vertical-align: top;
}
th { color: var(--soft); font-weight: 600; }
.scroll th { position: sticky; top: 0; background: var(--back); }
.scroll td:first-child { position: sticky; left: 0; background: var(--back); }
.plots {
  display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr));
}
figure {
  margin: 0; padding: 10px; border: 1px solid var(--line); border-radius: 8px;
}
figcaption { font-weight: 600; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 11px; fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: .6; }
.zero { stroke: var(--text); stroke-width: 1; }
.guide {
  fill: none; stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3;
}
polyline { fill: none; stroke-width: 2; }
line.s0 { stroke-width: 3; }
circle { fill-opacity: .6; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; }
.key { color: var(--text); overflow-wrap: anywhere; }
.key::before {
  content: ""; display: inline-block; width: 10px; height: 10px;
  margin-right: 6px; border-radius: 5px; background: var(--key);
}
.filters {
  display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: end;
  padding: 12px; background: var(--panel); border-radius: 8px;
}
.filters label { display: grid; font-size: 13px; color: var(--soft); }
select, input, button {
  font: inherit; color: var(--text); background: var(--back);
  border: 1px solid var(--line); border-radius: 6px; padding: 5px 8px;
  max-width: 100%;
}
button { cursor: pointer; }
button:disabled { opacity: .45; cursor: default; }
.pager { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; }
#list { width: 100%; }
#list td { white-space: normal; overflow-wrap: anywhere; }
#list .number { white-space: nowrap; }
#list button {
  border: 0; padding: 0; background: none; color: var(--accent);
  text-align: left; text-decoration: underline;
}
.bad { color: var(--bad); }
dialog {
  width: min(920px, 100vw); max-width: 100vw; max-height: 96vh;
  padding: 0 16px 24px; color: var(--text); background: var(--back);
  border: 1px solid var(--line); border-radius: 10px; overflow: auto;
}
dialog::backdrop { background: rgb(0 0 0 / .45); }
.top {
  position: sticky; top: 0; display: flex; gap: 8px; padding: 12px 0;
  align-items: center; background: var(--back);
  border-bottom: 1px solid var(--line);
}
.top strong { flex: 1; overflow-wrap: anywhere; }
pre {
  margin: 6px 0; padding: 10px; font: 13px/1.5 ui-monospace, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; background: var(--panel);
  border-radius: 6px;
}
mark { background: var(--mark); color: inherit; }
.bars {
  display: grid; grid-template-columns: auto 1fr auto auto; gap: 4px 10px;
}
.bar { height: 14px; margin-top: 4px; min-width: 1px; background: var(--c0); }
.raters { color: var(--c1); white-space: nowrap; }
@media (max-width: 600px) {
  main { padding: 0 12px 48px; }
  .filters label { flex: 1 1 44%; }
  .filters select, .filters input { width: 100%; }
  #list .wide { display: none; }
  #list th, #list td { padding-right: 8px; font-size: 14px; }
  dialog { padding: 0 12px 24px; max-height: 100vh; border-radius: 0; }
}
""" + '\n'.join(
  f'.s{i} {{ stroke: var(--c{i}); fill: var(--c{i}); --key: var(--c{i}); }}\n'
  f'polyline.s{i} {{ fill: none; }}\n'
  f'circle.s{i} {{ stroke: none; }}'
  for i in range(8)
)
