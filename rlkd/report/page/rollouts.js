// The table of rollouts: only the rows in view are in the page.

const ROW_HEIGHT = 30;
const STATUS_WORDS = ["score", "not applicable", "failed"];

// The end of an id tells rows apart.
const shortened = (id) => (id.length > 15 ? `…${id.slice(-14)}` : id);

class RolloutTable {
  constructor(data, runs, select) {
    this.data = data;
    this.runs = runs;
    this.select = select;
    this.order = data.step.map((_, i) => i);
    this.sorted = { column: "step", down: false };
    this.chosen = null;
    this.columns = this.listed();
    this.body = element("div", {
      class: "rows",
      tabindex: "0",
      role: "rowgroup",
      "aria-label": "Rollouts",
      onscroll: () => this.paint(),
      onkeydown: (event) => this.key(event),
    });
    this.space = element("div", { class: "space" });
    this.body.append(this.space);
    this.count = element("span", { role: "status" });
    this.header = element("div", { class: "row head", role: "row" });
    this.place = element(
      "div",
      { class: "list" },
      this.filters(),
      element("div", { class: "grid", role: "grid", "aria-label": "Rollouts" }, this.header, this.body),
    );
    this.place.style.setProperty("--columns", this.columns.map((column) => column.width).join(" "));
    new ResizeObserver(() => this.paint()).observe(this.body);
    this.apply();
  }

  listed() {
    const data = this.data;
    const columns = [];
    if (this.runs.length > 1) columns.push({ name: "run", width: "90px", text: (i) => this.runs[data.run[i]] });
    columns.push({ name: "step", width: "52px", number: true, text: (i) => String(data.step[i]), values: data.step });
    columns.push({ name: "row", width: "minmax(118px, 1fr)", text: (i) => shortened(data.id[i]) });
    if (data.policy.some((policy) => policy)) {
      columns.push({ name: "policy", width: "66px", text: (i) => data.policy[i] ?? "" });
    }
    for (const [name, values] of Object.entries(data.numbers)) {
      columns.push({
        name,
        width: `minmax(58px, ${Math.min(110, 24 + 7 * name.length)}px)`,
        number: true,
        values,
        text: (i) => this.cell(name, values[i], i),
        tone: (i) => this.tone(name, values[i], i),
      });
    }
    columns.push({ name: "completion", width: "minmax(110px, 2.2fr)", text: (i) => data.completion[i].slice(0, 160) });
    return columns;
  }

  cell(name, value, i) {
    const status = this.data.statuses[name]?.[i];
    if (status === 2) return "failed";
    if (status === 1) return "n/a";
    if (value === null) return "";
    return name === "advantage" ? `${value > 0 ? "+" : ""}${value.toFixed(2)}` : shortNumber(value);
  }

  tone(name, value, i) {
    if (this.data.statuses[name]?.[i] === 2) return "bad";
    if (name !== "advantage" || !value) return "";
    return value > 0 ? "good" : "bad";
  }

  filters() {
    const again = () => this.apply();
    const option = (value, text) => element("option", { value }, text);
    const input = (attributes) => element("input", { oninput: again, ...attributes });
    const numbers = this.columns.filter((column) => column.number);
    this.search = input({ type: "search", placeholder: "Text in prompt or completion", "aria-label": "Search text" });
    this.row = input({ type: "search", placeholder: "Row id", "aria-label": "Row id contains", class: "short" });
    this.first = input({ type: "number", min: "0", placeholder: "from", "aria-label": "From step", class: "tiny" });
    this.last = input({ type: "number", min: "0", placeholder: "to", "aria-label": "To step", class: "tiny" });
    this.range = element(
      "select",
      { onchange: again, "aria-label": "Number to filter by" },
      numbers.filter((column) => column.name !== "step").map((column) => option(column.name, column.name)),
    );
    this.low = input({ type: "number", step: "any", placeholder: "min", "aria-label": "At least", class: "tiny" });
    this.high = input({ type: "number", step: "any", placeholder: "max", "aria-label": "At most", class: "tiny" });
    this.status = element(
      "select",
      { onchange: again, "aria-label": "Status of rewards" },
      option("", "any status"),
      this.data.rewards.flatMap((name) => STATUS_WORDS.map((word, i) => option(`${i} ${name}`, `${name}: ${word}`))),
    );
    const kinds = [...new Set(this.data.policy)].filter(Boolean);
    this.who = element(
      "select",
      { onchange: again, "aria-label": "Run or policy" },
      option("", "all"),
      this.runs.length > 1 ? this.runs.map((name, i) => option(`run ${i}`, `run: ${name}`)) : [],
      kinds.map((kind) => option(`policy ${kind}`, `policy: ${kind}`)),
    );
    this.wrong = element("input", { type: "checkbox", onchange: again });
    const part = (...children) => element("span", { class: "part" }, children);
    return element(
      "form",
      { class: "filters", onsubmit: (event) => event.preventDefault() },
      this.search,
      this.row,
      this.count,
      element("button", { type: "reset", onclick: () => setTimeout(again) }, "Reset"),
      part("steps", this.first, this.last),
      this.range.length ? part(this.range, this.low, this.high) : null,
      this.data.rewards.length ? this.status : null,
      this.who.length > 1 ? this.who : null,
      element("label", {}, this.wrong, " wrong arithmetic"),
    );
  }

