// Pictures of answers: bars for one row of numbers, lines for many.
import { namesOf } from "./host.mjs";

const WIDTH = 440, HEIGHT = 260, LEFT = 52, BOTTOM = 22, TOP = 8;
const COLOURS = ["#2a6fdb", "#d9822b", "#2d9d5c", "#b8336a", "#7a5cc9", "#8a8a2b"];

export function draw(metadata, sequence, rows) {
  if (!rows.length) return textOf("No steps yet.");
  if (metadata.task === "forecast") return forecast(metadata, sequence, rows);
  if (metadata.task === "tag") return lines(rows[0].map((_, column) => rows.map((row, step) => [step, row[column]])), namesOf(metadata), 0);
  return bars(namesOf(metadata), rows[0], metadata.task === "classify");
}

function textOf(text) {
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  return paragraph;
}

function bars(names, numbers, shares) {
  const largest = shares ? 1 : Math.max(...numbers.map(Math.abs), Number.MIN_VALUE);
  const list = document.createElement("div");
  numbers.forEach((number, index) => {
    const [row, name, value] = [document.createElement("div"), ...["span", "span"].map((tag) => document.createElement(tag))];
    const [track, bar] = [document.createElement("div"), document.createElement("i")];
    row.className = "bar";
    name.textContent = names[index];
    value.textContent = shares ? `${(100 * number).toFixed(1)} %` : number.toPrecision(5);
    bar.style.width = `${(100 * Math.abs(number)) / largest}%`;
    track.append(bar);
    row.append(name, track, value);
    list.append(row);
  });
  return list;
}

// The first target: what was, and what is to come with the band between the outer quantiles.
function forecast({ schema, config }, { time, values }, rows) {
  const quantiles = config.quantiles?.length ?? 0;
  const kept = Math.min(time, 2 * rows.length + 24);
  const past = Array.from({ length: kept }, (_, step) => [step - kept, values[(time - kept + step) * schema.features.length]]);
  const column = (index) => [past.at(-1), ...rows.map((row, step) => [step, row[index]])];
  const middle = column(quantiles ? Math.floor(quantiles / 2) : 0);
  const band = quantiles > 1 ? [...column(0), ...column(quantiles - 1).reverse()] : null;
  return lines([past, middle], [schema.targets[0], "forecast"], 1, band);
}

// Lines of points [step, value]; the first `muted` of them are what was.
function lines(series, names, muted, band = null) {
  const points = [...series.flat(), ...(band ?? [])];
  const [steps, values] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const [first, last, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
  const x = (step) => LEFT + ((step - first) / (last - first || 1)) * (WIDTH - LEFT - 4);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low || 1)) * (HEIGHT - BOTTOM - TOP);
  const path = (line) => `M${line.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("L")}`;
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + 18}`, role: "img" });
  for (const value of [low, (low + high) / 2, high]) {
    svg.append(make("path", { class: "grid", d: `M${LEFT} ${y(value)}H${WIDTH}` }));
    svg.append(make("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, Number(value.toPrecision(4))));
  }
  for (const [step, anchor] of [[first, "start"], [last, "end"]]) {
    svg.append(make("text", { x: x(step), y: HEIGHT - 6, "text-anchor": anchor }, `step ${step}`));
  }
  if (band) svg.append(make("path", { class: "band", d: `${path(band)}Z` }));
  series.forEach((line, index) => {
    const colour = COLOURS[Math.max(0, index - muted) % COLOURS.length];
    svg.append(make("path", index < muted ? { class: "past", d: path(line) } : { stroke: colour, d: path(line) }));
    const place = { x: LEFT + (index % 5) * 76, y: HEIGHT + 10 + 12 * Math.floor(index / 5) };
    svg.append(make("text", index < muted ? place : { ...place, style: `fill:${colour};opacity:1` }, names[index]));
  });
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT + 18 + 12 * Math.floor((series.length - 1) / 5)}`);
  return svg;
}

function make(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
