// The report's style sheet. Series colours follow Okabe and Ito's palette, which colour-blind readers tell apart;
// the dark page has lighter tones of the same hues.
#pragma once

namespace egmla {

inline constexpr const char* kReportStyle = R"css(
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1c1f24; --soft: #5c636e; --rule: #d9dce1; --grid: #eceef1; --panel: #f6f7f9;
  --c0: #b3b8c0; --c1: #0072b2; --c2: #d55e00; --c3: #009270; --c4: #b8578f; --c5: #3a9bd0; --c6: #b97e00;
  --c7: #7a5c3e; --c8: #4b5563;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --ink: #e6e8eb; --soft: #98a0ac; --rule: #363c46; --grid: #242932; --panel: #1c2027;
    --c0: #5b626e; --c1: #56a8e8; --c2: #f28a45; --c3: #35c49c; --c4: #e39bc6; --c5: #92d0f5; --c6: #efbe4a;
    --c7: #c8a882; --c8: #b6bdc8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.1rem; font-weight: 650; margin: 2.75rem 0 .6rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 0 0 .35rem; }
p { margin: .3rem 0; max-width: 46rem; }
.lead { color: var(--soft); }
.note { color: var(--soft); font-size: .85rem; }
figure { margin: 0; break-inside: avoid; }
.large { display: grid; gap: 2rem; margin-top: 2rem; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 2rem 1.75rem;
  margin-top: 2.25rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .end { font-weight: 600; }
svg .halo { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
.grid, .axis, .reference { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--rule); }
.reference { stroke: var(--soft); stroke-dasharray: 5 4; }
path { fill: none; stroke-width: 1.5; stroke-linejoin: round; stroke-linecap: round; }
.c0 path { stroke-width: 1; }
.bar { stroke-width: 1; opacity: .75; }
.faint path { stroke-width: .8; opacity: .38; }
.c0 path { stroke: var(--c0); } .c1 path { stroke: var(--c1); } .c2 path { stroke: var(--c2); }
.c3 path { stroke: var(--c3); } .c4 path { stroke: var(--c4); } .c5 path { stroke: var(--c5); }
.c6 path { stroke: var(--c6); } .c7 path { stroke: var(--c7); } .c8 path { stroke: var(--c8); }
.c0 circle { fill: var(--c0); } .c1 circle { fill: var(--c1); } .c2 circle { fill: var(--c2); }
.c3 circle { fill: var(--c3); } .c4 circle { fill: var(--c4); } .c5 circle { fill: var(--c5); }
.c6 circle { fill: var(--c6); } .c7 circle { fill: var(--c7); } .c8 circle { fill: var(--c8); }
svg .t1 { fill: var(--c1); } svg .t2 { fill: var(--c2); } svg .t3 { fill: var(--c3); } svg .t4 { fill: var(--c4); }
svg .t5 { fill: var(--c5); } svg .t6 { fill: var(--c6); } svg .t7 { fill: var(--c7); } svg .t8 { fill: var(--c8); }
.b0 { background: var(--c0); } .b1 { background: var(--c1); } .b2 { background: var(--c2); }
.b3 { background: var(--c3); } .b4 { background: var(--c4); } .b5 { background: var(--c5); }
.b6 { background: var(--c6); } .b7 { background: var(--c7); } .b8 { background: var(--c8); }
.key { display: inline-block; width: .9em; height: .22em; border-radius: .11em; vertical-align: .28em;
  margin-right: .5em; print-color-adjust: exact; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; font-size: .85rem; margin: .9rem 0 0; padding: 0;
  list-style: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 60%; }
th { font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--rule); vertical-align: bottom; }
th, td { text-align: right; padding: .34rem .9rem .34rem 0; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td { border-bottom: 1px solid var(--grid); }
pre { background: var(--panel); border-radius: 6px; padding: .9rem 1.1rem; font: .8rem/1.5 ui-monospace, "SF Mono",
  Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }
details { border-bottom: 1px solid var(--grid); padding: .3rem 0; }
summary { cursor: pointer; font-size: .92rem; }
.narrow { display: none; }
@media (max-width: 44rem) {
  body { padding-top: 1.5rem; }
  h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
  .narrow { display: block; }
  .wide { display: none; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --rule: #999; --grid: #ddd; --panel: #fff;
    --c0: #b3b8c0; --c1: #0072b2; --c2: #d55e00; --c3: #009270; --c4: #b8578f; --c5: #3a9bd0; --c6: #b97e00;
    --c7: #7a5c3e; --c8: #4b5563; }
  html { font-size: 9pt; }
  body { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  th, td { padding-right: .5rem; }
  th:has(wbr) { overflow-wrap: anywhere; }
  table { font-size: .75rem; }
  .narrow { display: none; }
  .wide { display: block; }
  .small { grid-template-columns: repeat(3, 1fr); gap: 1rem; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  h2 { break-after: avoid; }
}
)css";

}  // namespace egmla
