"use strict";
// Draws the curves of the page.
(() => {
  const { charts, restarts } = page.data;
  const LINES = ["first", "second", "third", "fourth"];

  function traces(chart) {
    let lines = 0;
    return chart.series.map((series) => {
      const faint = series.look === "faint" && (chart.series.length > 1 || series.tone !== "");
      const tone = series.tone || (faint ? "faint" : LINES[lines++ % LINES.length]);
      const colour = page.colour(tone);
      if (series.look === "bars") return bars(series, colour);
      return {
        x: series.x,
        y: series.y,
        name: series.name,
        type: "scatter",
        mode: mode(series, faint),
        line: { color: colour, width: faint ? 1 : 2, shape: isStepped(series) ? "hv" : "linear" },
        fill: series.look === "area" ? "tozeroy" : "none",
        marker: { color: colour, size: series.look === "points" ? 6 : faint ? 3 : 5 },
        text: series.text,
        hovertemplate: series.text.length ? "%{text}<extra></extra>" : "%{y:.6~g}",
      };
    });
  }

  const isStepped = (series) => series.look === "steps" || series.look === "area";

  function mode(series, faint) {
    if (series.look === "points") return "markers";
    if (isStepped(series)) return "lines";
    if (faint && series.text.length) return "lines+markers"; // some have one point alone
    return series.x.length <= 40 && !faint ? "lines+markers" : "lines";
  }

  function bars(series, colour) {
    return {
      x: series.x,
      y: series.y,
      name: series.name,
      type: "bar",
      orientation: "h",
      marker: { color: colour },
      text: series.text,
      textposition: "outside",
      cliponaxis: false,
      hoverinfo: "skip",
    };
  }

  function layout(chart, logarithmic) {
    const lying = chart.series.some((series) => series.look === "bars");
    return {
      ...page.layout(),
      margin: { l: 46, r: lying ? 40 : 8, t: 8, b: 36 },
      hovermode: chart.unified ? "x unified" : "closest",
      showlegend: chart.series.length > 1 || lying,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom", traceorder: "normal" },
      xaxis: {
        ...page.axis(),
        ...ticks(chart),
        title: { text: chart.x, standoff: 6 },
        hoverformat: ".6~g",
        showgrid: lying,
        ...(lying ? { tickformat: ".0%", rangemode: "tozero" } : {}),
      },
      yaxis: lying
        ? { ...page.axis(), type: "category", categoryorder: "array", categoryarray: order(chart), ticksuffix: "  " }
        : {
            ...page.axis(),
            type: logarithmic ? "log" : "linear",
            rangemode: chart.from_zero ? "tozero" : "normal",
            nticks: 6,
          },
      shapes: chart.x === "step" ? restarts.map(restart) : [],
    };
  }

  // the smallest bar at the bottom
  function order(chart) {
    const all = chart.series.flatMap((series) => series.y.map((name, index) => [series.x[index], name]));
    return all.sort((one, other) => one[0] - other[0]).map((pair) => pair[1]);
  }

  // whole epochs and trials alone
  function ticks(chart) {
    if (chart.x !== "epoch" && chart.x !== "trial") return {};
    const last = Math.max(...chart.series.map((series) => series.x[series.x.length - 1]));
    return last <= 10 ? { tick0: 0, dtick: 1 } : {};
  }

  function restart(step) {
    const line = { color: page.colour("calm"), width: 1, dash: "dot" };
    return { type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line };
  }

  function draw() {
    charts.forEach((chart, index) => {
      const box = document.querySelector(`input[data-chart="${index}"]`);
      const logarithmic = box !== null && box.checked;
      Plotly.react(`curve-${index}`, traces(chart), layout(chart, logarithmic), page.config);
    });
  }

  document.querySelectorAll("input[data-chart]").forEach((box) => box.addEventListener("change", draw));
  page.drawn(draw);
})();
