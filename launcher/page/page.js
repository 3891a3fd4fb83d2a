"use strict";
// What the scripts of the page share: its data, and how its charts look, in its own colours, light or dark.
const page = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const axis = () => ({
    gridcolor: colour("grid"),
    linecolor: colour("line"),
    tickcolor: colour("line"),
    zeroline: false,
    automargin: true,
  });

  const layout = () => ({
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: colour("soft") },
    hoverlabel: {
      align: "left",
      bgcolor: colour("card"),
      bordercolor: colour("line"),
      font: { color: colour("ink") },
    },
  });

  // now, and again when the colours change
  function drawn(draw) {
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    draw();
  }

  const data = JSON.parse(document.getElementById("curves-data").textContent);
  return { data, colour, axis, layout, drawn, config: { responsive: true, displayModeBar: false } };
})();
