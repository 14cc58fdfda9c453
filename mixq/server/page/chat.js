// The open conversation: sends messages, shows replies while they arrive, stops and regenerates them.
//
// Contract: one reply runs at a time, also while another conversation is open. Text that arrived before a failure is
// kept; a reply without text adds no message, so that the last message can be sent again.

import { ApiError, stream } from "./api.js";
import { byId, element } from "./elements.js";
import { MessageView } from "./message.js";
import { problemBox } from "./problems.js";
import { SettingsError } from "./settings.js";

const NEAR_END = 90; // pixels from the end: nearer, the page scrolls with the text
const SAVE_EVERY = 1000; // ms, while a reply arrives

export class Chat {
  /** `status()` returns the server's last status; `save(conversation)` stores it; `changed()` is called when a reply starts or ends. */
  constructor({ status, settings, figures, heatMap, save, changed, startNew }) {
    Object.assign(this, { status, settings, figures, heatMap, save, changed, startNew });
    this.root = byId("messages");
    this.running = null;
    this.problems = new Map(); // conversation -> error of its last message
    this.views = new Map();
  }

  get base() {
    return this.status()?.is_chat === false;
  }

  open(conversation) {
    this.conversation = conversation;
    this.draw();
    this.root.scrollTop = this.root.scrollHeight;
    const last = conversation.messages.findLast((message) => message.figures);
    if (this.running?.conversation !== conversation) this.figures.show(last?.figures);
    this.figures.context(last?.figures.context, this.status()?.context ?? 0);
  }

  draw() {
    const { messages } = this.conversation;
    this.views.clear();
    const views = messages.map((message, i) => {
      const last = i === messages.length - 1;
      const acts = message.role === "user" ? { edit: (text) => this.edit(i, text), following: !last } : { regenerate: last ? () => this.regenerate() : null };
      const view = new MessageView(message, acts, { base: this.base });
      this.views.set(message, view);
      if (message === this.running?.message) view.draw({ running: true });
      return view.root;
    });
    this.root.replaceChildren(...(views.length ? views : [this.empty()]));
    const error = this.problems.get(this.conversation);
    if (error) this.root.append(problemBox(error, { retry: () => this.regenerate(), new: () => this.elsewhere() }));
  }

  empty() {
    const status = this.status();
    const here = /^(localhost$|127\.|\[::1\])/.test(location.hostname) ? "Nothing leaves this computer." : "";
    const shape = status?.experts ? `Each token uses ${status.experts_per_token} of ${status.experts} experts in each of ${status.layers} layers.` : "";
    return element("div", { className: "empty" },
      element("strong", { textContent: this.base ? "Write the beginning of a text; the model continues it." : "Ask something." }),
      element("p", { textContent: [shape, here].filter(Boolean).join(" ") }));
  }

  /** Send a message; returns whether it was accepted. */
  send(text) {
    const { messages } = this.conversation;
    const last = messages.at(-1);
    if (this.running || (!text.trim() && !(this.base && last))) return false;
    if (last?.role === "user" && !this.base) last.content += `\n\n${text}`; // the last one has no reply: send both as one message
    else if (text) messages.push({ role: "user", content: text });
    this.answer();
    return true;
  }

  edit(index, text) {
    if (this.running || !text.trim()) return;
    this.conversation.messages.splice(index, Infinity, { role: "user", content: text });
    this.answer();
    byId("prompt").focus();
  }

  regenerate() {
    if (this.running) return;
    const { messages } = this.conversation;
    if (messages.at(-1)?.role === "assistant") messages.pop();
    this.answer();
    byId("prompt").focus();
  }

  /** Send the last message in a new conversation. */
  elsewhere() {
    const question = this.conversation.messages.findLast((message) => message.role === "user");
    this.startNew();
    if (question) this.send(question.content);
  }

  stop() {
    this.running?.abort.abort();
  }

  async answer() {
    const { conversation } = this;
    const message = { role: "assistant", content: "" };
    this.problems.delete(conversation);
    let body;
    try {
      body = this.request(conversation);
    } catch (error) {
      if (!(error instanceof SettingsError)) throw error;
      this.fail(conversation, new ApiError(400, { message: error.message, code: "settings" }));
      return;
    }
    conversation.messages.push(message);
    this.running = { conversation, message, abort: new AbortController(), saved: Date.now() };
    this.figures.begin();
    this.heatMap.clear();
    this.save(conversation);
    this.draw();
    this.root.scrollTop = this.root.scrollHeight;
    this.changed();
    let failure = null;
    try {
      const path = this.base ? "/v1/completions" : "/v1/chat/completions";
      for await (const chunk of stream(path, body, this.running.abort.signal)) this.take(chunk);
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof ApiError)) throw error;
      message.end = error.name === "AbortError" ? "stopped" : "broken";
      failure = error instanceof ApiError ? error : null;
    } finally {
      this.end(conversation, message, failure);
    }
  }

  request({ system, messages }) {
    const shared = { stream: true, ...this.settings.fields({ base: this.base }), mixq: { experts: Boolean(this.status()?.experts), cache: true } };
    if (this.base) return { prompt: messages.map(({ content }) => content).join(""), ...shared };
    const said = messages.map(({ role, content }) => ({ role, content }));
    return { messages: system.trim() ? [{ role: "system", content: system }, ...said] : said, ...shared };
  }

  take({ choices, mixq }) {
    const { message, conversation } = this.running;
    const [choice] = choices ?? [];
    const text = choice?.delta?.content ?? choice?.text ?? "";
    if (mixq?.prompt_progress) this.figures.prefill(mixq.prompt_progress);
    if (mixq?.experts) this.heatMap.add(mixq.experts);
    const tokens = mixq?.experts?.length ?? (text ? 1 : 0);
    if (tokens) this.figures.add(tokens);
    if (choice?.finish_reason) message.end = choice.finish_reason;
    if (mixq?.stats) {
      this.figures.end(mixq.stats);
      message.figures = this.figures.final;
      if (message.end === "length" && mixq.stats.context_used >= mixq.stats.context_size) message.end = "context";
    }
    if (!text) return;
    message.content += text;
    this.frame ??= requestAnimationFrame(() => this.show(message));
    if (Date.now() - this.running.saved > SAVE_EVERY) {
      this.running.saved = Date.now();
      this.save(conversation);
    }
  }

  show(message) {
    this.frame = null;
    const follows = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < NEAR_END;
    this.views.get(message)?.text();
    if (follows) this.root.scrollTop = this.root.scrollHeight;
  }

  end(conversation, message, failure) {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = null;
    this.running = null;
    this.figures.close();
    this.heatMap.finish();
    if (!message.figures && this.figures.tokens) message.figures = { tokens: this.figures.tokens };
    if (!message.content) {
      conversation.messages.pop();
      this.figures.show(null);
    }
    const stopped = message.end === "stopped" && !message.content;
    if (stopped) failure = new ApiError(499, { message: "Stopped before the first token.", code: "stopped" });
    if (failure) this.problems.set(conversation, failure);
    this.save(conversation);
    if (this.conversation === conversation) {
      const follows = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < NEAR_END;
      this.draw();
      if (follows) this.root.scrollTop = this.root.scrollHeight;
    }
    if (message.content) byId("live").replaceChildren(element("p", { textContent: message.content }));
    this.changed();
  }

  fail(conversation, error) {
    this.problems.set(conversation, error);
    this.save(conversation);
    this.draw();
    this.root.scrollTop = this.root.scrollHeight;
  }
}
