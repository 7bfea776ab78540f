// Compute latency: a trace of every frame's total against the TR, and the stages of the frame on view.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { find, ms, put } from "./dom.js";

const STAGES = ["journal", "preprocess", "wait", "brain", "denoise", "vae"];
const LINE = "#6fb3e0";
const DIM = "#8b96a3";
const GRID = { stroke: "#20262d", width: 1 };

const holder = find("latency-chart");
let chart = null;
let chartRemPx = 0;

// The page's unit of length: it grows with the screen, and the chart's letters with it.
const remPx = () => parseFloat(getComputedStyle(document.documentElement).fontSize);
const font = () => `${0.85 * remPx()}px system-ui, sans-serif`;

export function drawLatency(store) {
  const frames = store.volumes.map((volume) => store.frames.get(volume));
  const totals = frames.map((frame) => frame.latency_ms.total);
  const trMs = (store.status?.tr_s ?? 0) * 1000;
  drawQuantiles(totals);
  drawStages(store.frames.get(store.viewed), store.selected === null);
  drawChart(store, totals, trMs);
}

// The value at or below which a share q of the frames lies (nearest rank), so that it is one that occurred.
function quantile(sorted, q) {
  return sorted.length === 0 ? null : sorted[Math.ceil(q * sorted.length) - 1];
}

function drawQuantiles(totals) {
  const sorted = totals.filter((total) => total !== null).sort((a, b) => a - b);
  for (const [name, q] of [["p50", 0.5], ["p95", 0.95], ["max", 1]]) {
    const value = quantile(sorted, q);
    put(`latency-${name}`, ms(value), value);
  }
}

function drawStages(frame, live) {
  const latency = frame?.latency_ms;
  put("latency-of", frame ? `${live ? "newest frame" : "frame"} ${frame.volume}` : "", frame?.volume);
  put("latency-total", ms(latency?.total), latency?.total);
  const bar = find("stages");
  const list = find("stage-list");
  if (list.childElementCount === 0) buildStages(bar, list);
  STAGES.forEach((stage, at) => {
    const value = latency?.[stage] ?? 0;
    bar.children[at].style.flexGrow = value;
    put(`stage-${stage}`, latency ? ms(value) : "–", latency?.[stage]);
  });
}

function buildStages(bar, list) {
  for (const stage of STAGES) {
    const segment = document.createElement("span");
    segment.dataset.stage = stage;
    bar.append(segment);
    const entry = document.createElement("li");
    entry.dataset.stage = stage;
    const value = document.createElement("b");
    value.dataset.testid = `stage-${stage}`;
    entry.append(`${stage} `, value);
    list.append(entry);
  }
}

function drawChart(store, totals, trMs) {
  const width = holder.clientWidth;
  const height = holder.clientHeight;
  if (width === 0 || height === 0) return;
  const planned = Math.max(store.counts.planned, 2);
  const data = [store.volumes, totals];
  const top = 1.12 * Math.max(trMs, ...totals, 1);
  const last = Math.max(planned - 1, store.volumes.at(-1) ?? 0);
  if (chartRemPx !== remPx()) {
    chart?.destroy();
    chart = new uPlot(options(width, height), data, holder);
    chartRemPx = remPx();
  }
  if (chart.width !== width || chart.height !== height) chart.setSize({ width, height });
  chart.trMs = trMs;
  chart.batch(() => {
    chart.setData(data, false);
    chart.setScale("x", { min: 0, max: last });
    chart.setScale("y", { min: 0, max: top });
  });
  holder.dataset.points = totals.length;
}

function options(width, height) {
  const axis = { stroke: DIM, grid: GRID, ticks: GRID, font: font() };
  return {
    width,
    height,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, auto: false }, y: { auto: false } },
    axes: [
      { ...axis, size: 1.8 * remPx() },
      { ...axis, size: 3.6 * remPx(), space: 2 * remPx() },
    ],
    series: [{}, { stroke: LINE, width: 2, points: { show: true, size: 4, fill: LINE, stroke: LINE } }],
    hooks: { draw: [drawTr] },
  };
}

// The TR over the whole width, with its name: the line a total must stay below.
function drawTr(plot) {
  if (!plot.trMs) return;
  const { ctx, bbox } = plot;
  const y = Math.round(plot.valToPos(plot.trMs, "y", true));
  ctx.save();
  ctx.strokeStyle = DIM;
  ctx.fillStyle = DIM;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([6 * devicePixelRatio, 5 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.font = `${0.85 * remPx() * devicePixelRatio}px system-ui, sans-serif`;
  ctx.textAlign = "right";
  ctx.textBaseline = "top";
  ctx.fillText(`TR ${Math.round(plot.trMs)} ms`, bbox.left + bbox.width - 4, y + 4 * devicePixelRatio);
  ctx.restore();
}
