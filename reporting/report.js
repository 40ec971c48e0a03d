// Values under the pointer or at the arrow keys, and curves that can be switched off.
const format = x => x === null ? "not finite" : String(+x.toPrecision(4));
const nearest = (steps, wanted) => steps.reduce((best, step, k) => Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? k : best, 0);
const off = new Set();
const plots = [...document.querySelectorAll(".plot")].map(plot => ({
  plot,
  svg: plot.querySelector("svg"),
  ...JSON.parse(plot.querySelector("script").textContent),
}));
for (const p of plots) {
  const width = p.svg.viewBox.baseVal.width, [left, top, across, down] = p.box;
  const place = x => p.log ? Math.log10(x) : x, [low, high] = p.x.map(place);
  const tip = p.plot.appendChild(Object.assign(document.createElement("div"), {className: "tip", hidden: true}));
  const rule = p.svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "line"));
  let step;
  const shown = () => p.lines.filter(line => !off.has(line.label));
  const steps = () => [...new Set(shown().flatMap(line => line.steps))].sort((a, b) => a - b);
  const hide = () => { tip.hidden = true; rule.setAttribute("class", "off"); };
  const show = at => {
    step = at;
    const x = left + across * (place(step) - low) / (high - low), isLeft = x < width / 2;
    for (const [name, value] of Object.entries({x1: x, x2: x, y1: top, y2: top + down, class: "rule"})) rule.setAttribute(name, value);
    const values = shown().map(line => {
      const k = nearest(line.steps, step), ends = line.band?.map(end => format(end[k])).join(" .. ");
      const where = line.steps[k] === step ? "" : `, ${p.over} ${format(line.steps[k])}`;
      return `${line.label}: ${format(line.values[k])}${ends ? ` (${ends})` : ""}${where}`;
    });
    const named = p.ticks.length ? p.ticks[p.lines[0].steps.indexOf(step)] : format(step);
    tip.replaceChildren(...[`${p.over} ${named}`, ...values].map(text => Object.assign(document.createElement("div"), {textContent: text})));
    tip.style.left = isLeft ? `${100 * x / width + 2}%` : "auto";
    tip.style.right = isLeft ? "auto" : `${102 - 100 * x / width}%`;
    tip.hidden = false;
  };
  for (const moving of ["pointermove", "pointerdown"]) p.plot.addEventListener(moving, event => {
    const box = p.svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
    const wanted = low + (x - left) / across * (high - low), known = steps();
    if (known.length) show(known[nearest(known.map(place), wanted)]);
  });
  p.plot.addEventListener("keydown", event => {
    const way = {ArrowLeft: -1, ArrowRight: 1}[event.key], known = steps();
    if (!way || !known.length) return;
    event.preventDefault();
    const start = way > 0 ? -1 : known.length, next = (tip.hidden ? start : known.indexOf(step)) + way;
    show(known[Math.max(0, Math.min(known.length - 1, next))]);
  });
  p.plot.addEventListener("pointerleave", event => event.pointerType === "touch" || hide());  // a tap stays
  p.plot.addEventListener("blur", hide);
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(folded => { folded.open = true; }));
const buttons = [...document.querySelectorAll(".legend button")];
for (const button of buttons) button.addEventListener("click", () => {
  const label = button.textContent.trim(), isOff = !off.has(label);
  for (const same of buttons) if (same.textContent.trim() === label) same.setAttribute("aria-pressed", String(!isOff));
  if (isOff) off.add(label); else off.delete(label);
  for (const p of plots) p.lines.forEach((line, k) => {
    if (line.label === label) p.svg.querySelectorAll(`.line-${k}`).forEach(e => e.classList.toggle("off", isOff));
  });
});
