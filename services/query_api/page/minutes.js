// Requests by minute of the day: a histogram by uPlot, whose minutes are read out with the pointer or the arrow keys.

import uPlot from "./uplot/uPlot.esm.js";
import { count, make } from "./dom.js";

const HEIGHT = 190;
const DAY = 1440;
const clock = minute => `${String(Math.floor(minute / 60)).padStart(2, "0")}:${String(minute % 60).padStart(2, "0")}`;

const charts = new Set();
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => charts.forEach(chart => chart.redraw()));

export function drawMinutes(minutes) {
  const place = make("div", { class: "minutes", tabIndex: 0, role: "img" });
  const told = make("p", { class: "told", role: "status" });
  const most = Math.max(...minutes), peak = minutes.indexOf(most);
  const tell = minute => `${clock(minute)}: ${count(minutes[minute])}`;
  told.textContent = `Busiest: ${tell(peak)}`;
  place.setAttribute("aria-label", `Requests by minute of the day. ${told.textContent}. Arrow keys move.`);

  const colour = name => () => {
    place.style.color = `var(${name})`;  // the canvas needs the colour that the style sheet resolves to
    return getComputedStyle(place).color;
  };
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false },
    font: "12px system-ui, sans-serif" };
  const options = width => ({
    width, height: HEIGHT, padding: [8, 8, 0, 0], legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
    scales: { x: { time: false, range: [0, DAY] }, y: { range: [0, Math.max(1, most * 1.05)] } },
    axes: [
      { ...axis, size: 26, splits: () => hours(width), values: (_, splits) => splits.map(clock), grid: { show: false } },
      { ...axis, size: 54, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4,
        1e5, 2e5, 5e5, 1e6, 1e7, 1e8], values: (_, splits) => splits.map(short) },
    ],
    series: [{}, {
      stroke: colour("--accent"), fill: colour("--accent"), width: 0, points: { show: false },
      paths: uPlot.paths.bars({ size: [1, 100], gap: 0 }),
    }],
    hooks: { setCursor: [chart => { if (chart.cursor.idx != null) told.textContent = tell(chart.cursor.idx); }] },
  });

  let chart;
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!place.isConnected) {
      observer.disconnect();
      charts.delete(chart);
      chart?.destroy();
    } else if (width && chart?.width !== width) {
      charts.delete(chart);
      chart?.destroy();
      chart = new uPlot(options(width), [minutes.map((_, minute) => minute), minutes], place);
      charts.add(chart);
    }
  });
  observer.observe(place);

  let here = peak;
  place.onkeydown = event => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -60, PageDown: 60 }[event.key];
    if (!step || !chart) return;
    event.preventDefault();
    here = (here + step + DAY) % DAY;
    chart.setCursor({ left: chart.valToPos(here, "x"), top: 0 });
    told.textContent = tell(here);
  };
  return make("div", {}, place, told);
}

const short = value => value.toLocaleString("en", { notation: "compact" });

function hours(width) {
  const every = width < 480 ? 6 : width < 800 ? 3 : 2;
  return Array.from({ length: 24 / every + 1 }, (_, at) => at * every * 60).filter(minute => minute < DAY);
}
