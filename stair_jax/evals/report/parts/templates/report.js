"use strict";
// Lists of a report: what a page loads when somebody looks. Text of models is set as text alone.
(() => {
  const manifest = JSON.parse(document.getElementById("manifest").textContent);
  const PAGE = 30; // rows that are shown at once
  const KEPT = 24; // files in memory
  const FILE = /^[A-Za-z0-9_-]+$/;
  const TAGS = /(<\|\/?(?:Reasoning_step|Output)\|>)/;

  // ---- files -------------------------------------------------------------------------------
  const waiting = new Map(); // name -> {resolve, reject}
  const files = new Map(); // name -> promise of its content, the latest used last
  const policy = window.trustedTypes
    ? window.trustedTypes.createPolicy("shards", { createScriptURL: (url) => url })
    : { createScriptURL: (url) => url };

  window.stairShard = (name, packed) => {
    const due = waiting.get(name);
    if (!due) return;
    waiting.delete(name);
    unpack(packed).then(due.resolve, due.reject);
  };

  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(plain).text());
  }

  function load(name) {
    const known = files.get(name);
    if (known) {
      files.delete(name);
      files.set(name, known);
      return known;
    }
    const found = new Promise((resolve, reject) => {
      if (!FILE.test(name)) return reject(new Error(`no name of a file: ${name}`));
      waiting.set(name, { resolve, reject });
      const script = document.createElement("script");
      script.src = policy.createScriptURL(`data/${name}.js`);
      script.onload = () => script.remove();
      script.onerror = () => {
        script.remove();
        waiting.delete(name);
        reject(new Error(`data/${name}.js cannot be read; is the folder "data" beside this page?`));
      };
      document.head.append(script);
    });
    files.set(name, found);
    found.catch(() => files.delete(name));
    if (files.size > KEPT) files.delete(files.keys().next().value);
    return found;
  }

  // ---- elements ----------------------------------------------------------------------------
  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  // Pieces of what a model said: its tags are quiet, all of it is text.
  function pieces(said) {
    return String(said)
      .split(TAGS)
      .filter((piece) => piece)
      .map((piece) => (TAGS.test(piece) ? el("span", { class: "tag" }, piece) : piece));
  }

  const text = (said) => el("div", { class: "text", dir: "auto" }, ...pieces(said));
  const number = (value) =>
    typeof value === "number" ? String(Math.round(value * 1000) / 1000) : value === null ? "none" : String(value);

  function facts(pairs) {
    const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
    if (!known.length) return null;
    return el("dl", {}, ...known.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  }

  function heading(said) {
    return el("h3", {}, said);
  }

  function turns(row) {
    const parts = [];
    for (const [role, content] of row.before || []) parts.push(heading(`Earlier turn: ${role}`), text(content));
    parts.push(heading("Prompt"), text(row.question));
    if (row.prefill) parts.push(heading("The response begins, not by the model"), text(row.prefill));
    return parts;
  }

  // ---- what a row shows --------------------------------------------------------------------
  const fill = {
    trees(body, row) {
      const meta = Object.entries(row.meta || {});
      const pairs = row.pairs.map((pair) =>
        el("li", {}, `${pair.chosen} was chosen over ${pair.rejected}. ${pair.why.slice(0, 2).join(" ")}`),
      );
      body.append(...turns(row));
      const about = facts([["right answer", row.truth], ["id", row.id], ...meta]);
      if (about) body.append(about);
      body.append(heading(`Tree of ${row.nodes.tag.length} nodes`), tree(row));
      body.append(heading(pairs.length ? "Pairs of this tree" : "This tree gave no pair."));
      if (pairs.length) body.append(el("ul", {}, ...pairs));
      const counters = facts(Object.entries(row.counters).map(([name, value]) => [name.replaceAll("_", " "), number(value)]));
      if (counters) body.append(el("details", {}, el("summary", {}, "What the search counted"), counters));
    },

    pairs(body, row) {
      body.append(...turns(row));
      if (row.shared) body.append(heading("Both begin"), text(row.shared));
      const side = (kind, at) => {
        const said = row[kind];
        const marked = el("mark", { class: kind }, ...pieces(said.slice(0, row.step[at])));
        const words = kind === "chosen" ? "Chosen" : "Rejected";
        return el(
          "div",
          {},
          el("h3", { class: kind }, `${words}: ${row.tags[at]}, value ${number(row.values[at])}`),
          el("div", { class: "text", dir: "auto" }, marked, ...pieces(said.slice(row.step[at]))),
        );
      };
      body.append(el("div", { class: "sides" }, side("chosen", 0), side("rejected", 1)));
      body.append(heading("Why"), el("ul", {}, ...row.why.map((reason) => el("li", {}, reason))));
    },

    answers(body, row, list) {
      body.append(...turns(row), heading(`Answer of ${row.model}`), text(row.response));
      body.append(answerFacts(row));
      const others = manifest.filter((one) => one.group === "answers" && one.of === list.source.of && one !== list.source);
      if (!others.length) return;
      const button = el("button", { type: "button" }, `Show what ${others.length} others answered`);
      const shown = el("div", {});
      button.addEventListener("click", async () => {
        button.disabled = true;
        for (const other of others) {
          const found = await rowOf(other, row.id);
          if (!found) continue;
          shown.append(heading(`Answer of ${found.model}: ${found.outcome}`), text(found.response), answerFacts(found, true));
        }
        button.remove();
      });
      body.append(button, shown);
    },

    rows(body, row) {
      for (const [name, said] of row.blocks) body.append(heading(name), text(said));
    },
  };
  fill.judges = fill.rows;

  function answerFacts(row, brief) {
    return facts([
      ["outcome", brief ? null : row.outcome],
      ["tokens", row.tokens],
      ["cut at its limit", row.cut ? "yes" : null],
      ["score of the reward model", row.score === null ? null : number(row.score)],
      ["judge, safety", row.safety === null ? null : number(row.safety)],
      ["judge, helpfulness", row.helpfulness === null ? null : number(row.helpfulness)],
      ["log-probs of the options", row.logps.length ? row.logps.map(number).join(", ") : null],
      ["id", brief ? null : row.id],
    ]);
  }

  // ---- a tree ------------------------------------------------------------------------------
  let groups = 0; // so many have an id

  function tree(row) {
    const nodes = row.nodes;
    const count = nodes.tag.length;
    const children = nodes.tag.map(() => []);
    nodes.parent.forEach((parent, at) => parent >= 0 && children[parent].push(at));
    const values = nodes.value.filter((value) => typeof value === "number");
    const low = Math.min(...values, 0);
    const high = Math.max(...values, 0);
    const prior = nodes.p.some((p) => p !== 1);
    const open = count <= 60;
    const marks = nodes.tag.map((tag) => ({
      chosen: row.pairs.filter((pair) => pair.chosen === tag).map((pair) => pair.rejected),
      rejected: row.pairs.filter((pair) => pair.rejected === tag).map((pair) => pair.chosen),
    }));

    function item(at, level, place, of) {
      const value = nodes.value[at];
      const bar = el("span", {}, el("span", {}));
      if (typeof value === "number") {
        bar.firstChild.style.width = `${high > low ? (100 * (value - low)) / (high - low) : 100}%`;
      }
      const words = [
        nodes.parent[at] < 0 ? "prompt" : null,
        `${nodes.visits[at]} ${nodes.visits[at] === 1 ? "visit" : "visits"}`,
        nodes.reward[at] === null ? null : `reward ${number(nodes.reward[at])}`,
        prior ? `prior ${number(nodes.p[at])}` : null,
        nodes.terminal[at] ? (nodes.reward[at] === null ? "ends, without a score" : "ends") : null,
      ].filter((word) => word);
      const { chosen, rejected } = marks[at];
      // The group stands beside its node, which owns it: so a node's name is its own text alone.
      const made = el(
        "div",
        {
          role: "treeitem",
          tabindex: "-1",
          "aria-level": level,
          "aria-posinset": place,
          "aria-setsize": of,
          "aria-selected": "false",
        },
        el(
          "div",
          { class: "node" },
          el("strong", {}, nodes.tag[at]),
          value === null ? "not visited" : el("span", { class: "value" }, bar, `value ${number(value)}`),
          ...words.map((word) => el("span", {}, word)),
          chosen.length ? el("span", { class: "chosen" }, `chosen over ${chosen.join(", ")}`) : null,
          rejected.length ? el("span", { class: "rejected" }, `rejected for ${rejected.join(", ")}`) : null,
        ),
        nodes.text[at] ? el("div", { class: "step", dir: "auto" }, ...pieces(nodes.text[at])) : null,
      );
      const entry = el("li", { role: "none" }, made);
      if (children[at].length) {
        made.setAttribute("aria-expanded", "false");
        made.dataset.at = at;
        if (open || level < 2) expand(made);
      }
      return entry;
    }

    const groupOf = (made) => made.parentElement.querySelector(":scope > [role=group]");

    function expand(made) {
      const at = Number(made.dataset.at);
      made.setAttribute("aria-expanded", "true");
      const group = groupOf(made);
      if (group) group.hidden = false;
      else {
        const level = Number(made.getAttribute("aria-level")) + 1;
        const under = children[at];
        const id = `group-${++groups}`;
        made.setAttribute("aria-owns", id);
        made.after(el("ul", { role: "group", id }, ...under.map((child, k) => item(child, level, k + 1, under.length))));
      }
    }

    function collapse(made) {
      made.setAttribute("aria-expanded", "false");
      const group = groupOf(made);
      if (group) group.hidden = true;
    }

    const root = el("ul", { role: "tree", "aria-label": `Search tree of ${row.id}` }, item(0, 1, 1, 1));
    const visible = () =>
      [...root.querySelectorAll("[role=treeitem]")].filter((one) => !one.closest("[hidden]"));

    function focus(made) {
      for (const one of root.querySelectorAll("[aria-selected=true]")) one.setAttribute("aria-selected", "false");
      for (const one of root.querySelectorAll("[tabindex='0']")) one.tabIndex = -1;
      made.tabIndex = 0;
      made.setAttribute("aria-selected", "true");
      made.focus({ preventScroll: false });
    }

    root.querySelector("[role=treeitem]").tabIndex = 0;
    root.addEventListener("click", (event) => {
      const made = event.target.closest("[role=treeitem]");
      if (!made) return;
      const known = made.getAttribute("aria-selected") === "true";
      const state = made.getAttribute("aria-expanded");
      if (event.target.closest(".node") && known && state === "true") collapse(made);
      else if (state === "false") expand(made);
      if (!window.getSelection().toString()) focus(made);
    });
    root.addEventListener("keydown", (event) => {
      const made = event.target.closest("[role=treeitem]");
      if (!made || event.ctrlKey || event.metaKey || event.altKey) return;
      const all = visible();
      const at = all.indexOf(made);
      const state = made.getAttribute("aria-expanded");
      const moves = {
        ArrowDown: () => at + 1 < all.length && focus(all[at + 1]),
        ArrowUp: () => at > 0 && focus(all[at - 1]),
        Home: () => focus(all[0]),
        End: () => focus(all[all.length - 1]),
        ArrowRight: () => (state === "false" ? expand(made) : state === "true" && focus(all[at + 1])),
        ArrowLeft: () => {
          const above = made.parentElement.parentElement.closest("li");
          if (state === "true") collapse(made);
          else if (above && root.contains(above)) focus(above.querySelector("[role=treeitem]"));
        },
        Enter: () => (state === "true" ? collapse(made) : state === "false" && expand(made)),
      };
      moves[" "] = moves.Enter;
      if (moves[event.key]) {
        event.preventDefault();
        moves[event.key]();
      }
    });
    return root;
  }

  // ---- lists -------------------------------------------------------------------------------
  const indices = new Map(); // id of a source -> promise of its lines
  const [ID, TITLE, WORDS, NUMBERS, PART, PLACE] = [0, 1, 2, 3, 4, 5];

  function indexOf(source) {
    if (!indices.has(source.id)) {
      const found = Promise.all(source.index.map(load)).then((parts) => parts.flat());
      indices.set(source.id, found);
      found.catch(() => indices.delete(source.id));
    }
    return indices.get(source.id);
  }

  const rowAt = async (source, line) => (await load(source.parts[line[PART]]))[line[PLACE]];

  async function rowOf(source, id) {
    const line = (await indexOf(source)).findLast((one) => one[ID] === id);
    return line ? rowAt(source, line) : null;
  }

  class List {
    constructor(root, group) {
      this.root = root;
      this.group = group;
      this.sources = manifest.filter((source) => source.group === group);
      this.source = this.sources[0];
      this.turn = 0; // of the latest filter: older ones that still run are void
      this.menu = el("div", { class: "controls" });
      this.status = el("p", { role: "status", class: "quiet" });
      this.rows = el("ol", { class: "rows" });
      this.more = el("button", { type: "button", hidden: "" }, "Show more");
      this.more.addEventListener("click", () => this.showMore());
      root.replaceChildren(this.menu, this.status, this.rows, this.more);
      root.style.minHeight = "40rem"; // about what it becomes: what is below shall not jump
      new IntersectionObserver((seen, observer) => {
        if (!seen.some((one) => one.isIntersecting)) return;
        observer.disconnect();
        this.open();
      }).observe(root);
    }

    choice(name, options, value, change) {
      const select = el("select", {});
      for (const [key, said] of options) select.append(el("option", { value: key }, said));
      select.value = value;
      select.addEventListener("change", () => change(select.value));
      this.menu.append(el("label", {}, name, select));
      return select;
    }

    async open() {
      const { source, group, sources } = this;
      this.menu.replaceChildren();
      this.words = source.facets.map(() => "");
      this.sort = "";
      this.against = null;
      this.change = "";
      if (group === "answers") {
        const names = [...new Set(sources.map((one) => one.of))];
        const of = sources.filter((one) => one.of === source.of);
        this.choice("Benchmark", names.map((name) => [name, name]), source.of, (name) => {
          const there = sources.filter((one) => one.of === name);
          this.go(there.find((one) => one.who === source.who) || there[0]);
        });
        this.choice("Model", of.map((one) => [one.id, one.who]), source.id, (id) => this.go(of.find((one) => one.id === id)));
      } else if (sources.length > 1) {
        const options = sources.map((one) => [one.id, `${one.title} (${one.count})`]);
        this.choice("Which", options, source.id, (id) => this.go(sources.find((one) => one.id === id)));
      }
      this.status.textContent = "Loading ...";
      try {
        this.lines = await indexOf(source);
      } catch (error) {
        this.status.textContent = String(error.message || error);
        return;
      }
      if (source !== this.source) return;
      this.search = el("input", { type: "search" });
      let timer = 0;
      this.search.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => this.filter(), 200);
      });
      this.menu.append(el("label", {}, "Search", this.search));
      this.whole = el("input", { type: "checkbox" });
      this.whole.addEventListener("change", () => this.filter());
      const size = Math.max(0.1, source.letters / 1e6).toFixed(1);
      this.menu.append(el("label", { class: "check" }, this.whole, `in all texts (${size} MB)`));
      source.facets.forEach((name, at) => this.facet(name, at));
      this.compare();
      if (source.numbers.length) {
        const orders = source.numbers.flatMap((name, at) => [
          [`-${at}`, `most ${name} first`],
          [`+${at}`, `least ${name} first`],
        ]);
        this.choice("Order", [["", "as written"], ...orders], "", (value) => {
          this.sort = value;
          this.filter();
        });
      }
      await this.filter();
    }

    go(source) {
      this.source = source;
      this.open().then(() => {
        const first = this.menu.querySelector("select");
        if (first) first.focus();
      });
    }

    facet(name, at) {
      const counts = new Map();
      for (const line of this.lines) counts.set(line[WORDS][at], (counts.get(line[WORDS][at]) || 0) + 1);
      const options = [...counts].sort((a, b) => b[1] - a[1]).map(([word, count]) => [`=${word}`, `${word || "(none)"} (${count})`]);
      const all = [["", `all (${this.lines.length})`], ...options];
      this.choice(name[0].toUpperCase() + name.slice(1), all, "", (value) => {
        this.words[at] = value;
        this.filter();
      });
    }

    // Answers beside those of another model: what did its outcomes change to?
    compare() {
      const others = this.sources.filter((one) => this.group === "answers" && one.of === this.source.of && one !== this.source);
      if (!others.length) return;
      this.choice("Compare with", [["", "nobody"], ...others.map((one) => [one.id, one.who])], "", async (id) => {
        const other = others.find((one) => one.id === id);
        this.against = other ? new Map((await indexOf(other)).map((line) => [line[ID], line[WORDS][0]])) : null;
        this.other = other ? other.who : "";
        this.filter();
      });
      const kinds = [["", "all"], ["changed", "those that differ"], ["same", "those that do not"]];
      this.choice("Compared outcomes", kinds, "", (value) => {
        this.change = value;
        this.filter();
      });
    }

    passes(line) {
      if (!this.words.every((word, at) => !word || word === `=${line[WORDS][at]}`)) return false;
      if (!this.against || !this.change) return true;
      return (this.against.get(line[ID]) === line[WORDS][0]) === (this.change === "same");
    }

    async filter() {
      const turn = ++this.turn;
      const sought = this.search.value.trim().toLowerCase();
      let found = this.lines.filter((line) => this.passes(line));
      if (sought && this.whole.checked) {
        const kept = [];
        const { parts } = this.source;
        for (let part = 0; part < parts.length; part++) {
          const some = found.filter((line) => line[PART] === part);
          if (!some.length) continue;
          this.status.textContent = `Searching part ${part + 1} of ${parts.length} ...`;
          const rows = await load(parts[part]);
          if (turn !== this.turn) return;
          kept.push(...some.filter((line) => holds(rows[line[PLACE]], sought)));
        }
        found = kept;
      } else if (sought) {
        found = found.filter((line) => `${line[TITLE]} ${line[ID]}`.toLowerCase().includes(sought));
      }
      if (this.sort) {
        const at = Number(this.sort.slice(1));
        const sign = this.sort[0] === "-" ? -1 : 1;
        const key = (line) => (typeof line[NUMBERS][at] === "number" ? sign * line[NUMBERS][at] : Infinity);
        found = [...found].sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
      }
      this.found = found;
      this.shown = 0;
      this.rows.replaceChildren();
      this.showMore();
      this.root.style.minHeight = "";
    }

    showMore() {
      const first = this.shown;
      for (const line of this.found.slice(first, first + PAGE)) this.rows.append(this.entry(line));
      this.shown = Math.min(this.found.length, first + PAGE);
      this.more.hidden = this.shown === this.found.length;
      this.status.textContent = `${this.found.length} of ${this.lines.length}, ${this.shown} shown`;
      if (first && this.rows.children[first]) this.rows.children[first].querySelector("summary").focus();
    }

    entry(line) {
      const { source, group } = this;
      const badges = line[WORDS].filter((word) => word).map((word) => el("span", { class: "badge" }, word));
      line[NUMBERS].forEach((value, at) => {
        if (value !== null) badges.push(el("span", { class: "badge" }, `${source.numbers[at]} ${number(value)}`));
      });
      if (this.against) badges.push(el("span", { class: "badge" }, `${this.other}: ${this.against.get(line[ID]) || "not there"}`));
      const title = el("span", { class: "title", dir: "auto" }, line[TITLE] || line[ID] || "(empty)");
      const body = el("div", { class: "body" });
      const made = el("details", {}, el("summary", {}, title, ...badges.flatMap((badge) => [" ", badge])), body);
      made.addEventListener("toggle", async () => {
        if (!made.open || body.childNodes.length) return;
        try {
          fill[group](body, await rowAt(source, line), { source });
        } catch (error) {
          body.replaceChildren(el("p", {}, String(error.message || error)));
        }
      });
      return el("li", {}, made);
    }
  }

  // Whether a text of a row, at whatever depth, has what is sought.
  function holds(row, sought) {
    if (typeof row === "string") return row.toLowerCase().includes(sought);
    return row !== null && typeof row === "object" && Object.values(row).some((value) => holds(value, sought));
  }

  for (const root of document.querySelectorAll(".browse")) new List(root, root.dataset.group);
})();
