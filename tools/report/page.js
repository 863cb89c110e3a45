"use strict";
// Values under the pointer, read back from the drawn curves, and switches for runs.
for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg");
  const { width, height } = svg.viewBox.baseVal;
  const low = Number(plot.dataset.low), high = Number(plot.dataset.high);
  const last = Number(plot.dataset.last), log = plot.dataset.log === "1";
  let curves = null;
  const read = (path) => ({
    path,
    points: Array.from(path.getAttribute("d").matchAll(/[ML](-?[\d.]+) (-?[\d.]+)/g),
      (found) => [Number(found[1]), Number(found[2])]),
  });
  const value = (y) => {
    if (Math.abs(y) > 99999) return "off the scale";
    const share = 1 - y / height;
    const number = log ? low * Math.pow(high / low, share) : low + share * (high - low);
    const size = Math.abs(number);
    return size >= 1e5 ? Math.round(number).toLocaleString("en")
      : size < 1e-3 && size > 0 ? number.toExponential(2) : String(Number(number.toPrecision(4)));
  };
  const cross = document.createElement("div"), tip = document.createElement("div");
  cross.className = "cross";
  tip.className = "tip";
  const line = (path, name, shown) => {
    const row = document.createElement("div");
    if (path) {
      const swatch = document.createElementNS(svg.namespaceURI, "svg");
      swatch.setAttribute("viewBox", "0 0 24 8");
      swatch.setAttribute("class", "swatch " + path.getAttribute("class").split(" ").slice(0, 2).join(" "));
      const stroke = document.createElementNS(svg.namespaceURI, "path");
      stroke.setAttribute("d", "M1 4H23");
      swatch.append(stroke);
      row.append(swatch);
    }
    const number = document.createElement("b");
    number.textContent = shown;
    row.append(name, number);
    return row;
  };
  plot.addEventListener("pointermove", (event) => {
    curves ??= Array.from(svg.querySelectorAll("path[data-label]"), read);
    const box = svg.getBoundingClientRect();
    const at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * width;
    const near = [];
    for (const { path, points } of curves) {
      if (path.classList.contains("hidden") || !points.length) continue;
      const reach = width / 40;
      if (at < points[0][0] - reach || at > points[points.length - 1][0] + reach) continue;
      let start = 0, end = points.length - 1;
      while (end - start > 1) {
        const middle = (start + end) >> 1;
        if (points[middle][0] < at) start = middle; else end = middle;
      }
      const point = at - points[start][0] < points[end][0] - at ? points[start] : points[end];
      near.push({ path, point });
    }
    cross.remove();
    tip.remove();
    if (!near.length) return;
    near.sort((a, b) => a.point[1] - b.point[1]);
    const x = near.reduce((best, { point }) =>
      Math.abs(point[0] - at) < Math.abs(best - at) ? point[0] : best, near[0].point[0]);
    const rows = near.map(({ path, point }) => line(path, path.dataset.label, value(point[1])));
    tip.replaceChildren(
      line(null, "Step", Math.round((x / width) * last).toLocaleString("en")), ...rows);
    cross.style.left = `${(x / width) * 100}%`;
    tip.style.left = x < width / 2 ? `calc(${(x / width) * 100}% + 10px)` : "auto";
    tip.style.right = x < width / 2 ? "auto" : `calc(${(1 - x / width) * 100}% + 10px)`;
    plot.append(cross, tip);
  });
  plot.addEventListener("pointerleave", () => {
    cross.remove();
    tip.remove();
  });
}
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const off = button.classList.toggle("off");
    button.setAttribute("aria-pressed", String(!off));
    for (const path of document.querySelectorAll(`.plot path[data-run="${button.dataset.run}"]`)) {
      path.classList.toggle("hidden", off);
    }
  });
}
// Images over training: a slider shows those of an earlier step in the place of the newest.
for (const column of document.querySelectorAll("#samples .column")) {
  const steps = Array.from(column.querySelectorAll("details.step"), (block) => ({
    block,
    name: block.querySelector(".at").textContent,
    sources: new Map(Array.from(block.querySelectorAll("img[data-sample]"),
      (image) => [image.dataset.sample, image.src])),
  })).filter(({ sources }) => sources.size);
  if (steps.length < 2) continue;
  const [newest] = steps, last = steps.length - 1;
  const strip = document.createElement("label"), slider = document.createElement("input");
  strip.className = "scrub";
  slider.type = "range";
  slider.max = slider.value = String(last);
  slider.setAttribute("aria-label", "Step of the images");
  strip.append("Over training", slider);
  slider.addEventListener("input", () => {
    const { name, sources } = steps[last - Number(slider.value)];
    newest.block.open = true;
    newest.block.querySelector(".at").textContent = name;
    for (const image of newest.block.querySelectorAll("img[data-sample]")) {
      image.src = sources.get(image.dataset.sample) ?? newest.sources.get(image.dataset.sample);
    }
  });
  newest.block.before(strip);
}
