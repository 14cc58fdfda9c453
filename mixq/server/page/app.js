// Puts the page together, and polls the server's status.

import { ApiError, getStatus, setKey } from "./api.js";
import { Chat } from "./chat.js";
import { Conversations } from "./conversations.js";
import { button, byId, element } from "./elements.js";
import { Figures } from "./figures.js";
import { HeatMap } from "./heat_map.js";
import { Settings, showFacts } from "./settings.js";
import { Store } from "./store.js";

const WAIT = { idle: 5000, running: 1000, loading: 500, gone: 1500 }; // ms between two requests of the status
const NARROW = matchMedia("(max-width: 1120px)");

let status = null;
let trouble = null; // the last error of such a request
let timer = null;
let pending = null;

const figures = new Figures();
const heatMap = new HeatMap();
const settings = new Settings({ systemChanged, refresh });
const store = await Store.open();
const conversations = new Conversations(store, { opened, tell, system: () => settings.system });
const chat = new Chat({
  status: () => status,
  settings,
  figures,
  heatMap,
  save: (conversation) => conversations.save(conversation),
  changed: () => { showState(); refresh(); },
  startNew: () => conversations.start(),
});
const prompt = byId("prompt");

function opened(conversation) {
  settings.showSystem(conversation.system);
  chat.open(conversation);
  closeDrawers();
  if (!NARROW.matches && !byId("key")) prompt.focus();
}

function systemChanged(text) {
  conversations.current.system = text;
  conversations.save(conversations.current, { touch: false });
}

// The server's state

async function updateStatus() {
  clearTimeout(timer);
  pending?.abort();
  pending = new AbortController();
  const { signal } = pending;
  try {
    const found = await getStatus(signal);
    const before = status;
    status = found.path === null ? { ...before, ...stated(found) } : found; // while a model loads, show the previous one's facts
    trouble = null;
    if (before?.is_chat !== status.is_chat && conversations.current && !chat.running) chat.draw();
    if (status.layers) {
      heatMap.resize(status.layers, status.experts);
      showFacts(status);
    }
    settings.showStatus(status);
    if (chat.running) figures.hits(found.expert_hit_rate);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof ApiError)) throw error;
    trouble = error;
  }
  showState();
  const wait = trouble ? WAIT.gone : status.loading ? WAIT.loading : chat.running ? WAIT.running : WAIT.idle;
  timer = setTimeout(updateStatus, wait);
}

const stated = (found) => Object.fromEntries(Object.entries(found).filter(([, value]) => value !== null));

/** Request the status now; `loading`: the server has just been asked to load a model. */
function refresh({ loading = false } = {}) {
  if (loading && status) {
    status = { ...status, loading: true };
    settings.showStatus(status);
    showState();
    clearTimeout(timer);
    timer = setTimeout(updateStatus, WAIT.loading);
  } else {
    updateStatus();
  }
}

function showState() {
  const running = chat.running !== null;
  const ready = status !== null && !trouble && !status.loading && status.ready;
  byId("send").hidden = running;
  byId("stop").hidden = !running;
  byId("send").disabled = !ready;
  byId("model").textContent = status?.model ?? "";
  byId("model").title = status?.path ?? "";
  byId("prompt-label").textContent = status?.is_chat === false ? "Text to continue" : "Message";
  prompt.placeholder = status?.is_chat === false ? "Write the beginning of a text" : "Write a message";
  byId("send").textContent = status?.is_chat === false ? "Complete" : "Send";
  if (trouble?.status === 401) askKey();
  else if (trouble?.status === 0) showBanner("gone", "The server does not respond. Trying again…");
  else if (trouble) showBanner("gone", trouble.message);
  else if (status?.loading) showBanner("loading", "Loading the model…");
  else if (status && !status.ready) showBanner("gone", status.notes.at(-1) ?? "The model could not be loaded.");
  else if (byId("banner").dataset.kind !== "told") showBanner("", "");
}

// The line below the title shows one message at a time

function showBanner(kind, text, ...more) {
  const banner = byId("banner");
  if (banner.dataset.kind === kind && banner.dataset.text === text) return; // shown already
  banner.dataset.kind = kind;
  banner.dataset.text = text;
  banner.replaceChildren(...(text ? [element("span", { textContent: text }), ...more] : []));
}

function tell(text, label = null, act = null) {
  const close = () => { showBanner("", ""); prompt.focus(); };
  const does = label ? [button(label, () => { close(); act(); }, { className: "quiet" })] : [];
  showBanner("told", text, ...does, button("Close", close, { className: "quiet" }));
}

function askKey() {
  if (byId("key")) return;
  const field = element("input", { id: "key", type: "password", autocomplete: "off", required: true });
  const form = element("form", {}, element("label", { htmlFor: "key", textContent: "API key" }), field, element("button", { type: "submit", textContent: "Use" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(field.value.trim());
    field.value = "";
    showBanner("", "");
    updateStatus();
  });
  showBanner("key", "API key required", form);
  field.focus();
}

// In a narrow window, the side panels are popovers

const closeDrawers = () => document.querySelector(":popover-open")?.hidePopover();

for (const drawer of document.querySelectorAll("[popover]")) {
  drawer.addEventListener("toggle", (event) => byId(`show-${drawer.id}`).setAttribute("aria-expanded", String(event.newState === "open")));
}
NARROW.addEventListener("change", closeDrawers);

// The composer and keys

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, window.innerHeight * 0.4)}px`;
}

function submit() {
  if (byId("send").disabled || chat.running) return;
  if (chat.send(prompt.value)) {
    prompt.value = "";
    fitPrompt();
  }
}

byId("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
byId("stop").addEventListener("click", () => { chat.stop(); prompt.focus(); });
prompt.addEventListener("input", fitPrompt);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  if (!document.querySelector(":popover-open")) chat.stop();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) updateStatus(); });

await updateStatus();
await conversations.load();
if (!store.kept) {
  document.querySelector(".kept").hidden = true;
  tell("This browser does not allow saving (a private window?). Export the conversations that you want to keep.");
}
document.documentElement.dataset.ready = "true";
