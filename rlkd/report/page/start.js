// Starts the page: tabs, theme, data.

const THEMES = ["system", "light", "dark"];
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let theme = "system";
let redraw = () => {};

const isDark = () => theme === "dark" || (theme === "system" && prefersDark.matches);

function useTheme(next) {
  theme = next;
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  document.getElementById("theme").textContent = `Theme: ${theme}`;
  redraw();
}

function openTab(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const open = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(open));
    tab.tabIndex = open ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !open;
  }
}

async function start() {
  useTheme(theme);
  prefersDark.addEventListener("change", () => useTheme(theme));
  document
    .getElementById("theme")
    .addEventListener("click", () => useTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]));
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => {
      location.hash = tab.getAttribute("aria-controls");
    });
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  }
  const [summary, data] = (await Promise.all([unpacked("summary"), unpacked("table")])).map((text) =>
    JSON.parse(text),
  );
  const runs = summary.runs.map((run) => run.name);
  const place = document.getElementById("run");
  showSummary(summary, place);
  redraw = showCharts(summary, place);
  place.insertBefore(summaryTables(summary), place.querySelectorAll(":scope > .section")[1] ?? null);
  const browser = document.getElementById("rollouts");
  const detail = element(
    "article",
    { class: "detail", "aria-label": "The selected rollout" },
    element("p", { class: "note" }, data.step.length ? "Select a rollout." : "The run recorded no rollouts."),
  );
  let details = null; // unpacked with the first rollout that is opened
  const list = new RolloutTable(data, runs, (i) => {
    history.replaceState(null, "", `#rollout-${i + 1}`);
    open(i);
  });
  async function open(i) {
    list.choose(i);
    details ??= unpacked("details").then((text) => JSON.parse(text));
    const known = await details;
    if (list.chosen === i) showDetail(detail, list, known, i);
  }
  browser.append(list.place, detail);
  const route = () => {
    const chosen = /^#rollout-(\d+)$/.exec(location.hash);
    openTab(chosen || location.hash === "#rollouts" ? "rollouts" : "run");
    const i = chosen ? Number(chosen[1]) - 1 : 0;
    if (chosen && i >= 0 && i < data.step.length) open(i);
  };
  addEventListener("hashchange", route);
  route();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

start().catch((error) => {
  const problem = document.getElementById("problem");
  problem.hidden = false;
  problem.textContent =
    typeof DecompressionStream === "undefined"
      ? "This browser is too old: it has no DecompressionStream (Chrome 80, Safari 16.4, Firefox 113 and later do)."
      : `The report could not be shown: ${error}`;
});
