// Stores conversations: in this browser's IndexedDB, or in memory if it has none (some private windows).
//
// Contract: a conversation is {id, title, system, created, updated, messages: [{role, content, end?, figures?}]}. The
// fields of an imported file are checked and copied one by one; other fields are dropped.

const ROLES = new Set(["user", "assistant"]);
const FORMAT = "mixq-conversations";
const LARGEST_FILE = 32 << 20;
const MOST = { conversations: 5000, messages: 5000, title: 200 };

export class ImportError extends Error {}

export class Store {
  static async open() {
    const store = new Store();
    try {
      store.database = await new Promise((resolve, reject) => {
        const opening = indexedDB.open("mixq", 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
        opening.onsuccess = () => resolve(opening.result);
        opening.onerror = () => reject(opening.error);
        opening.onblocked = () => reject(new DOMException("blocked", "AbortError"));
      });
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      store.database = null; // the page shows a message
    }
    return store;
  }

  get kept() {
    return this.database !== null;
  }

  async all() {
    const found = this.kept ? await this.#ask("readonly", (records) => records.getAll()) : [];
    return found.sort((a, b) => b.updated - a.updated);
  }

  async save(conversation) {
    if (this.kept) await this.#ask("readwrite", (records) => records.put(structuredClone(conversation)));
  }

  async remove(id) {
    if (this.kept) await this.#ask("readwrite", (records) => records.delete(id));
  }

  #ask(mode, act) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction("conversations", mode);
      const asked = act(transaction.objectStore("conversations"));
      transaction.commit(); // at once: it is kept even if the page is closed now
      transaction.oncomplete = () => resolve(asked.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }
}

export function newConversation(system = "") {
  const now = Date.now();
  const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", system, created: now, updated: now, messages: [] };
}

export function exported(conversations) {
  const kept = conversations.map(({ title, system, created, updated, messages }) => ({
    title, system, created, updated, messages: messages.map(({ role, content }) => ({ role, content })),
  }));
  return JSON.stringify({ format: FORMAT, version: 1, conversations: kept }, null, 1);
}

/** Return the conversations of an exported file; throws ImportError. */
export async function imported(file) {
  if (file.size > LARGEST_FILE) throw new ImportError("The file is larger than 32 MB.");
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new ImportError("The file is not JSON.");
  }
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) throw new ImportError(`The file is not an export of conversations from this page.`);
  if (data.version !== 1) throw new ImportError("The file was written by a newer mixq. Update mixq to import it.");
  if (data.conversations.length > MOST.conversations) throw new ImportError(`The file has more than ${MOST.conversations} conversations.`);
  return data.conversations.map((each, i) => rebuilt(each, `Conversation ${i + 1}`));
}

function rebuilt(data, where) {
  if (typeof data !== "object" || data === null) throw new ImportError(`${where} is not an object.`);
  const made = newConversation(text(data.system ?? "", `${where}: system`));
  made.title = text(data.title ?? "", `${where}: title`).slice(0, MOST.title);
  if (!Array.isArray(data.messages) || data.messages.length > MOST.messages) throw new ImportError(`${where} has no list of up to 5000 messages.`);
  made.messages = data.messages.map((message, i) => {
    if (!ROLES.has(message?.role)) throw new ImportError(`${where}, message ${i + 1}: the role is not user or assistant.`);
    return { role: message.role, content: text(message.content, `${where}, message ${i + 1}`) };
  });
  for (const name of ["created", "updated"]) if (Number.isFinite(data[name])) made[name] = Math.min(data[name], Date.now());
  return made;
}

function text(value, where) {
  if (typeof value !== "string") throw new ImportError(`${where} is not a string.`);
  return value;
}
