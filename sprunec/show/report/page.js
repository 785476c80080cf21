"use strict";
// Show the values of marks and curves under the pointer, and by the arrow keys in a drawing that has the focus.
const tip = document.getElementById("tip");
let now = [];

function leave() {
  tip.hidden = true;
  for (const each of now) each.tagName === "line" ? each.remove() : each.classList.remove("now");
  now = [];
}

function say(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px";
  tip.style.top = (y + box.height + 24 < innerHeight ? y + 16 : y - box.height - 12) + "px";
}

function tell(mark) {
  leave();
  mark.classList.add("now");
  now = [mark];
  const box = mark.getBoundingClientRect();
  say(mark.dataset.tip, box.right, box.bottom);
}

const seen = (part) => part.getClientRects().length > 0; // of a run that is shown

// The points of a curve: where they are drawn, and the numbers there.
function pointsOf(curve) {
  const numbers = curve.dataset.points.split(" ").map((pair) => pair.split(":"));
  return Array.from(curve.points, (place, i) => ({ place: place.x, x: numbers[i][0], y: numbers[i][1] }));
}

const distance = (place) => (a, b) => Math.abs(a.place - place) - Math.abs(b.place - place);

// Tell all curves at a place, in the drawing's own coordinates: those that have a point near it.
function tellCurves(svg, place) {
  const found = [...svg.querySelectorAll("[data-points]")].filter(seen).map((curve) => {
    const [nearest] = pointsOf(curve).sort(distance(place));
    return { name: curve.dataset.name, ...nearest };
  });
  if (!found.length) return;
  found.sort(distance(place));
  const at = found[0].place;
  const lines = found.filter((each) => Math.abs(each.place - at) < 12).slice(0, 9);
  leave();
  const line = document.createElementNS(svg.namespaceURI, "line");
  const height = svg.viewBox.baseVal.height;
  for (const [name, value] of Object.entries({ class: "now", x1: at, x2: at, y1: 30, y2: height - 28 }))
    line.setAttribute(name, value);
  svg.append(line);
  now = [line];
  const box = line.getBoundingClientRect();
  const steps = `step ${Math.round(lines[0].x)}`;
  say([steps, ...lines.map((each) => `${each.name}: ${each.y}`)].join("\n"), box.right, box.top + 20);
}

function placeOf(svg, event) {
  const box = svg.getBoundingClientRect();
  return ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
}

// All that the arrow keys go through in a drawing, from left to right: marks, then places on curves.
function stopsOf(svg) {
  const marks = [...svg.querySelectorAll("[data-tip]")].filter(seen).map((mark) => () => tell(mark));
  const curves = [...svg.querySelectorAll("[data-points]")].filter(seen);
  const places = [...new Set(curves.flatMap((curve) => pointsOf(curve).map((point) => point.place)))];
  return [...places.sort((a, b) => a - b).map((place) => () => tellCurves(svg, place)), ...marks];
}

for (const svg of document.querySelectorAll("svg")) {
  let stop = -1;
  svg.tabIndex = 0;
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-roledescription", "chart; arrow keys tell its values");
  svg.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("[data-tip]");
    mark ? tell(mark) : svg.querySelector("[data-points]") ? tellCurves(svg, placeOf(svg, event)) : leave();
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const stops = stopsOf(svg);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return leave();
    if (step) stop = Math.max(0, Math.min(stops.length - 1, stop + step));
    else if (event.key === "Home") stop = 0;
    else if (event.key === "End") stop = stops.length - 1;
    else return;
    event.preventDefault();
    if (stops.length) stops[stop]();
  });
}
