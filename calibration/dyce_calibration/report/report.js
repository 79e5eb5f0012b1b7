// Fills the page from its embedded data: the plots, and the configuration that the slider selects.
(() => {
  "use strict";
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const named = new Map(Object.entries(data.named));
  const buttons = [...document.querySelectorAll("button[data-name]")];
  const slider = find("slider");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const printed = matchMedia("print");
  const plots = [];
  let shown = null;

  function fill(table, rows) {
    const body = find(table).tBodies[0];
    body.replaceChildren();
    for (const cells of rows) {
      const row = body.insertRow();
      cells.forEach((text, column) => {
        const cell = column === 0 ? document.createElement("th") : document.createElement("td");
        if (column === 0) cell.scope = "row";
        cell.className = find(table).tHead.rows[0].cells[column].className;
        cell.textContent = text;
        row.append(cell);
      });
    }
    return body.rows;
  }

  function show(view) {
    if (!view) return;
    shown = view;
    slider.value = view.place;
    slider.setAttribute("aria-valuetext", view.title);
    find("title").textContent = view.title;
    find("certificate").textContent = view.certificate;
    fill("figures", view.figures);
    const rows = fill("exits", view.exits.map((cells) => cells.slice(0, 5)));
    view.exits.forEach((cells, index) => {
      const share = rows[index].cells[3];
      share.classList.add("share");
      share.style.setProperty("--share", `${100 * cells[5]}%`);
    });
    river(view);
    for (const button of buttons) button.setAttribute("aria-pressed", String(view.names.includes(button.dataset.name)));
    mark(view);
  }

  // Draws the network from left to right. Width of a piece: its time; height: the share of samples that reach it.
  function river(view) {
    const least = 0.04; // keeps pieces visible that take almost no time
    const widths = view.network.map(([width]) => Math.max(width, least));
    const total = widths.reduce((sum, width) => sum + width, 0);
    find("river").replaceChildren(
      ...view.network.map(([, reach, spent], index) => {
        const piece = document.createElement("div");
        piece.className = "piece";
        piece.style.setProperty("--width", `${(100 * widths[index]) / total}%`);
        piece.style.setProperty("--reach", `${100 * reach}%`);
        piece.title = `${percent(reach)} of the samples get here, ${percent(spent)} of the ${data.spent} is spent here`;
        const [name] = view.exits[index];
        const on = view.exits[index][1] !== "off";
        const label = document.createElement("span");
        label.textContent = on ? `${name}: ${percent(view.exits[index][5])} leave` : name;
        piece.classList.toggle("off", !on);
        const water = document.createElement("i");
        water.textContent = reach >= 0.15 ? percent(spent) : "";
        piece.append(water, label);
        return piece;
      }),
    );
  }

  function percent(share) {
    return `${Math.round(100 * share)} %`;
  }

  function mark(view) {
    for (const plot of plots) {
      const chosen = plot.document.get_model_by_name("chosen-data");
      if (chosen) chosen.data = { x: view.costs, y: view.accuracies };
    }
  }

  // The URL fragment selects what is shown: #front=5, counted from 1, or #name=balanced.
  function address() {
    const asked = new URLSearchParams(location.hash.slice(1));
    return named.get(asked.get("name")) ?? data.front[Number(asked.get("front")) - 1];
  }

  function go(hash, view) {
    history.replaceState(null, "", hash);
    show(view);
  }

  function step(index) {
    go(`#front=${index + 1}`, data.front[index]);
  }

  function colour() {
    if (printed.matches) return; // printing does not wait for a redraw: the style inverts dark plots instead
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const line = style.getPropertyValue("--line").trim();
    document.documentElement.dataset.scheme = dark.matches ? "dark" : "light";
    for (const plot of plots) {
      for (const part of [...plot.left, ...plot.below]) {
        part.setv({ axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: ink, major_tick_line_color: ink });
      }
      for (const part of plot.center) part.setv({ grid_line_color: line });
    }
  }

  function tappable(plot) {
    for (const split of ["search", "test"]) {
      const source = plot.document.get_model_by_name(split);
      source.selected.properties.indices.change.connect(() => {
        const [index] = source.selected.indices;
        if (index === undefined) return;
        source.selected.indices = [];
        step(index);
      });
    }
  }

  async function draw() {
    Bokeh.set_log_level("warn");
    for (const [id, item] of Object.entries(data.plots)) {
      const manager = await Bokeh.embed.embed_item(item, id);
      const plot = manager.roots[0].model;
      plots.push(plot);
      if (id === "front-plot") tappable(plot);
    }
    colour();
    mark(shown);
    document.documentElement.dataset.plots = String(plots.length);
  }

  slider.addEventListener("input", () => step(slider.valueAsNumber - 1));
  for (const button of buttons) {
    const name = button.dataset.name;
    button.addEventListener("click", () => go(`#name=${encodeURIComponent(name)}`, named.get(name)));
  }
  addEventListener("hashchange", () => show(address()));
  dark.addEventListener("change", colour);
  show(address() ?? named.get(data.start) ?? data.front[0]);
  draw();
})();
