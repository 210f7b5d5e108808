// One picture and all that is said of it.
import { Evidence } from "./evidence.js";
import { snippets } from "./snippets.js";

const STAGES = ["receive", "decode", "queue", "device"];

export class Card {
  constructor(file) {
    this.file = file;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    const image = this.find("img");
    image.src = URL.createObjectURL(file);
    image.alt = file.name;
    image.addEventListener("load", () => {
      this.find("figure").classList.toggle("tall", image.naturalHeight > image.naturalWidth);
    });
    image.addEventListener("error", () => {
      image.hidden = true;
      this.find(".blank").hidden = false;
    });
    this.find("h3").textContent = file.name || "Pasted picture";
    this.element.setAttribute("aria-label", this.find("h3").textContent);
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  show({ url, reply, problem }) {
    this.find(".busy").remove();
    if (problem) {
      this.showProblem(problem);
      return;
    }
    this.find(".model").textContent = `by ${reply.model}`;
    this.evidence = new Evidence(this.find("figure"), reply.region);
    this.find(".labels").append(...reply.predictions.map((each) => this.label(each)));
    this.find(".hint").hidden = !reply.predictions.some((each) => each.evidence);
    this.showTimes(reply.timings_ms);
    this.showSnippets(url);
  }

  // What a screen reader says once the picture is named.
  get summary() {
    const best = this.find(".labels li");
    return best ? `${this.find("h3").textContent}: ${best.textContent}` : "";
  }

  label({ label, score, evidence }) {
    const item = document.createElement("li");
    const row = part(evidence ? "button" : "div", "row");
    const fill = part("span", "fill");
    fill.style.width = `${100 * score}%`;
    row.append(fill, part("b", "", label), " ", part("span", "score", percent(score)));
    item.append(row);
    if (evidence) this.showOnPointing(row, evidence);
    return item;
  }

  showOnPointing(button, evidence) {
    const show = () => this.evidence.show(evidence, button);
    const hide = () => this.evidence.hide();
    const { row, column } = evidence.patch;
    button.type = "button";
    button.title = `Clearest in row ${row + 1}, column ${column + 1} of ${evidence.map.length}`;
    button.addEventListener("pointerenter", show);
    button.addEventListener("pointerleave", hide);
    button.addEventListener("focus", show);
    button.addEventListener("blur", hide);
    button.addEventListener("click", show); // where there is nothing to hover with
    button.addEventListener("keydown", ({ key }) => key === "Escape" && hide());
  }

  showProblem({ title, detail }) {
    const problem = part("div", "problem");
    problem.setAttribute("role", "alert");
    problem.append(part("strong", "", title ?? "It did not work"), detail ?? "");
    this.find(".said").append(problem);
  }

  showTimes(timings) {
    const { total, ...shown } = timings;
    const known = STAGES.reduce((sum, name) => sum + (shown[name] ??= 0), 0);
    shown.other = Math.max(0, total - known);
    const bar = part("div", "stages");
    const list = document.createElement("dl");
    bar.setAttribute("aria-hidden", "true");
    for (const name of [...STAGES, "other"]) {
      const piece = part("span", name);
      piece.style.flex = `${shown[name]} 0 0`;
      bar.append(piece);
      list.append(entry(name, shown[name]));
    }
    list.append(entry("total", total));
    this.find(".times").append(bar, list);
    this.find(".times").hidden = false;
  }

  showSnippets(url) {
    const texts = snippets(this.file, url);
    const code = this.find("code");
    const copy = this.find(".copy");
    const tabs = Object.keys(texts).map((name) => part("button", "", name));
    const select = (chosen) => {
      code.textContent = texts[chosen.textContent];
      code.parentElement.setAttribute("aria-label", chosen.textContent);
      copy.textContent = "Copy";
      for (const tab of tabs) {
        tab.setAttribute("aria-selected", String(tab === chosen));
        tab.tabIndex = tab === chosen ? 0 : -1;
      }
    };
    tabs.forEach((tab, place) => {
      tab.type = "button";
      tab.setAttribute("role", "tab");
      tab.addEventListener("click", () => select(tab));
      tab.addEventListener("keydown", ({ key }) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
        if (!step) return;
        const next = tabs.at((place + step) % tabs.length);
        select(next);
        next.focus();
      });
    });
    select(tabs[0]);
    this.find(".tabs").append(...tabs);
    this.find("details").hidden = false;
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // not allowed to: it is marked, to be copied by hand
      }
    });
  }
}

function part(name, className, text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

function entry(name, milliseconds) {
  const group = document.createElement("div");
  const swatch = part("span", `swatch ${name}`);
  if (name !== "total") group.append(swatch);
  group.append(part("dt", "", name), part("dd", "", `${milliseconds.toFixed(1)} ms`));
  return group;
}

function percent(score) {
  return `${(100 * score).toFixed(score < 0.0995 ? 1 : 0)} %`;
}
