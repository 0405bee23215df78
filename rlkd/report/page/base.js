"use strict";

// Elements, numbers, and the data of the page. Text goes into text nodes only; nothing here reads HTML.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

function table(caption, header, rows, attributes = {}) {
  return element(
    "div",
    { class: "scrolls" },
    element(
      "table",
      attributes,
      caption ? element("caption", {}, caption) : null,
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          header.map((name) => element("th", { scope: "col" }, name)),
        ),
      ),
      element(
        "tbody",
        {},
        rows.map((row) =>
          element(
            "tr",
            {},
            row.map((cell) => (cell instanceof Node && cell.nodeName === "TD" ? cell : element("td", {}, cell ?? ""))),
          ),
        ),
      ),
    ),
  );
}

function shortNumber(value, share = false) {
  if (value === null || value === undefined) return "-";
  if (share) return `${(100 * value).toFixed(1)}%`;
  if (value === 0 || (Math.abs(value) >= 0.001 && Math.abs(value) < 100000))
    return String(Number(value.toPrecision(4)));
  return value.toExponential(2);
}

// A block of data by its name: base64 of gzip. Each is read once; its text then leaves the page.
async function unpacked(name) {
  const holder = document.getElementById(`data-${name}`);
  const packed = holder.textContent;
  holder.remove();
  let bytes;
  if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(packed);
  else {
    const letters = atob(packed);
    bytes = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}
