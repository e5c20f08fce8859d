"""The style sheet of a report page, and the script that sorts its tables. analysis/report/html.py defines the variables
of the colours.
"""

STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0 auto;padding:1.6rem 1rem 4rem;max-width:68rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 .8rem}
h2{font-size:1.2rem;line-height:1.3;margin:2.6rem 0 .7rem;padding-top:.6rem;border-top:1px solid var(--rule)}
p,ul,ol{max-width:46rem}p{margin:.5rem 0}li{overflow-wrap:anywhere;margin:.15rem 0}a{color:var(--accent)}
.soft,figcaption,caption{color:var(--soft);font-size:.9rem}
code,.law,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.law{font-size:1.12rem;overflow-wrap:anywhere;max-width:none}
pre{background:var(--tint);padding:.8rem 1rem;overflow-x:auto;font-size:.85rem;line-height:1.5;border-radius:6px}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:1rem 0;max-width:none;
font-size:.92rem}
.numbers{display:flex;flex-wrap:wrap;gap:.8rem 2.4rem;margin:1rem 0;padding:0}
.numbers dt{color:var(--soft);font-size:.85rem}
.numbers dd{margin:0;font-size:1.5rem;line-height:1.3;font-variant-numeric:tabular-nums}
.numbers .key{color:var(--accent)}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.4rem;font-size:.9rem}
.facts dt{font-weight:600}.facts dd{margin:0;overflow-wrap:anywhere}
td small{display:block;color:var(--soft);font-size:.95em}
.warning{border-left:3px solid var(--accent);padding:.1rem 0 .1rem .8rem}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:.6rem 1.6rem}
figure{margin:.8rem 0;min-width:0;max-width:calc(var(--inches)*140px)}figure.broad{grid-column:1/-1}
figure svg{display:block;width:100%;height:auto;min-width:calc(var(--inches)*68px)}
figure svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif!important}
figure svg *{stroke-linejoin:round;stroke-linecap:butt}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem}
th,td{text-align:right;padding:.28rem .9rem .28rem 0;border-bottom:1px solid var(--rule);white-space:nowrap;
vertical-align:top}
th{font-weight:600;white-space:normal;vertical-align:bottom}th.text,td.text{text-align:left}td.prose{white-space:normal;text-align:left;min-width:15rem}
th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible,a:focus-visible,.wide:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
th button::after{content:"\\2195";color:var(--soft);margin-left:.3em;font-weight:400}
th[aria-sort=ascending] button::after{content:"\\2191";color:var(--accent)}
th[aria-sort=descending] button::after{content:"\\2193";color:var(--accent)}
tr.held td,.mark{color:var(--accent)}tbody tr:hover{background:var(--tint)}
.tall{max-height:34rem;overflow-y:auto}.tall thead th{position:sticky;top:0;background:var(--paper)}
.runs td:first-child,.runs th:first-child{position:sticky;left:0;background:var(--paper);padding-right:.8rem}
.yes::before{content:"\\2713\\00a0"}.no::before{content:"\\2717\\00a0"}.unknown::before{content:"?\\00a0"}
.no,.unknown{color:var(--accent)}
@media(max-width:30rem){.facts{grid-template-columns:1fr;gap:.1rem}.facts dd{margin-bottom:.5rem}
body{padding:1rem .8rem 3rem}.numbers dd{font-size:1.25rem}}
@media print{body{max-width:none;font-size:10pt}nav{display:none}
.tall{max-height:none;overflow:visible}.wide{overflow:visible}
figure,tr{break-inside:avoid}h2{break-after:avoid}figure svg{min-width:0}th button::after{content:""!important}}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, at) => {
    const {n, v} = row.cells[at].dataset;
    return n !== undefined ? Number(n) : v || null;
  };
  const order = (a, b) => typeof a === "string" ? a.localeCompare(b) : a < b ? -1 : Number(a > b);
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].map(row => [value(row, at), row]);
    const known = rows.filter(([v]) => v !== null), rest = rows.filter(([v]) => v === null);
    known.sort(([a], [b]) => down ? order(b, a) : order(a, b));
    body.append(...[...known, ...rest].map(([, row]) => row));
  }));
}
"""