  apply() {
    const data = this.data;
    const words = this.search.value.toLowerCase();
    const row = this.row.value.toLowerCase();
    const limit = (field, fallback) => (field.value === "" ? fallback : Number(field.value));
    const [first, last] = [limit(this.first, -Infinity), limit(this.last, Infinity)];
    const [low, high] = [limit(this.low, -Infinity), limit(this.high, Infinity)];
    const values = low > -Infinity || high < Infinity ? data.numbers[this.range.value] : null;
    const [status, ...name] = this.status.value.split(" ");
    const statuses = status === "" ? null : data.statuses[name.join(" ")];
    const [kind, ...who] = this.who.value.split(" ");
    const chosen = kind === "run" ? (i) => data.run[i] === Number(who[0]) : (i) => data.policy[i] === who.join(" ");
    if (words && !this.lower) {
      this.lower = data.completion.map((text) => text.toLowerCase());
      this.lowerPrompts = data.prompts.map((messages) =>
        messages
          .map((message) => message[1])
          .join("\n")
          .toLowerCase(),
      );
    }
    this.order = [];
    for (let i = 0; i < data.step.length; i++) {
      if (data.step[i] < first || data.step[i] > last) continue;
      if (values && !(values[i] !== null && values[i] >= low && values[i] <= high)) continue;
      if (statuses && statuses[i] !== Number(status)) continue;
      if (kind && !chosen(i)) continue;
      if (this.wrong.checked && !data.wrong[i]) continue;
      if (row && !data.id[i].toLowerCase().includes(row)) continue;
      if (words && !this.lower[i].includes(words) && !this.lowerPrompts[data.prompt[i]].includes(words)) continue;
      this.order.push(i);
    }
    this.sort();
  }

  sort() {
    const { column: name, down } = this.sorted;
    const column = this.columns.find((one) => one.name === name);
    const sign = down ? -1 : 1;
    const whole = { row: this.data.id, completion: this.data.completion }[name];
    const key = column.values ? (i) => column.values[i] : whole ? (i) => whole[i] : column.text;
    this.order.sort((a, b) => {
      const [one, other] = [key(a), key(b)];
      if (one === other) return a - b;
      if (one === null || other === null) return one === null ? 1 : -1; // missing ones last
      return (one < other ? -1 : 1) * sign;
    });
    this.header.replaceChildren(
      ...this.columns.map((one) =>
        element(
          "span",
          {
            role: "columnheader",
            "aria-sort": one.name === name ? (down ? "descending" : "ascending") : "none",
            class: one.number ? "number" : "",
          },
          element(
            "button",
            { title: `Sort by ${one.name}`, onclick: () => this.sortBy(one) },
            one.name,
            one.name === name ? (down ? " ▾" : " ▴") : "",
          ),
        ),
      ),
    );
    this.count.textContent = `${this.order.length.toLocaleString("en")} of ${this.data.step.length.toLocaleString("en")}`;
    this.body.parentElement?.setAttribute("aria-rowcount", String(this.order.length + 1));
    this.space.style.height = `${this.order.length * ROW_HEIGHT}px`;
    this.painted = null;
    this.paint();
  }

  sortBy(column) {
    const again = this.sorted.column === column.name;
    this.sorted = {
      column: column.name,
      down: again ? !this.sorted.down : Boolean(column.number) && column.name !== "step",
    };
    this.body.scrollTop = 0;
    this.sort();
  }

  paint() {
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW_HEIGHT) - 5);
    const last = Math.min(this.order.length, first + Math.ceil(this.body.clientHeight / ROW_HEIGHT) + 10);
    const painted = `${first} ${last} ${this.chosen}`;
    if (painted === this.painted) return;
    this.painted = painted;
    const rows = this.order.slice(first, last).map((i, at) => {
      const row = element(
        "div",
        {
          class: "row",
          role: "row",
          "aria-rowindex": first + at + 2,
          "aria-selected": String(i === this.chosen),
          onclick: () => this.select(i),
        },
        this.columns.map((column) =>
          element(
            "span",
            { role: "gridcell", class: `${column.number ? "number" : ""} ${column.tone ? column.tone(i) : ""}` },
            column.text(i),
          ),
        ),
      );
      row.style.top = `${(first + at) * ROW_HEIGHT}px`;
      return row;
    });
    this.space.replaceChildren(...rows);
  }

  choose(i) {
    this.chosen = i;
    const at = this.order.indexOf(i);
    const [top, height] = [this.body.scrollTop, this.body.clientHeight];
    if (at >= 0 && (at * ROW_HEIGHT < top || (at + 1) * ROW_HEIGHT > top + height)) {
      this.body.scrollTop = at * ROW_HEIGHT - height / 2;
    }
    this.paint();
  }

  move(by) {
    const at = this.order.indexOf(this.chosen);
    const next = this.order[Math.min(this.order.length - 1, Math.max(0, at + by))];
    if (next !== undefined) this.select(next);
  }

  key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (by) {
      event.preventDefault();
      this.move(by);
    }
  }
}
