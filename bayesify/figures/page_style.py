"""How the page looks: on a phone and on a desk, in light and in dark, on paper."""

CSS = """
:root{--paper:#fff;--ink:#1b1d21;--soft:#5c6169;--line:#c9ccd1;--panel:#f5f6f7;--warn:#b45309;--grave:#b42318;
--good:#1a7f4b;--c1:#0072b2;--c2:#d55e00;--c3:#009e73;--c4:#9a6fb0}
@media(prefers-color-scheme:dark){:root{--paper:#15171a;--ink:#e6e7e9;--soft:#a2a7af;--line:#41464d;--panel:#1e2125;
--warn:#e8a33d;--grave:#f08a80;--good:#5fc793;--c1:#56b4e9;--c2:#f0803c;--c3:#3fc9a0;--c4:#c39bd6}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","DejaVu Sans",sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.2;margin:.1rem 0;overflow-wrap:anywhere}
h2{font-size:1.05rem;margin:2.5rem 0 .75rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:0}
p{margin:.25rem 0;overflow-wrap:anywhere}
header p,figcaption,dt,.soft{color:var(--soft)}
.soft{font-size:.85rem;margin-top:.6rem}
header .kind{font-size:.85rem}
.good{color:var(--good)}
.findings{list-style:none;margin:0;padding:0;display:grid;gap:.6rem}
.findings li{background:var(--panel);border-left:4px solid var(--warn);border-radius:3px;padding:.6rem .9rem}
.findings h3{color:var(--warn)}
.findings .grave{border-color:var(--grave)}
.findings .grave h3{color:var(--grave)}
.findings b{font-weight:600}
.remedy::before{content:"→ ";color:var(--soft)}
.numbers{display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1rem 1.25rem;margin:0}
.numbers dt,figcaption{font-size:.85rem;line-height:1.35}
dd{margin:0}
.numbers dd{font-size:1.25rem;font-variant-numeric:tabular-nums;white-space:nowrap}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1.75rem 2rem;
align-items:start}
figure{margin:0;break-inside:avoid}
figure svg{display:block;width:100%;height:auto;max-width:34rem}
figure text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif!important}
figcaption{margin:.35rem 0 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.5rem 0 1.5rem}
th{font-weight:400;color:var(--soft);text-align:left}
th[scope=col],td{text-align:right;padding:.2rem 0 .2rem 1.5rem;white-space:nowrap}
tr+tr>*{border-top:1px solid var(--line)}
.tree{font-size:.9rem}
.tree details details{margin-left:.6rem;padding-left:.6rem;border-left:1px solid var(--line)}
.tree summary{display:flex;flex-wrap:wrap;gap:.1rem .75rem;align-items:center;padding:.22rem .2rem;cursor:pointer;
border-radius:3px;list-style:none}
.tree summary::-webkit-details-marker{display:none}
.tree summary::before{content:"▸";color:var(--soft);width:.8em;flex:none}
.tree details[open]>summary::before{content:"▾"}
summary:hover{background:var(--panel)}
summary:focus-visible{outline:2px solid var(--c1);outline-offset:1px}
.tree summary b{font-weight:600;flex:1 1 8rem;overflow-wrap:anywhere;min-width:0}
.tree summary span{color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap}
.tree .h{width:5.5rem;height:1.3rem;flex:none;border-bottom:1px solid var(--line)}
.h path{fill:var(--c1)}
.leaf{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr));gap:.15rem 1.5rem;
margin:.3rem 0 .8rem 1.55rem}
.leaf div{display:flex;justify-content:space-between;gap:.75rem;border-bottom:1px dotted var(--line)}
.leaf dd{font-variant-numeric:tabular-nums;text-align:right;overflow-wrap:anywhere;min-width:0}
.rest{margin:.75rem 0 0;padding-left:1.2rem;font-size:.9rem;color:var(--soft)}
.origin{display:grid;grid-template-columns:minmax(0,1fr);gap:.6rem;margin:0;font-size:.9rem}
.origin summary{cursor:pointer}
code,pre{font:.85em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
pre{overflow-x:auto;margin:.3rem 0;padding:.6rem .8rem;background:var(--panel);border-radius:3px;overflow-wrap:normal}
@media(max-width:30rem){.numbers{grid-template-columns:1fr 1fr}.numbers dd{font-size:1.1rem}
.tree details details{margin-left:.25rem;padding-left:.4rem}.leaf{margin-left:.5rem}
.tree summary{display:grid;grid-template-columns:.8rem 1fr 1fr auto;padding:.4rem .2rem}
.tree summary b{grid-column:2/-1}.tree summary span{grid-row:2}.tree summary span:nth-child(2){grid-column:2}
.tree summary span:nth-child(3){grid-column:3}
.tree summary .h{grid-row:2;grid-column:4}}
@media print{:root{--paper:#fff;--ink:#000;--soft:#444;--line:#bbb;--panel:#f5f5f5;--warn:#8a4b00;--grave:#8f1c12;
--c1:#0072b2;--c2:#d55e00;--c3:#009e73}main{max-width:none;padding:0}h2{break-after:avoid}
.figures{grid-template-columns:1fr 1fr}.findings li{break-inside:avoid}}
""".replace("\n", "")
