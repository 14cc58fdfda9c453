// Sampling settings, and the GPU memory of the model.
//
// Contract: an empty field is not sent, so that the model's default applies. `fields` throws a SettingsError
// for a value that the server would refuse, and marks the field.

import { ApiError, reload } from "./api.js";
import { byId, element } from "./elements.js";

const KEPT = "mixq.settings";
const FIELDS = {
  temperature: { label: "Temperature", low: 0, high: 2, empty: "model default" },
  top_p: { label: "Top-p", low: 0, high: 1, above: true, empty: "model default" },
  max_tokens: { label: "Max tokens", low: 1, high: 2 ** 31 - 1, whole: true, empty: "no limit" },
  seed: { label: "Seed", low: 0, high: Number.MAX_SAFE_INTEGER, whole: true, empty: "random" },
};
const STEP = 1e8;
const BASE_TOKENS = 256; // a base model rarely stops by itself

export class SettingsError extends Error {}

const gigabytes = (bytes) => (bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);

export class Settings {
  /** `systemChanged` is called with the system prompt of the open conversation; `refresh` requests the status. */
  constructor({ systemChanged, refresh }) {
    this.refresh = refresh;
    this.moved = false;
    this.asked = null;
    const kept = read();
    for (const [name, rule] of Object.entries(FIELDS)) {
      byId(name).value = kept[name] ?? "";
      byId(name).placeholder = rule.empty;
      byId(name).addEventListener("input", () => { this.check(); this.keep(); });
    }
    this.system = kept.system ?? "";
    byId("system").addEventListener("input", (event) => {
      this.system = event.target.value;
      systemChanged(this.system);
      this.keep();
    });
    byId("settings").addEventListener("submit", (event) => event.preventDefault());
    byId("vram").addEventListener("input", () => { this.moved = true; this.showVram(); });
    byId("reload").addEventListener("click", () => this.reload());
    this.check();
  }

  showSystem(text) {
    byId("system").value = text;
  }

  keep() {
    const values = Object.fromEntries(Object.keys(FIELDS).map((name) => [name, byId(name).value]));
    localStorage.setItem(KEPT, JSON.stringify({ ...values, system: this.system }));
  }

  /** Return what is wrong with a value, or "". */
  check() {
    let first = "";
    for (const [name, rule] of Object.entries(FIELDS)) {
      const wrong = problem(byId(name).value.trim(), rule);
      if (wrong) byId(name).setAttribute("aria-invalid", "true");
      else byId(name).removeAttribute("aria-invalid");
      first ||= wrong;
    }
    if (byId("settings-error").textContent !== first) byId("settings-error").textContent = first;
    return first;
  }

  /** Return the request's fields. */
  fields({ base }) {
    const wrong = this.check();
    if (wrong) throw new SettingsError(wrong);
    const given = Object.keys(FIELDS).filter((name) => byId(name).value.trim());
    const values = Object.fromEntries(given.map((name) => [name, number(byId(name).value.trim())]));
    return base ? { max_tokens: BASE_TOKENS, ...values } : values;
  }

  /** Show the GPU memory that the server reports. */
  showStatus(status) {
    const slider = byId("vram");
    const some = Boolean(status.vram_total);
    byId("max_tokens").placeholder = status.is_chat ? FIELDS.max_tokens.empty : String(BASE_TOKENS);
    slider.disabled = !some || status.loading;
    byId("reload").disabled = !some || status.loading || !this.moved;
    byId("reload").textContent = status.loading ? "Loading…" : "Reload with this much GPU memory";
    if (!some) {
      slider.max = 1;
      slider.value = 0;
      byId("vram-value").textContent = "none";
      byId("vram-note").textContent = status.loading ? "Loading the model." : "No GPU: the whole model runs on the CPU.";
      return;
    }
    slider.min = STEP;
    slider.max = Math.floor(status.vram_total / STEP) * STEP;
    slider.step = STEP;
    if (!this.moved) slider.value = status.vram ?? status.vram_total;
    this.total = status.vram_total;
    this.split = status.vram ?? status.vram_total; // finer than the slider's steps
    if (this.asked !== null && !status.loading) {
      const got = this.split;
      this.said = Math.abs(got - this.asked) < STEP ? `Loaded with ${gigabytes(got)}.` : `Still using ${gigabytes(got)}. ${status.notes.at(-1) ?? ""}`;
      this.asked = null;
      this.moved = false;
      slider.value = got;
      byId("reload").disabled = true;
    }
    this.showVram();
    if (status.loading) byId("vram-note").textContent = "Loading the model. Replies wait until it is ready.";
  }

  showVram() {
    const slider = byId("vram");
    const chosen = gigabytes(this.moved ? Number(slider.value) : this.split);
    byId("vram-value").textContent = `${chosen} of ${gigabytes(this.total)}`;
    slider.setAttribute("aria-valuetext", chosen);
    byId("reload").disabled = !this.moved || slider.disabled;
    byId("vram-note").textContent = this.moved ? "Reloading stops running replies." : this.said ?? "With more GPU memory, fewer experts run on the CPU.";
  }

  async reload() {
    this.asked = Number(byId("vram").value);
    byId("reload").disabled = true;
    try {
      await reload(this.asked);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.asked = null;
      this.showVram();
      byId("vram-note").textContent = error.message;
      return;
    }
    this.refresh({ loading: true });
  }
}

function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "{}");
    return kept && typeof kept === "object" ? kept : {};
  } catch {
    return {}; // not written by this page
  }
}

const number = (text) => Number(text.replace(",", "."));

function problem(text, { label, low, high, whole, above }) {
  if (!text) return "";
  const value = number(text);
  const right = Number.isFinite(value) && value >= low && value <= high && !(above && value === low) && !(whole && !Number.isInteger(value));
  if (right) return "";
  const most = high > 1e6 ? `of at least ${low}` : `${above ? "above" : "from"} ${low} ${above ? "and up " : ""}to ${high}`;
  return `${label} must be ${whole ? "a whole number" : "a number"} ${most}.`;
}

/** GPU memory and RAM in use, and the RAM that was planned. */
function memory(status) {
  const planned = status.ram_planned ? ` of ${gigabytes(status.ram_planned)} planned` : "";
  const parts = [status.vram_used && `GPU ${gigabytes(status.vram_used)}`, status.ram_used && `RAM ${gigabytes(status.ram_used)}${planned}`];
  return parts.filter(Boolean).join(", ") || "–";
}

/** Show facts of the model. */
export function showFacts(status) {
  const facts = [
    ["Name", status.model],
    ["Device", status.device],
    ["Chat template", status.is_chat ? status.template : "base model, continues text"],
    ["Shape", status.experts ? `${status.layers} layers, ${status.experts_per_token} of ${status.experts} experts` : `${status.layers} layers, dense`],
    ["Context", `${status.context.toLocaleString("en")} tokens`],
    ["Memory", memory(status)],
    ["Queue", `${status.running} running, ${status.queued} waiting`],
    ["Version", status.version],
  ];
  const rows = facts.map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value ?? "–" })));
  byId("facts").replaceChildren(...rows);
  byId("notes").replaceChildren(...(status.notes ?? []).map((note) => element("li", { textContent: note })));
}
