// Charts by plotly, each drawn when it first comes into view.

const COLOURS = {
  light: ["#0b62c4", "#c8322f", "#1f8a4c", "#8450c8", "#b86a00", "#00798c", "#6b6f76"],
  dark: ["#6cb2ff", "#ff8a85", "#67d391", "#c7a4ff", "#ffb54d", "#4dd0dc", "#b3b9c2"],
};
const DASHES = ["solid", "dash"];

let plotly = null;
// The library is most of the file, so it is unpacked when the page is already there.
function withPlotly() {
  plotly ??= unpacked("charts").then((source) => {
    document.head.append(element("script", {}, source));
    return window.Plotly;
  });
  return plotly;
}

function showCharts(summary, place) {
  const runs = summary.runs.map((run) => run.name);
  const drawn = new Map();
  const watch = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watch.unobserve(target);
        withPlotly().then((library) => draw(library, drawn.get(target), target, runs));
      }
    },
    { rootMargin: "300px" },
  );
  let section = null;
  let grid = null;
  for (const chart of summary.charts) {
    if (chart.section !== section) {
      section = chart.section;
      grid = element("div", { class: "charts" });
      const parts = [element("h2", {}, section), grid];
      place.append(
        section === "Other metrics"
          ? element("details", { class: "section" }, element("summary", {}, section), grid)
          : element("div", { class: "section" }, parts),
      );
    }
    const area = element("div", { class: "plot", role: "group", "aria-label": spoken(chart, runs) });
    drawn.set(area, chart);
    grid.append(
      element(
        "figure",
        {},
        element(
          "figcaption",
          {},
          element("strong", {}, chart.title),
          " ",
          element("span", { class: "note" }, chart.note),
        ),
        area,
        valuesOf(chart, runs),
      ),
    );
    watch.observe(area);
  }
  return () =>
    withPlotly().then((library) => {
      for (const [area, chart] of drawn) if (area.dataset.drawn) draw(library, chart, area, runs);
    });
}

const label = (curve, runs) => (runs.length > 1 ? `${curve.name}, ${runs[curve.run]}` : curve.name);

function spoken(chart, runs) {
  const ends = chart.curves.map((curve) => {
    const last = curve.y.length - 1;
    return (
      `${label(curve, runs)} from ${shortNumber(curve.y[0], chart.share)} at ${curve.x[0]} to ` +
      `${shortNumber(curve.y[last], chart.share)} at ${curve.x[last]}`
    );
  });
  return `Chart: ${chart.title}. ${ends.join("; ")}.`;
}

function valuesOf(chart, runs) {
  const details = element("details", { class: "values" }, element("summary", {}, "Values"));
  details.addEventListener("toggle", () => {
    if (details.children.length > 1) return;
    const rows = chart.curves.flatMap((curve) =>
      curve.x.map((x, i) => [
        label(curve, runs),
        x,
        shortNumber(curve.raw.length ? curve.raw[i] : curve.y[i], chart.share),
        shortNumber(curve.y[i], chart.share),
        `${shortNumber(curve.low[i], chart.share)} to ${shortNumber(curve.high[i], chart.share)}`,
      ]),
    );
    details.append(table(null, ["curve", chart.x_title, "value", "mean around", "95 % interval"], rows));
  });
  return details;
}

// Plotly reads a few tags in names.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function traces(chart, runs, colours) {
  const names = [...new Set(chart.curves.map((curve) => curve.name))];
  const mark = chart.share ? "%{y:.1%}" : "%{y:.4~g}";
  return chart.curves.flatMap((curve) => {
    const colour = colours[(names.length > 1 ? names.indexOf(curve.name) : curve.run) % colours.length];
    const name = plain(label(curve, runs));
    const line = { color: colour, width: 2, dash: DASHES[curve.run] };
    const shared = { x: curve.x, legendgroup: name, marker: { color: colour, size: 6 } };
    if (chart.kind !== "steps") {
      return [
        {
          ...shared,
          y: curve.y,
          name,
          line,
          mode: "lines+markers",
          hovertemplate: mark,
          error_y: {
            type: "data",
            symmetric: false,
            thickness: 1.2,
            width: 4,
            color: colour,
            array: curve.y.map((y, i) => (curve.high[i] ?? y) - y),
            arrayminus: curve.y.map((y, i) => y - (curve.low[i] ?? y)),
          },
        },
      ];
    }
    const silent = { ...shared, hoverinfo: "skip", showlegend: false };
    const banded = curve.low.some((bound) => bound !== null);
    const band = !banded
      ? []
      : [
          { ...silent, y: curve.low, mode: "lines", line: { width: 0 } },
          { ...silent, y: curve.high, mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: `${colour}2b` },
        ];
    const dots = !banded
      ? []
      : [{ ...silent, y: curve.raw, mode: "markers", marker: { color: colour, size: 3.5, opacity: 0.45 } }];
    return [
      ...band,
      ...dots,
      { ...shared, y: curve.y, name, line, mode: banded ? "lines" : "lines+markers", hovertemplate: mark },
    ];
  });
}

function draw(library, chart, area, runs) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: colour("--grid"),
    linecolor: colour("--line"),
    zeroline: false,
    automargin: true,
    exponentformat: "e",
    tickfont: { size: 11 },
  };
  const values = chart.curves.flatMap((curve) => (curve.raw.length ? curve.raw : curve.y));
  const flat = values.every((value) => value === values[0]) && values[0] > 0; // else plotly shows 1 around a small one
  const steps = chart.curves.flatMap((curve) => [curve.x[0], curve.x.at(-1)]);
  const few = Math.max(...steps) - Math.min(...steps) <= 8;
  area.dataset.drawn = "yes";
  library.react(
    area,
    traces(chart, runs, COLOURS[isDark() ? "dark" : "light"]),
    {
      height: 250 + 18 * Math.ceil(chart.curves.length / 3),
      margin: { l: 48, r: 12, t: 8, b: 36 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--text") },
      xaxis: {
        ...axis,
        title: { text: chart.x_title, standoff: 4, font: { size: 11 } },
        ...(chart.kind === "positions"
          ? { range: [0, 1] }
          : { tickformat: ",d", ...(few ? { dtick: 1 } : { nticks: 8 }) }),
      },
      yaxis: {
        ...axis,
        tickformat: chart.share ? ".0%" : "",
        ...(chart.share || flat ? { rangemode: "tozero" } : {}),
      },
      hovermode: "x unified",
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--text") } },
      legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0, font: { size: 11 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent") },
      showlegend: chart.curves.length > 1 || runs.length > 1,
    },
    {
      displaylogo: false,
      responsive: true,
      plotlyServerURL: "", // no button that sends the data away
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    },
  );
}
