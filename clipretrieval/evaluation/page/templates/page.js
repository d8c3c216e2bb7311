"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const whole = new Intl.NumberFormat("en");
  const percent = (share) => `${(share * 100).toFixed(2)}%`;

  // Where a value lies in a chart; the chart tells its axes as "low high start end".
  const scale = (chart, axis) => {
    const [low, high, start, end] = chart.dataset[axis].split(" ").map(Number);
    return (value) => (high === low ? start : start + ((value - low) / (high - low)) * (end - start));
  };

  const startSlider = (section, report, measure) => {
    const within = (css) => section.querySelector(`[data-measure="${measure}"] ${css}`);
    const box = section.querySelector(`.slider[data-measure="${measure}"]`);
    const points = report.points[measure];
    const slider = box.querySelector("input");
    const out = (name) => box.querySelector(`[data-out="${name}"]`);
    const histogram = within('[data-chart="histogram"]');
    const risk = within('[data-chart="risk"]');
    const across = scale(histogram, "x");
    const [riskX, riskY] = [scale(risk, "x"), scale(risk, "y")];
    const top = Number(risk.dataset.y.split(" ")[1]);
    const right = report.all - report.wrong;

    const part = (count, all) => `${whole.format(count)} of ${whole.format(all)}`;
    const show = () => {
      const [threshold, text, kept, errors, low, high] = points[slider.valueAsNumber];
      const accuracy = (kept - errors) / kept;
      out("threshold").textContent = text;
      out("kept").textContent = percent(kept / report.all);
      out("count").textContent = part(kept, report.all);
      out("accuracy").textContent = percent(accuracy);
      out("interval").textContent = `95 % interval ${percent(low)} to ${percent(high)}`;
      const [caught, lost] = [report.wrong - errors, right - (kept - errors)];
      out("caught").textContent = report.wrong ? percent(caught / report.wrong) : "–";
      out("caught-count").textContent = part(caught, report.wrong);
      out("lost").textContent = right ? percent(lost / right) : "–";
      out("lost-count").textContent = part(lost, right);
      slider.setAttribute("aria-valuetext", `${percent(kept / report.all)} kept, ${percent(accuracy)} correct`);
      const line = histogram.querySelector(".threshold");
      line.toggleAttribute("hidden", threshold === null);
      if (threshold !== null) line.setAttribute("transform", `translate(${across(threshold).toFixed(1)} 0)`);
      const marker = risk.querySelector(".marker");
      marker.setAttribute("cx", riskX(kept / report.all).toFixed(1));
      marker.setAttribute("cy", riskY(Math.min(errors / kept, top)).toFixed(1));
    };
    slider.max = points.length - 1;
    slider.value = slider.max;
    slider.addEventListener("input", show);
    show();
  };

  // One measure of confidence is shown at a time; the page comes with the charts of the best one.
  const startChoice = (section) => {
    const choice = section.querySelector(".choice");
    const show = () => {
      const { value } = choice.querySelector("input:checked");
      section.querySelectorAll("[data-measure]").forEach((each) => {
        each.hidden = each.dataset.measure !== value;
      });
    };
    choice.addEventListener("change", show);
    choice.hidden = false;
    show();
  };

  const drawMatrix = (canvas, report) => {
    const n = report.classes.length;
    const [rows, columns, counts] = report.cells;
    canvas.width = canvas.height = n;
    const context = canvas.getContext("2d");
    const image = context.createImageData(n, n);
    const found = new Map();
    rows.forEach((row, i) => {
      const cell = row * n + columns[i];
      const share = counts[i] / report.totals[row];
      // The root lets rare confusions be seen; the colours show on light and on dark.
      const colour = row === columns[i] ? [48, 130, 200] : [226, 105, 48];
      image.data.set([...colour, 40 + Math.round(215 * Math.sqrt(share))], 4 * cell);
      found.set(cell, counts[i]);
    });
    context.putImageData(image, 0, 0);

    const out = canvas.parentElement.querySelector('[data-out="cell"]');
    const named = (place) => {
      const name = document.createElement("bdi");
      name.textContent = report.classes[place];
      return name;
    };
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const place = (offset, size) => Math.min(n - 1, Math.max(0, Math.floor((offset / size) * n)));
      const column = place(event.clientX - box.left, box.width);
      const row = place(event.clientY - box.top, box.height);
      const count = found.get(row * n + column) || 0;
      out.replaceChildren(
        named(row), ", answered ", named(column),
        `: ${whole.format(count)} of ${whole.format(report.totals[row])}`,
      );
    });
  };

  document.querySelectorAll("[data-report]").forEach((section) => {
    const report = data[Number(section.dataset.report)];
    Object.keys(report.points).forEach((measure) => startSlider(section, report, measure));
    startChoice(section);
    section.querySelectorAll("canvas.confusion").forEach((canvas) => drawMatrix(canvas, report));
  });
})();
