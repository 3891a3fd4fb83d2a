"use strict";
// Draws the trials of a sweep over parallel axes, and keeps in colour those that cross them where a person dragged.
(() => {
  if (!page.data.parallel) return;
  const { axes, lines } = page.data.parallel;
  const plot = document.getElementById("parallel");
  const NONE = -0.12; // where a line is that has nothing on an axis
  const SHADES = 10;
  let selections = [];

  const place = (line, index) => (line.places[index] === null ? NONE : line.places[index]);

  function isKept(line) {
    return axes.every((_, index) => {
      const over = selections.filter((one) => Math.min(one.x0, one.x1) <= index && index <= Math.max(one.x0, one.x1));
      const at = place(line, index);
      return !over.length || over.some((one) => Math.min(one.y0, one.y1) <= at && at <= Math.max(one.y0, one.y1));
    });
  }

  // all lines of one look are one trace, with gaps between them
  function trace(name, own, look) {
    const gap = axes.length + 1;
    const points = own.flatMap((line) => [...axes.map((_, index) => [index, place(line, index), line.text]), [gap, null, ""]]);
    return {
      name,
      x: points.map((point) => point[0]),
      y: points.map((point) => point[1]),
      text: points.map((point) => point[2]),
      type: "scatter",
      mode: "lines+markers",
      line: { color: look.colour, width: look.width },
      marker: { color: look.colour, size: 4 },
      opacity: look.opacity,
      hovertemplate: "%{text}<extra></extra>",
      hoverinfo: look.quiet ? "skip" : "text",
      selected: { marker: { opacity: 1 } },
      unselected: { marker: { opacity: 1 } },
    };
  }

  function traces() {
    const kept = lines.filter(isKept);
    const ranked = kept.filter((line) => line.rank !== null);
    const others = lines.filter((line) => !isKept(line));
    const found = [];
    const add = (name, own, look) => own.length && found.push(trace(name, own, look));
    add("other", others, { colour: page.colour("line"), width: 1, opacity: 0.5, quiet: true });
    add("failed", kept.filter((line) => line.rank === null), { colour: page.colour("bad"), width: 1, opacity: 0.6 });
    for (let shade = 0; shade < SHADES; shade++) {
      const own = ranked.filter((line) => line.rank < 1 && Math.min(Math.floor(line.rank * SHADES), SHADES - 1) === shade);
      const share = (shade / (SHADES - 1)) ** 2;
      const colour = mixed(page.colour("poor"), page.colour("first"), share);
      add(`shade ${shade}`, own, { colour, width: 1 + share / 2, opacity: 0.5 + 0.4 * share });
    }
    add("best", ranked.filter((line) => line.rank === 1), { colour: page.colour("second"), width: 2.5, opacity: 1 });
    return found;
  }

  function mixed(one, other, share) {
    const parts = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
    const [low, high] = [parts(one), parts(other)];
    return `rgb(${low.map((value, index) => Math.round(value + (high[index] - value) * share)).join(",")})`;
  }

  function layout() {
    const lacks = axes.map((_, index) => lines.some((line) => line.places[index] === null));
    const ticks = axes.flatMap((axis, index) => [
      ...axis.ticks.map(([at, text]) => label(index, at, text)),
      ...(lacks[index] ? [label(index, NONE, "–")] : []),
    ]);
    const upright = (index) => ({
      type: "line",
      layer: "below",
      x0: index,
      x1: index,
      y0: lacks[index] ? NONE : 0,
      y1: 1,
      line: { color: page.colour("soft"), width: 1 },
    });
    return {
      ...page.layout(),
      margin: { l: room(0), r: room(axes.length - 1), t: 30, b: 8 },
      dragmode: "select",
      hovermode: "closest",
      hoverdistance: 12,
      showlegend: false,
      newselection: { line: { color: page.colour("second"), width: 1, dash: "solid" } },
      xaxis: {
        range: [-0.02, axes.length - 0.98],
        tickvals: axes.map((_, index) => index),
        ticktext: axes.map((axis) => `<b>${axis.name}</b>`),
        tickangle: 0,
        side: "top",
        showgrid: false,
        zeroline: false,
        fixedrange: true,
      },
      yaxis: { range: [NONE - 0.08, 1.05], visible: false, fixedrange: true },
      shapes: axes.map((_, index) => upright(index)),
      annotations: ticks,
      selections,
    };
  }

  // pixels for what stands beside an axis, and half of its name
  function room(index) {
    const longest = Math.max(...axes[index].ticks.map((tick) => tick[1].length), axes[index].name.length / 1.6);
    return 16 + 6.5 * longest;
  }

  function label(index, at, text) {
    const last = index === axes.length - 1;
    return {
      x: index,
      y: at,
      text,
      showarrow: false,
      xanchor: last ? "left" : "right",
      xshift: last ? 4 : -4,
      font: { size: 11, color: page.colour("soft") },
      bgcolor: page.colour("card"),
      opacity: 0.85,
      borderpad: 1,
    };
  }

  const draw = () => Plotly.react(plot, traces(), layout(), page.config);

  function select(event) {
    selections = (event && event.selections) || [];
    draw();
  }

  page.drawn(draw);
  plot.on("plotly_selected", select);
  plot.on("plotly_deselect", () => select(null));
})();
