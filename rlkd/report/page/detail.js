// One rollout: the completion, its group, its rewards, and the steps of student and teacher side by side.

const MARKS = { yes: "✓", no: "✗", missing: "–" };
const TONES = { yes: "good", no: "bad", missing: "" };

function showDetail(place, list, details, i) {
  const { data, runs } = list;
  const detail = details[i];
  const members = data.group.flatMap((group, j) => (group === data.group[i] ? [j] : []));
  const messages = data.prompts[data.prompt[i]];
  const asked = messages.findLast((message) => message[0] === "user") ?? messages.at(-1) ?? ["", ""];
  const title = [runs.length > 1 ? runs[data.run[i]] : null, `step ${data.step[i]}`, data.id[i] || null]
    .filter(Boolean)
    .join(" · ");
  place.replaceChildren(
    element(
      "div",
      { class: "bar" },
      element("h2", {}, title),
      element("button", { onclick: () => list.move(-1), "aria-label": "Previous rollout" }, "↑"),
      element("button", { onclick: () => list.move(1), "aria-label": "Next rollout" }, "↓"),
    ),
    members.length > 1 ? groupStrip(list, members, i) : "",
    element("h3", {}, "Question"),
    element("div", { class: "text" }, asked[1]),
    messages.length > 1
      ? element(
          "details",
          {},
          element("summary", {}, "Whole prompt"),
          messages.map(([role, text]) => [
            element("div", { class: "what" }, role),
            element("div", { class: "text" }, text),
          ]),
        )
      : "",
    element(
      "h3",
      {},
      data.policy[i] === "teacher" ? "The teacher's trace" : "Completion",
      data.answer[i] === null ? "" : element("span", { class: "note" }, ` gold answer: ${data.answer[i]}`),
    ),
    completion(data.completion[i], detail.steps),
    detail.rewards ? rewardTable(list, detail, i) : "",
    ...Object.entries(detail.structures ?? {}).map(([name, score]) => structureTable(name, score)),
    detail.steps ? weightTable(detail.steps) : "",
    detail.credit ? creditTable(detail.credit) : "",
    detail.checks.length
      ? element(
          "div",
          {},
          element("h3", {}, "Calculations in the text"),
          element(
            "ul",
            { class: "checks" },
            detail.checks.map((check) => element("li", {}, checked(check, true))),
          ),
        )
      : "",
  );
  place.scrollTop = 0;
}

function groupStrip(list, members, i) {
  const reward = list.data.numbers.advantage ?? list.data.numbers[list.data.rewards[0]] ?? null;
  const name = list.data.numbers.advantage ? "advantage" : list.data.rewards[0];
  return element(
    "div",
    { class: "group", role: "group", "aria-label": "Completions of the same group" },
    element("span", { class: "what" }, `group of ${members.length}${reward ? `, ${name}` : ""}:`),
    members.map((j, at) =>
      element(
        "button",
        {
          "aria-pressed": String(j === i),
          onclick: () => list.select(j),
          class: list.tone("advantage", reward?.[j], j),
        },
        reward ? list.cell(name, reward[j], j) || "-" : String(at + 1),
      ),
    ),
  );
}

// The text, with the steps that have a weight marked by it: 1 is unmarked.
function completion(text, steps) {
  const place = element("div", { class: "text completion" });
  let from = 0;
  for (const step of steps ?? []) {
    const at = text.indexOf(step.text, from);
    if (at < 0 || !step.text) continue;
    const strength = Math.min(1, Math.abs(step.weight - 1));
    const mark = element("mark", { title: `weight ${shortNumber(step.weight)}` }, step.text);
    mark.style.setProperty("--strength", `${Math.round(65 * strength)}%`);
    mark.className = step.weight >= 1 ? "more" : "less";
    place.append(text.slice(from, at), mark);
    from = at + step.text.length;
  }
  place.append(text.slice(from));
  return place;
}

