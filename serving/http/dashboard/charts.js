"use strict";
// Small charts as DOM: text stays text, so that it wraps, is read aloud and follows the page's colours.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function bar(shares) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [share, kind] of shares) {
    const rectangle = document.createElementNS(space, "rect");
    rectangle.setAttribute("width", String(Math.max(share * 100, share > 0 ? 0.6 : 0)));
    rectangle.setAttribute("height", "10");
    rectangle.setAttribute("class", kind);
    svg.append(rectangle);
  }
  return element("div", { class: "track" }, svg);
}

// rows: [label, [[share of the full width, class], ...] painted one over the other, text]
function bars(rows) {
  const chart = element("div", { class: "bars" });
  for (const [label, shares, text] of rows) {
    chart.append(element("div", { class: "label" }, label), bar(shares), element("div", { class: "number" }, text));
  }
  return chart;
}

function tile(name, value, more = "") {
  return element(
    "div", { class: "tile" },
    element("div", { class: "name" }, name),
    element("div", { class: "value" }, value),
    more ? element("div", { class: "more" }, more) : null,
  );
}

function table(columns, rows) {
  return element(
    "table", {},
    element("thead", {}, element("tr", {}, ...columns.map((column) => element("th", { scope: "col" }, column)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell) => element("td", {}, cell))))),
  );
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit + 1 < units.length) { count /= 1000; unit += 1; }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function whole(number) {
  return Math.round(number).toLocaleString("en");
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
