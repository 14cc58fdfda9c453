// The list of conversations: choose, rename, delete (and undo), export, import.

import { button, byId, element, icon } from "./elements.js";
import { ImportError, exported, imported, newConversation } from "./store.js";

const PEN = "M3 13l.7-3L11 2.7a1 1 0 0 1 1.4 0l.9.9a1 1 0 0 1 0 1.4L6 12.3zM9.8 4l2.2 2.2";
const BIN = "M3 4.5h10M6 4.5V3h4v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5M6.8 7v3.6M9.2 7v3.6";
const titleOf = (conversation) => conversation.title || "New conversation";

export class Conversations {
  /** `opened` is called with the conversation to show; `tell` shows a line with an optional action. */
  constructor(store, { opened, tell, system }) {
    this.store = store;
    this.opened = opened;
    this.tell = tell;
    this.system = system;
    this.list = [];
    this.current = null;
    this.deleted = new Set(); // a running reply must not save a deleted one again
    byId("new").addEventListener("click", () => this.start());
    byId("export").addEventListener("click", () => this.exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.importFrom(event.target));
  }

  async load() {
    this.list = await this.store.all();
    const last = sessionStorage.getItem("mixq.open");
    const found = this.list.find((each) => each.id === last) ?? this.list[0];
    if (found) this.open(found);
    else this.start();
  }

  /** Show an empty conversation; it is saved from its first message on. */
  start() {
    this.open(newConversation(this.system()));
  }

  open(conversation) {
    this.current = conversation;
    sessionStorage.setItem("mixq.open", conversation.id);
    this.draw();
    this.opened(conversation);
  }

  async save(conversation, { touch = true } = {}) {
    if (this.deleted.has(conversation)) return;
    if (touch) conversation.updated = Date.now();
    if (!conversation.title) conversation.title = firstWords(conversation);
    if (!this.list.includes(conversation)) {
      if (!conversation.messages.length) return;
      this.list.unshift(conversation);
      this.draw();
    } else if (touch && this.list[0] !== conversation) {
      this.list.sort((a, b) => b.updated - a.updated);
      this.draw();
    }
    try {
      await this.store.save(conversation);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.tell("The browser's storage is full. Export your conversations and delete some.");
    }
  }

  draw() {
    byId("title").textContent = titleOf(this.current);
    document.title = this.current.title ? `${this.current.title} · mixq` : "mixq";
    byId("conversations").replaceChildren(...this.list.map((each) => this.row(each)));
  }

  row(conversation) {
    const title = titleOf(conversation);
    const open = button(title, () => this.open(conversation), { className: "open", title });
    if (conversation === this.current) open.setAttribute("aria-current", "true");
    const row = element("li", {}, open);
    const rename = button("", () => this.rename(conversation, row), { className: "quiet", title: "Rename", "aria-label": `Rename ${title}` });
    const remove = button("", () => this.remove(conversation), { className: "quiet", title: "Delete", "aria-label": `Delete ${title}` });
    rename.append(icon(PEN));
    remove.append(icon(BIN));
    row.append(rename, remove);
    return row;
  }

  rename(conversation, row) {
    const field = element("input", { value: conversation.title, maxLength: 200, "aria-label": "Title of the conversation" });
    let over = false;
    const end = (keep) => {
      if (over) return;
      over = true;
      const title = field.value.trim();
      if (keep && title) conversation.title = title;
      this.draw();
      if (keep) this.save(conversation, { touch: false });
      byId("conversations").children[this.list.indexOf(conversation)]?.querySelector("button")?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
      if (event.key === "Enter" || event.key === "Escape") event.stopPropagation();
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.select();
  }

  async remove(conversation) {
    const at = this.list.indexOf(conversation);
    this.list.splice(at, 1);
    this.deleted.add(conversation);
    if (conversation !== this.current) this.draw();
    else if (this.list.length) this.open(this.list[Math.min(at, this.list.length - 1)]);
    else this.start();
    await this.store.remove(conversation.id);
    this.tell(`Deleted “${titleOf(conversation)}”.`, "Undo", () => {
      this.deleted.delete(conversation);
      this.list.push(conversation);
      this.list.sort((a, b) => b.updated - a.updated);
      this.store.save(conversation);
      this.open(conversation);
    });
  }

  exportAll() {
    const file = new Blob([exported(this.list)], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(file), download: `mixq-${new Date().toISOString().slice(0, 10)}.json` });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  async importFrom(field) {
    const [file] = field.files;
    if (!file) return;
    try {
      const found = await imported(file);
      for (const each of found) await this.store.save(each);
      this.list = [...found, ...this.list].sort((a, b) => b.updated - a.updated);
      if (found.length) this.open(found[0]);
      this.tell(`${found.length} ${found.length === 1 ? "conversation" : "conversations"} imported.`);
    } catch (error) {
      if (!(error instanceof ImportError)) throw error;
      this.tell(`Nothing was imported. ${error.message}`);
    }
    field.value = "";
  }
}

function firstWords(conversation) {
  const text = conversation.messages.find((message) => message.role === "user")?.content.trim().replace(/\s+/g, " ") ?? "";
  return text.length > 60 ? `${text.slice(0, 59).trimEnd()}…` : text;
}