function rewardTable(list, detail, i) {
  const rows = Object.entries(detail.rewards).map(([name, facts]) => {
    const status = list.data.statuses[name]?.[i];
    const value = list.data.numbers[name]?.[i];
    return [
      name,
      status === 0 ? shortNumber(value) : element("td", { class: status === 2 ? "bad" : "" }, STATUS_WORDS[status]),
      [facts.cause, facts.reused ? `reused (${facts.reused})` : null, facts.detail].filter(Boolean).join("; "),
      facts.seconds === undefined ? "" : shortNumber(facts.seconds),
    ];
  });
  const score = list.data.numbers.score?.[i];
  const advantage = list.data.numbers.advantage?.[i];
  if (score !== undefined && score !== null) rows.push(["combined score", shortNumber(score), "", ""]);
  if (advantage !== undefined) {
    rows.push([
      "advantage",
      advantage === null ? "none" : list.cell("advantage", advantage, i),
      advantage === null ? "the run ended at this batch" : "within its group",
      "",
    ]);
  }
  return element("div", {}, element("h3", {}, "Rewards"), table(null, ["reward", "value", "detail", "seconds"], rows));
}

function structureTable(name, score) {
  const rows = score.pairs.map((pair) => [
    pair.label,
    stepCell(pair.student),
    stepCell(pair.teacher),
    element("td", {}, verdict(pair.verdict)),
    pair.points === null ? "-" : shortNumber(pair.points),
  ]);
  return element(
    "div",
    {},
    element("h3", {}, `Steps compared: ${name}`),
    element(
      "p",
      { class: "note" },
      `Alignment ${score.alignment}, teacher branch ${score.branch + 1}, ` + `score ${shortNumber(score.value)}.`,
    ),
    rows.length ? table(null, ["step", "student", "teacher", "the same", "points"], rows, { class: "steps" }) : "",
    element(
      "details",
      { open: true },
      element("summary", {}, "Arithmetic of the score"),
      element(
        "ol",
        { class: "arithmetic" },
        score.arithmetic.map((line) => element("li", {}, line)),
      ),
    ),
  );
}

function stepCell(step) {
  if (!step) return element("td", { class: "none" }, "no step");
  const computed = [step.question, step.answer].filter((part) => part !== null).join(" = ");
  const bare = (text) => (text ?? "").replaceAll(/\s/g, "");
  return element(
    "td",
    {},
    bare(step.meta) !== bare(computed) ? element("div", {}, step.meta ?? "") : "",
    step.check
      ? element("div", { class: "computed" }, checked({ ...step.check, text: computed }))
      : computed
        ? element("div", { class: "computed" }, computed)
        : "",
  );
}

// A calculation with a mark: is its result right?
function checked(check, always = false) {
  const wrong = element("span", { class: "bad" }, ` ✗ (is ${check.value})`);
  return [check.text, check.right ? (always ? element("span", { class: "good" }, " ✓") : "") : wrong];
}

function verdict(text) {
  if (text === null) return element("span", { class: "what" }, "no counterpart");
  const words = text.split(" / ");
  if (words.length !== 3) return element("span", {}, text);
  return ["meta", "question", "answer"].map((field, k) =>
    element(
      "div",
      { class: TONES[words[k]] ?? "" },
      `${MARKS[words[k]] ?? words[k]} ${field}${words[k] === "missing" ? " missing" : ""}`,
    ),
  );
}

function creditTable(steps) {
  return element(
    "div",
    {},
    element("h3", {}, "Credit of steps"),
    table(
      null,
      ["no.", "step", "share of the score", "tokens", "credit per token"],
      steps.map((step, k) => [
        String(k + 1),
        step.text ?? "not found in the text",
        shortNumber(step.score),
        String(step.tokens),
        shortNumber(step.credit),
      ]),
    ),
  );
}

function weightTable(steps) {
  const some = (field) => steps.some((step) => step[field] !== null && step[field] !== undefined);
  const fields = ["margin", "teacher", "student"].filter(some);
  const names = { margin: "margin", teacher: "teacher's validity", student: "student's validity" };
  const proposals = some("proposal");
  return element(
    "div",
    {},
    element("h3", {}, "Weights of steps"),
    table(
      null,
      [
        "no.",
        "step",
        "weight",
        ...fields.map((field) => names[field]),
        "tokens",
        ...(proposals ? ["proposed instead"] : []),
      ],
      steps.map((step, k) => [
        String(k + 1),
        step.text,
        shortNumber(step.weight),
        ...fields.map((field) => shortNumber(step[field])),
        String(step.tokens),
        ...(proposals ? [step.proposal ?? ""] : []),
      ]),
    ),
  );
}
