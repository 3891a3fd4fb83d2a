"use strict";
// Draws the curves of the page in its own colours, light or dark, and again when these change.
(() => {
  const { charts, restarts } = JSON.parse(document.getElementById("curves-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const LINES = ["first", "second", "third", "fourth"];

  function traces(chart) {
    let lines = 0;
    return chart.series.map((series) => {
      const faint = series.look === "faint" && chart.series.length > 1;
      const few = series.x.length <= 40;
      return {
        x: series.x,
        y: series.y,
        name: series.name,
        type: "scatter",
        mode: few && !faint ? "lines+markers" : "lines",
        line: { color: colour(faint ? "faint" : LINES[lines++ % LINES.length]), width: faint ? 1 : 2 },
        marker: { size: 5 },
        hovertemplate: "%{y:.6~g}",
      };
    });
  }

  function layout(chart, logarithmic) {
    const axis = {
      gridcolor: colour("grid"),
      linecolor: colour("line"),
      tickcolor: colour("line"),
      zeroline: false,
      automargin: true,
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: colour("soft") },
      margin: { l: 46, r: 8, t: 8, b: 36 },
      hovermode: "x unified",
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
      showlegend: chart.series.length > 1,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" },
      xaxis: { ...axis, ...ticks(chart), title: { text: chart.x, standoff: 6 }, hoverformat: ".6~g", showgrid: false },
      yaxis: {
        ...axis,
        type: logarithmic ? "log" : "linear",
        rangemode: chart.from_zero ? "tozero" : "normal",
        nticks: 6,
      },
      shapes: chart.x === "step" ? restarts.map(restart) : [],
    };
  }

  // whole epochs alone
  function ticks(chart) {
    if (chart.x !== "epoch") return {};
    const last = Math.max(...chart.series.map((series) => series.x[series.x.length - 1]));
    return last <= 10 ? { tick0: 0, dtick: 1 } : {};
  }

  function restart(step) {
    const line = { color: colour("calm"), width: 1, dash: "dot" };
    return { type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line };
  }

  function draw() {
    charts.forEach((chart, index) => {
      const box = document.querySelector(`input[data-chart="${index}"]`);
      const config = { responsive: true, displayModeBar: false };
      Plotly.react(`curve-${index}`, traces(chart), layout(chart, box !== null && box.checked), config);
    });
  }

  document.querySelectorAll("input[data-chart]").forEach((box) => box.addEventListener("change", draw));
  dark.addEventListener("change", draw);
  draw();
})();
