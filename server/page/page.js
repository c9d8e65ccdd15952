// The page: what is shown, and what happens when it is used.

import * as api from "./api.js";
import * as chats from "./chats.js";
import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const PATIENCE = 20; // times that a full queue is asked again
const THEMES = { auto: "System colours", light: "Light", dark: "Dark" };
const narrow = matchMedia("(max-width: 46rem)");

let chat; // that is shown
let removed = null; // and can be had back
let isLeaving = false; // the page is
const runs = new Map(); // id of a chat -> the answer that comes: { chat, message, control, ... }
const contexts = new Map(); // model -> tokens

// Small things -----------------------------------------------------------------------------------

function element(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function icon(name) {
  const [svg, use] = ["svg", "use"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function button(label, picture, action) {
  const made = element("button", "plain", icon(picture));
  made.type = "button";
  made.title = label;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

function kept(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** For those who hear the page. */
function say(text) {
  $("said").textContent = text;
}

function save(which) {
  if (which === removed) return;
  try {
    chats.save(which);
  } catch {
    warn("This browser has no more room for chats: export and delete some.");
  }
}

function warn(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}

function toast(text, mayUndo = false) {
  const box = $("toast");
  box.firstElementChild.textContent = text;
  box.lastElementChild.hidden = !mayUndo;
  box.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (box.hidden = true), mayUndo ? 8000 : 3000);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("This browser does not let the page copy");
  }
}

// The server -------------------------------------------------------------------------------------

/** What a call comes to, when its key is known and the server is there. */
async function patiently(call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForKey();
    }
  }
}

/** Ask for the key; one question for all that wait for it. */
function askForKey() {
  askForKey.asked ??= new Promise((resolve, reject) => {
    const dialog = $("key");
    $("key-wrong").hidden = !askForKey.wasGiven;
    $("key-text").value = "";
    dialog.showModal();
    dialog.onsubmit = () => {
      api.setKey($("key-text").value.trim());
      askForKey.wasGiven = true;
      askForKey.asked = null;
      resolve();
    };
    dialog.onclose = () => {
      askForKey.asked = null;
      reject(new api.Refusal(401, { message: "This server asks for a key: reload to give one." }));
    };
  });
  return askForKey.asked;
}

async function loadModels() {
  const select = $("model");
  try {
    const names = await patiently(api.models);
    select.replaceChildren(...names.map((name) => new Option(name)));
    select.disabled = names.length === 0;
    warn(names.length ? "" : "The server offers no model.");
    showModel();
  } catch (error) {
    if (error instanceof api.Unreachable) await waitForServer();
    else warn(error.message);
  }
}

/** Say that the server is gone, until it is back. */
function waitForServer() {
  waitForServer.waiting ??= (async () => {
    warn("The server cannot be reached. Your chats are safe in this browser; it is asked again until it answers.");
    do await new Promise((resolve) => setTimeout(resolve, 2000));
    while (!(await api.isAlive()));
    waitForServer.waiting = null;
    warn("");
    await loadModels();
  })();
  return waitForServer.waiting;
}

/** The chat's model in the list; where it is offered no more, the one used last, or the first. */
function showModel() {
  const select = $("model");
  const names = [...select.options].map((option) => option.value);
  if (select.disabled) return;
  const wanted = [chat.model, kept("model", ""), names[0]].find((name) => names.includes(name));
  select.value = chat.model = wanted;
  showContext();
}

// Answers ----------------------------------------------------------------------------------------

/** Answer the message that a chat ends with at `parent`. */
async function generate(which, parent) {
  if (runs.has(which.id)) return;
  const message = chats.add(which, parent, "assistant", "", { thoughts: "", model: which.model });
  const control = new AbortController();
  const run = { chat: which, message, control, pieces: 0, saved: 0 };
  runs.set(which.id, run);
  save(which);
  show();
  say("The model is answering.");
  try {
    await asked(run);
  } catch (error) {
    if (isLeaving) return; // it is kept as it is: interrupted
    if (control.signal.aborted) message.finish = "stopped";
    else {
      message.finish = "error";
      message.error = error.message;
      if (error instanceof api.Unreachable) waitForServer();
    }
  }
  runs.delete(which.id);
  delete message.note;
  message.rate = rateOf(run);
  save(which);
  if (which === chat) show();
  showChats();
  say(message.error ?? (message.finish === "stopped" ? "Stopped." : message.content));
}

/** Ask, and ask again while the queue is full. */
async function asked(run) {
  const { chat: which, message, control } = run;
  const body = chats.request(which, message.parent);
  for (let tries = 1; ; tries++) {
    try {
      return await patiently(() => taken(run, body));
    } catch (error) {
      if (error.status !== 429 || tries > PATIENCE) throw error;
      for (let left = error.seconds || 2; left > 0; left--) {
        message.note = `Others are being answered. Asking again in ${left} s`;
        paint(run);
        await new Promise((resolve) => setTimeout(resolve, 1000));
        control.signal.throwIfAborted();
      }
      delete message.note;
    }
  }
}

async function taken(run, body) {
  const { message, control } = run;
  for await (const piece of api.answer(body, control.signal)) {
    if (piece.text || piece.thoughts) {
      run.first ??= performance.now();
      run.last = performance.now();
      run.pieces++;
    }
    message.thoughts += piece.thoughts ?? "";
    message.content += piece.text ?? "";
    if (piece.finish) message.finish = piece.finish;
    if (piece.usage) message.usage = piece.usage;
    paint(run);
  }
}

/** Tokens per second after the first one; while they come, a piece is taken for a token. */
function rateOf({ message, pieces, first, last }) {
  const tokens = message.usage?.completion_tokens ?? pieces;
  return tokens > 1 && last > first ? (tokens - 1) / ((last - first) / 1000) : null;
}

function stop() {
  runs.get(chat.id)?.control.abort();
}

/** Show what has come, at most once a frame; keep it once a second. */
function paint(run) {
  if (run.isPainting) return;
  run.isPainting = true;
  requestAnimationFrame(() => {
    run.isPainting = false;
    if (!runs.has(run.chat.id)) return;
    if (performance.now() - run.saved > 1000) {
      save(run.chat);
      run.saved = performance.now();
    }
    if (run.chat !== chat) return;
    fill($("messages").lastElementChild, run.message);
    showNumbers();
    follow();
  });
}

function send(text) {
  if (!text.trim() || runs.has(chat.id) || $("model").disabled) return false;
  const message = chats.add(chat, chat.leaf, "user", text);
  history.replaceState(null, "", `#${chat.id}`);
  generate(chat, message.id);
  showChats();
  follow(true);
  return true;
}

function again(message) {
  if (!message.content && !message.thoughts) chats.drop(chat, message); // it failed: no version
  generate(chat, message.parent);
  follow(true);
}

// Messages ---------------------------------------------------------------------------------------

function show() {
  const path = chats.path(chat);
  const isRunning = runs.has(chat.id);
  $("messages").replaceChildren(...path.map(article));
  $("messages").setAttribute("aria-busy", isRunning);
  $("empty").hidden = path.length > 0;
  $("more").disabled = path.length === 0;
  $("stop").hidden = !isRunning;
  $("send").hidden = isRunning;
  $("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} · litert-lm-cli` : "litert-lm-cli";
  showNumbers();
  follow();
}

function article(message) {
  const isUser = message.role === "user";
  const made = element("article", message.role);
  made.setAttribute("aria-label", isUser ? "You" : message.model);
  made.append(element("div", "text"));
  fill(made, message);
  return made;
}

/** What a message says now. */
function fill(made, message) {
  const text = made.querySelector(".text");
  const isRunning = runs.get(chat.id)?.message === message;
  if (message.role === "user") text.textContent = message.content;
  else {
    fillThoughts(made, message, isRunning);
    render(text, message.content);
    made.classList.toggle("coming", isRunning && !message.content && !message.note && !message.thoughts);
    notes(made, message, isRunning);
  }
  if (!isRunning && !made.querySelector(".tools")) made.append(tools(made, message));
}

function fillThoughts(made, message, isRunning) {
  if (!message.thoughts) return;
  let fold = made.querySelector(".thoughts");
  if (!fold) {
    fold = element("details", "thoughts", element("summary"), element("div"));
    made.prepend(fold);
  }
  fold.firstElementChild.textContent = isRunning && !message.content ? "Thinking…" : "Thoughts";
  render(fold.lastElementChild, message.thoughts);
}

const ENDS = {
  length: "The answer was cut off: its limit, or the end of the context, was reached.",
  stopped: "Stopped.",
};

function notes(made, message, isRunning) {
  const isCutOff = !isRunning && !message.finish;
  const text = message.error ?? message.note ?? ENDS[message.finish] ??
    (isCutOff ? "This answer was interrupted." : "");
  let note = made.querySelector(".end");
  if (!text) return note?.remove();
  if (!note) made.querySelector(".text").after((note = element("p")));
  note.className = message.error ? "end wrong" : "end";
  note.textContent = text;
}

function tools(made, message) {
  const row = element("div", "tools");
  const all = chats.versions(chat, message);
  const isBusy = () => runs.has(chat.id);
  if (all.length > 1) {
    const at = all.indexOf(message);
    const turn = (step) => () => {
      if (isBusy()) return;
      chats.choose(chat, all[at + step]);
      save(chat);
      show();
    };
    const [back, on] = [button("The version before", "back", turn(-1)), button("The next version", "on", turn(1))];
    back.disabled = at === 0;
    on.disabled = at === all.length - 1;
    row.append(back, element("span", "count", `${at + 1} / ${all.length}`), on);
  }
  row.append(button("Copy", "copy", () => copy(message.content)));
  row.append(button("Edit", "edit", () => isBusy() || edit(made, message)));
  if (message.role === "assistant") {
    row.append(button("Answer anew", "again", () => isBusy() || again(message)));
    const parts = [message.model];
    if (message.usage) parts.push(`${message.usage.completion_tokens} tokens`);
    if (message.rate) parts.push(`${message.rate.toFixed(1)} tokens/s`);
    row.append(element("span", "facts", parts.join(" · ")));
  }
  return row;
}

/** Change a message; the old one stays as another version. */
function edit(made, message) {
  const isUser = message.role === "user";
  const area = element("textarea");
  area.value = message.content;
  area.setAttribute("aria-label", "Edit the message");
  const done = element("button", "main", isUser ? "Send" : "Save");
  const cancel = element("button", "quiet", "Cancel");
  cancel.type = "button";
  const form = element("form", "editor", area, element("div", "buttons", cancel, done));
  const finish = () => {
    if (!area.value.trim() || runs.has(chat.id)) return;
    const { id } = chats.add(chat, message.parent, message.role, area.value, isUser ? {} : { model: message.model, finish: "stop" });
    if (isUser) return generate(chat, id);
    save(chat);
    show();
  };
  form.addEventListener("submit", (event) => (event.preventDefault(), finish()));
  cancel.addEventListener("click", show);
  area.addEventListener("input", () => grow(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") (event.stopPropagation(), show(), $("prompt").focus());
    else if (isSendKey(event)) (event.preventDefault(), finish());
  });
  made.classList.add("edited");
  made.replaceChildren(form);
  grow(area);
  area.focus();
}

// Numbers ----------------------------------------------------------------------------------------

function showNumbers() {
  const run = runs.get(chat.id);
  const rate = run ? rateOf(run) : null;
  $("rate").textContent = rate ? `${rate.toFixed(1)} tokens/s` : "";
  const path = chats.path(chat);
  const counted = path.findLast((message) => message.usage)?.usage;
  let used = counted ? counted.prompt_tokens + counted.completion_tokens : 0;
  if (run) used += run.pieces; // until the server has counted
  const limit = contexts.get(chat.model);
  $("context").hidden = !used;
  $("context").lastElementChild.textContent =
    `${run ? "about " : ""}${used.toLocaleString()}${limit ? ` of ${limit.toLocaleString()}` : ""} tokens`;
  $("filled").hidden = !limit;
  if (limit) Object.assign($("filled"), { max: limit, high: limit * 0.85, value: used });
}

async function showContext() {
  const model = chat.model;
  if (!contexts.has(model)) {
    try {
      contexts.set(model, await patiently(() => api.contextOf(model)));
    } catch {
      return; // the bar is left out
    }
  }
  showNumbers();
}

// Scrolling: with the text, unless the reader went back --------------------------------------------

let isFollowing = true;

function follow(anew = false) {
  if (anew) isFollowing = true;
  const area = $("scroll");
  if (isFollowing) area.scrollTop = area.scrollHeight;
  $("down").hidden = isFollowing || area.scrollHeight - area.clientHeight - area.scrollTop < 80;
}

$("scroll").addEventListener("scroll", () => {
  const area = $("scroll");
  isFollowing = area.scrollHeight - area.clientHeight - area.scrollTop < 40;
  $("down").hidden = isFollowing;
}, { passive: true });

// Code is coloured, and the place for it changes, after the text has been shown.
const observer = new ResizeObserver(() => chat && follow());
for (const id of ["scroll", "messages"]) observer.observe($(id));

// Chats ------------------------------------------------------------------------------------------

function showChats() {
  const rows = chats.all().map((one) => {
    const link = element("a", "", one.title);
    link.href = `#${one.id}`;
    link.title = one.title;
    if (one.id === chat.id) link.setAttribute("aria-current", "page");
    if (runs.has(one.id)) link.append(element("span", "busy", element("span", "unseen", ", is being answered")));
    return element("li", "", link);
  });
  if (!rows.length) rows.push(element("li", "none", "Your chats are kept here, in this browser."));
  $("chats").replaceChildren(...rows);
}

function open(which) {
  chat = which;
  history.replaceState(null, "", chat.title ? `#${chat.id}` : location.pathname);
  isFollowing = true;
  show();
  showModel();
  showChats();
  fillSettings();
  if (narrow.matches) showSidebar(false);
}

function fresh() {
  open(chats.created($("model").value, kept("settings", {})));
  $("prompt").focus();
}

/** The chat that the address names, or a new one. */
function openAddressed() {
  const id = location.hash.slice(1);
  if (chat && id === chat.id) return;
  const found = runs.get(id)?.chat ?? (id && chats.load(id));
  if (found) open(found);
  else fresh();
}

function rename() {
  const link = document.querySelector("#chats [aria-current]");
  const input = element("input");
  input.value = chat.title;
  input.setAttribute("aria-label", "Name of the chat");
  showSidebar(true);
  link.replaceWith(input);
  input.select();
  const finish = (isKept) => {
    input.onblur = null;
    if (isKept && input.value.trim()) {
      chat.title = input.value.trim();
      save(chat);
    }
    showChats();
    show();
  };
  input.onblur = () => finish(true);
  input.onkeydown = (event) => {
    if (event.key === "Escape") (event.stopPropagation(), finish(false));
    else if (event.key === "Enter") finish(true);
  };
}

function remove() {
  stop();
  removed = chat;
  chats.remove(chat);
  runs.delete(chat.id);
  fresh();
  toast(`“${removed.title}” is deleted`, true);
}

function undo() {
  $("toast").hidden = true;
  const found = removed;
  removed = null;
  save(found);
  open(found);
}

function download(text, suffix, type) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  const name = chat.title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().replace(/ +/g, "-");
  link.download = `${name || "chat"}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Settings ---------------------------------------------------------------------------------------

const settingFields = () => [...$("settings").querySelectorAll("[name]")];

function fillSettings() {
  for (const field of settingFields()) field.value = chat.settings[field.name] ?? "";
}

function takeSettings() {
  const entries = settingFields()
    .filter((field) => field.value.trim() && field.validity.valid)
    .map((field) => [field.name, field.type === "number" ? field.valueAsNumber : field.value]);
  chat.settings = Object.fromEntries(entries);
  if (chat.title) save(chat);
}

function showSidebar(isShown) {
  document.body.classList.toggle("aside", narrow.matches ? isShown : !isShown);
  const isVisible = sidebarIsShown();
  $("sidebar").inert = !isVisible;
  $("show").hidden = isVisible && !narrow.matches;
  $("show").setAttribute("aria-expanded", isVisible);
}

/** `aside` is the less usual state: shown on a small screen, hidden on a large one. */
function sidebarIsShown() {
  return document.body.classList.contains("aside") === narrow.matches;
}

function toggleSidebar() {
  const isShown = !sidebarIsShown();
  showSidebar(isShown);
  (isShown ? $("sidebar").querySelector("button") : $("show")).focus();
}

function showTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").lastElementChild.textContent = THEMES[name];
  $("theme").setAttribute("aria-label", `Colours: ${THEMES[name]}`);
}

function nextTheme() {
  const names = Object.keys(THEMES);
  const name = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  localStorage.setItem("theme", name);
  showTheme(name);
}

function showMenu() {
  const menu = $("menu");
  menu.showPopover();
  const { bottom, right } = $("more").getBoundingClientRect();
  menu.style.top = `${bottom + 4}px`;
  menu.style.left = `${Math.max(8, right - menu.offsetWidth)}px`;
  menu.firstElementChild.focus();
}

$("menu").addEventListener("toggle", (event) => {
  $("more").setAttribute("aria-expanded", event.newState === "open");
});
$("menu").addEventListener("keydown", (event) => {
  const items = [...$("menu").children];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  items.at((items.indexOf(document.activeElement) + step) % items.length).focus();
});

// What is done by name: `data-do` ------------------------------------------------------------------

const ACTIONS = {
  sidebar: toggleSidebar,
  new: fresh,
  theme: nextTheme,
  help: () => $("help").showModal(),
  settings: () => $("settings").showModal(),
  menu: showMenu,
  stop,
  undo,
  rename,
  delete: remove,
  down: () => follow(true),
  markdown: () => download(chats.asMarkdown(chat), "md", "text/markdown"),
  json: () => download(chats.asJson(chat), "json", "application/json"),
  "clear-settings": () => {
    chat.settings = {};
    fillSettings();
    takeSettings();
  },
  "keep-settings": () => {
    takeSettings();
    localStorage.setItem("settings", JSON.stringify(chat.settings));
    toast("New chats begin with these settings");
  },
};

document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-do]");
  if (target) {
    if ($("menu").contains(target)) $("menu").hidePopover();
    ACTIONS[target.dataset.do]();
  }
  const code = event.target.closest(".copy-code")?.closest(".code");
  if (code) copy(code.querySelector("code").textContent);
  if (event.target instanceof HTMLDialogElement) event.target.close(); // beside the dialog
});

// Keys -------------------------------------------------------------------------------------------

function isSendKey(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function sendPrompt() {
  const area = $("prompt");
  if (!send(area.value)) return;
  area.value = "";
  grow(area);
}

$("composer").addEventListener("submit", (event) => (event.preventDefault(), sendPrompt()));
$("prompt").addEventListener("input", () => grow($("prompt")));
$("prompt").addEventListener("keydown", (event) => {
  if (isSendKey(event)) (event.preventDefault(), sendPrompt());
  if (event.key === "ArrowUp" && !$("prompt").value) {
    const shown = [...document.querySelectorAll("article.user")].at(-1);
    shown?.querySelector('[aria-label="Edit"]')?.click();
    event.preventDefault();
  }
});

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return; // it has keys of its own
  const isCommand = event.ctrlKey || event.metaKey;
  const isWriting = /^(?:INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName);
  const named = [event.shiftKey && "Shift", event.key.length === 1 ? event.key.toUpperCase() : event.key];
  const keys = named.filter(Boolean).join(" ");
  const action = isCommand
    ? { "Shift O": fresh, B: toggleSidebar, ".": ACTIONS.settings }[keys]
    : isWriting || event.altKey ? null
    : { "/": () => $("prompt").focus(), "Shift /": ACTIONS.help, "Shift ?": ACTIONS.help, "?": ACTIONS.help }[keys];
  if (action) {
    event.preventDefault();
    action();
  } else if (event.key === "Escape") {
    if (runs.has(chat.id)) stop();
    else if (narrow.matches && sidebarIsShown()) toggleSidebar();
  }
});

// Begin ------------------------------------------------------------------------------------------

$("settings").addEventListener("change", takeSettings);
$("settings").addEventListener("close", takeSettings);
$("model").addEventListener("change", () => {
  chat.model = $("model").value;
  localStorage.setItem("model", JSON.stringify(chat.model));
  if (chat.title) save(chat);
  showContext();
});
addEventListener("hashchange", openAddressed);
$("chats").addEventListener("click", (event) => {
  if (narrow.matches && event.target.closest("a")) showSidebar(false); // also on the chat shown
});
addEventListener("storage", (event) => chats.isKept(event.key) && showChats()); // another tab
addEventListener("pagehide", () => {
  isLeaving = true;
  runs.forEach((run) => save(run.chat));
});
addEventListener("pageshow", () => (isLeaving = false));
narrow.addEventListener("change", () => showSidebar(!narrow.matches));

$("empty").lastElementChild.textContent =
  `Messages go to the server at ${location.host} and nowhere else. Chats are kept in this browser.`;
showTheme(document.documentElement.dataset.theme ?? "auto");
showSidebar(!narrow.matches);
openAddressed();
loadModels();
