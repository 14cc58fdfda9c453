// One message on the page: its text, its buttons, and the statistics of a reply.

import { button, copyText, element } from "./elements.js";
import { MarkdownView } from "./markdown.js";

const ENDS = { length: "stopped at max tokens", context: "stopped: the context is full", stopped: "stopped", broken: "interrupted" };

export class MessageView {
  /** `acts` has edit(text) for messages of the user, regenerate() for the last reply; `base`: plain text, no Markdown. */
  constructor(message, acts, { base }) {
    this.message = message;
    this.acts = acts;
    const mine = message.role === "user";
    const who = base ? (mine ? "Text" : "Model") : mine ? "You" : "mixq";
    this.body = element("div", { className: mine || base ? "body plain" : "body" });
    this.markdown = mine || base ? null : new MarkdownView(this.body);
    this.actions = element("div", { className: "actions" });
    this.figures = element("span", { className: "figures" });
    this.foot = element("div", { className: "foot" }, this.actions, this.figures);
    this.root = element("article", { className: `message ${message.role}`, "aria-label": mine ? "Your message" : "Reply" }, element("div", { className: "who", textContent: who }), this.body, this.foot);
    this.draw();
  }

  /** Show the text that has arrived. */
  text() {
    if (this.markdown) this.markdown.update(this.message.content);
    else this.body.textContent = this.message.content;
  }

  draw({ running = false } = {}) {
    this.text();
    this.root.classList.toggle("running", running);
    this.root.setAttribute("aria-busy", String(running));
    this.actions.replaceChildren();
    if (running) return;
    this.actions.append(button("Copy", (event) => copyText(this.message.content, event.currentTarget), { className: "quiet", "aria-label": "Copy message" }));
    if (this.acts.edit) this.actions.append(button("Edit", () => this.edit(), { className: "quiet", "aria-label": "Edit message" }));
    if (this.acts.regenerate) this.actions.append(button("Regenerate", this.acts.regenerate, { className: "quiet" }));
    this.figures.textContent = figuresLine(this.message);
  }

  edit() {
    const field = element("textarea", { value: this.message.content, "aria-label": "Edit message", rows: Math.min(12, this.message.content.split("\n").length + 1) });
    const done = (send) => {
      if (send) return this.acts.edit(field.value);
      this.root.classList.remove("editing");
      form.replaceWith(this.body);
      this.actions.querySelector("button:nth-child(2)")?.focus();
      return undefined;
    };
    const form = element("form", { className: "editor" }, field,
      element("button", { type: "submit", textContent: "Send again" }), button("Cancel", () => done(false), { className: "quiet" }));
    if (this.acts.following) form.append(element("p", { textContent: "The messages after it will be deleted." }));
    form.addEventListener("submit", (event) => { event.preventDefault(); done(true); });
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); done(true); }
      if (event.key === "Escape") { event.stopPropagation(); done(false); }
    });
    this.root.classList.add("editing");
    this.body.replaceWith(form);
    field.focus();
  }
}

function figuresLine({ figures, end }) {
  const parts = [];
  if (figures?.tokens) parts.push(`${figures.tokens} tokens`);
  if (figures?.speed) parts.push(`${figures.speed.toFixed(1)} tokens/s`);
  if (figures?.first !== undefined) parts.push(`first token after ${seconds(figures.first)}`);
  if (figures?.hits !== undefined) parts.push(`${Math.round(figures.hits * 100)} % hits`);
  if (ENDS[end]) parts.push(ENDS[end]);
  return parts.join(" · ");
}

export const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 1 : 0)} s`);
