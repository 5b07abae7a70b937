// How many tasks end in a second, as a small chart.

import { useEffect, useRef } from "./vendor/hooks.js";
import uPlot from "./vendor/uplot.js";
import { html } from "./html.js";
import { colours } from "./stream.js";
import { clock, rate } from "./format.js";

const SHOWN = 300;

export function Throughput({ model }) {
  const place = useRef(null);
  const chart = useRef(null);
  const series = model.section("series", []).value.slice(-SHOWN);
  // Of fewer than two points uPlot draws no axis of times, or that of 1970: a minute without values has one.
  const now = model.now.value;
  const data = series.length > 1
    ? [series.map((row) => row[0]), series.map((row) => row[1] + row[2]), series.map((row) => row[2])]
    : [[now - 60, now], [null, null], [null, null]];
  useEffect(() => {
    const element = place.current;
    const paint = colours(element);
    const made = new uPlot({
      width: element.clientWidth || 300, height: 84, cursor: { show: false }, legend: { show: false }, padding: [8, 4, 0, 0],
      scales: { x: { time: true }, y: { range: (u, low, high) => [0, Math.max(1, high * 1.1)] } },
      axes: [
        { stroke: paint.text, grid: { show: false }, ticks: { show: false }, size: 20, font: "11px system-ui, sans-serif", values: (u, at) => at.map((each) => clock(each)), space: 90 },
        { stroke: paint.text, grid: { stroke: paint.line, width: 1 }, ticks: { show: false }, size: (u, shown) => Math.max(54, 12 + 7 * Math.max(0, ...(shown || []).map((each) => each.length))), font: "11px system-ui, sans-serif", values: (u, at) => at.map((each) => rate(each)), space: 26 },
      ],
      series: [{}, { stroke: paint.names[0], fill: paint.names[0] + "22", width: 1.5, points: { show: false } }, { stroke: paint.bad, width: 1.5, points: { show: false } }],
    }, data, element);
    chart.current = made;
    const sizes = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: 84 }));
    sizes.observe(element);
    return () => { sizes.disconnect(); made.destroy(); };
  }, []);
  useEffect(() => { if (chart.current) chart.current.setData(data); });
  const last = series[series.length - 1];
  return html`<div class="tf-throughput" role="img" aria-label=${`Tasks that end in a second: ${last ? rate(last[1] + last[2]) : "none"}`}><div ref=${place}></div></div>`;
}
