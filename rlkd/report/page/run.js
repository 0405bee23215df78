// The figures above the charts.

function showSummary(summary, place) {
  place.append(
    element(
      "ul",
      { class: "facts" },
      summary.runs.map((run) =>
        element(
          "li",
          {},
          element("strong", {}, run.name),
          run.path === run.name ? "" : ` ${run.path}`,
          element("br"),
          [run.steps === null ? null : `${run.steps.toLocaleString("en")} steps`, rolloutsShown(run)]
            .filter(Boolean)
            .join(", "),
        ),
      ),
    ),
  );
  if (summary.changes.length) {
    place.append(
      element(
        "div",
        { class: "cards" },
        summary.changes.map((change) =>
          element(
            "div",
            {
              class: `card ${change.clear ? (change.up ? "better" : "worse") : ""}`,
            },
            element("div", { class: "what" }, change.what),
            element("div", { class: "figure" }, change.figure.split(" (")[0]),
            element("div", {}, `(${change.figure.split(" (").slice(1).join(" (")}`),
            element(
              "div",
              { class: "what" },
              change.figure.includes("no interval")
                ? "Paired by row; too few rows for an interval."
                : change.clear
                  ? "Paired by row; the interval does not contain 0."
                  : "Paired by row; the interval contains 0: no change is shown.",
            ),
            change.note ? element("div", { class: "what bad" }, change.note) : "",
          ),
        ),
      ),
    );
  }
}

// The tables behind them.
function summaryTables(summary) {
  const several = summary.runs.length > 1;
  const named = (row) => (several ? [row.run] : []);
  const header = several ? ["run"] : [];
  const place = element("div", { class: "section" });
  if (summary.evaluations.length) {
    const sampled = summary.evaluations.some((row) => row.sampled);
    const counted = summary.evaluations.some((row) => row.calculations !== null);
    place.append(
      table(
        "Held-out evaluations (95 % intervals)",
        [
          ...header,
          "step",
          "rows",
          "greedy accuracy",
          ...(sampled ? ["sampled accuracy"] : []),
          "ended",
          "tokens",
          ...(counted ? ["calculations"] : []),
        ],
        summary.evaluations.map((row) => [
          ...named(row),
          row.step,
          row.rows,
          row.greedy,
          ...(sampled ? [row.sampled ? `${row.sampled}, ${row.samples} per row` : "-"] : []),
          row.ended,
          shortNumber(row.tokens),
          ...(counted ? [shortNumber(row.calculations)] : []),
        ]),
      ),
    );
  }
  if (summary.rewards.length) {
    place.append(
      table(
        "Rewards over all rollouts",
        [
          ...header,
          "reward",
          "samples",
          "mean",
          "std",
          "trend per 100 steps",
          "not applicable",
          "failed",
          "zero-std groups",
          "seconds p50",
          "p95",
        ],
        summary.rewards.map((row) => [
          ...named(row),
          row.name,
          row.samples.toLocaleString("en"),
          shortNumber(row.mean),
          shortNumber(row.std),
          row.trend ? row.trend.figure : "too few steps",
          shortNumber(row.not_applicable, true),
          shortNumber(row.failed, true),
          row.zero_std_groups === null ? "-" : `${shortNumber(row.zero_std_groups, true)} of ${row.groups}`,
          shortNumber(row.seconds_p50),
          shortNumber(row.seconds_p95),
        ]),
      ),
    );
    if (summary.failures.length) {
      place.append(
        table(
          "Failed rewards by cause",
          [...header, "reward", "rollouts", "cause"],
          summary.failures.map((row) => [...named(row), row.reward, row.count.toLocaleString("en"), row.cause]),
        ),
      );
    } else {
      place.append(element("p", { class: "note" }, "No reward failed."));
    }
  }
  return place;
}

function rolloutsShown(run) {
  const count = run.written.toLocaleString("en");
  if (!run.written) return "no rollouts recorded";
  if (run.stride === 1) return `${count} rollouts`;
  return `${run.shown.toLocaleString("en")} of ${count} rollouts in this file (one step in ${run.stride})`;
}
