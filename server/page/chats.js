// The chats: each is kept in this browser's localStorage, and nowhere else.
//
// A chat is a tree: an edited message and an answer made anew stand beside the old ones.
//   chat     { id, title, model, created, changed, settings, messages: { id: message }, leaf }
//   message  { id, parent, role, content, thoughts, model, usage, rate, finish, error }

const PREFIX = "chat:";
const TITLE_LENGTH = 48;

export function created(model, settings) {
  const now = Date.now();
  return {
    id: crypto.randomUUID?.() ?? `${now}-${Math.random()}`, // plain http elsewhere has no randomUUID
    title: "", model, created: now, changed: now, settings: { ...settings }, messages: {}, leaf: null,
  };
}

/** Those that are kept, the newest first. */
export function all() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const found = keys.map((key) => load(key.slice(PREFIX.length))).filter(Boolean);
  return found.sort((one, other) => other.changed - one.changed);
}

export function load(id) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + id));
  } catch {
    return null;
  }
}

/** Keep a chat; throws where the browser has no more room. */
export function save(chat) {
  localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
}

export function remove(chat) {
  localStorage.removeItem(PREFIX + chat.id);
}

export function isKept(key) {
  return key === null || key.startsWith(PREFIX);
}

// The tree ---------------------------------------------------------------------------------------

/** A new message after another one (null: the first), and the chat goes on from there. */
export function add(chat, parent, role, content, more = {}) {
  const id = String(Math.max(0, ...Object.keys(chat.messages)) + 1);
  const message = { id, parent, role, content, ...more };
  chat.messages[id] = message;
  chat.leaf = id;
  chat.changed = Date.now();
  if (!chat.title && role === "user") chat.title = titleOf(content);
  return message;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH).trimEnd()}…` : line;
}

/** The messages that are shown, from the first one. */
export function path(chat, leaf = chat.leaf) {
  const found = [];
  for (let message = chat.messages[leaf]; message; message = chat.messages[message.parent]) {
    found.unshift(message);
  }
  return found;
}

/** A message and its other versions, the oldest first. */
export function versions(chat, message) {
  return Object.values(chat.messages).filter((other) => other.parent === message.parent);
}

/** Take out a message that nothing follows. */
export function drop(chat, message) {
  delete chat.messages[message.id];
  if (chat.leaf === message.id) chat.leaf = message.parent;
}

/** Go on from a version: to the end of what followed it last. */
export function choose(chat, message) {
  let leaf = message.id;
  for (;;) {
    const next = Object.values(chat.messages).filter((other) => other.parent === leaf).at(-1);
    if (!next) break;
    leaf = next.id;
  }
  chat.leaf = leaf;
}

/** What a server is sent: the settings' system prompt and the messages up to one. */
export function request(chat, leaf) {
  const { system, ...sampling } = chat.settings;
  const messages = path(chat, leaf)
    .filter((message) => message.content || message.role === "user")
    .map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: "system", content: system });
  return { model: chat.model, messages, ...sampling };
}

// Export -----------------------------------------------------------------------------------------

export function asMarkdown(chat) {
  const parts = [`# ${chat.title}`];
  if (chat.settings.system) parts.push(`## System\n\n${chat.settings.system}`);
  for (const { role, content, thoughts, model } of path(chat)) {
    if (role === "user") parts.push(`## You\n\n${content}`);
    else {
      const folded = `<details><summary>Thoughts</summary>\n\n${thoughts}\n\n</details>\n\n`;
      parts.push(`## ${model}\n\n${thoughts ? folded : ""}${content}`);
    }
  }
  return `${parts.join("\n\n")}\n`;
}

export function asJson(chat) {
  return `${JSON.stringify(chat, null, 2)}\n`;
}
