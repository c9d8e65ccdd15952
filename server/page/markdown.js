// Markdown to DOM nodes: CommonMark's blocks and inlines, GitHub's tables, tasks and strikethrough.
//
// What a model writes is hostile. There is no string of HTML on the way, so that none can get out:
// tags stay text, links lead to http, https and mailto alone, and images, which would be fetched
// from anywhere, become links. Left out: HTML, reference links, footnotes.

import { paint } from "./highlight.js";

const MOST_DEPTH = 12; // of quotes and lists in each other; below, they stay text
const MOST_DELIMITERS = 600; // of one paragraph: what is nested beyond reason stays text
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;

const FENCE = /^( {0,3})(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*?)[ \t]*$/;
const ANY_FENCE = /^([ >]*(?:(?:[-+*]|\d{1,9}[.)]) +)*)(`{3,}(?=[^`]*$)|~{3,})/; // in a list, too
const MARK = /^(?:>|(?:[-+*]|\d{1,9}[.)])(?=[ \t]))/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-+*]|\d{1,9}[.)])(?:( +)(.*))?$/;
const TASK = /^\[([ xX])\][ \t]+/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const DELIMITER_CELL = /^:?-+:?$/;

/** Show a text in a container. What has not changed since the last time is left in place. */
export function render(container, text) {
  const found = blocks(prepared(text), 0);
  found.forEach((block, i) => {
    const old = container.childNodes[i];
    const source = JSON.stringify(block);
    if (old?.source === source) return;
    const made = built(block);
    made.source = source;
    if (old) old.replaceWith(made);
    else container.append(made);
  });
  while (container.childNodes.length > found.length) container.lastChild.remove();
}

// Blocks -----------------------------------------------------------------------------------------

/** The lines of a text, with blanks for the tabs that indent them; tabs of fenced code stay. */
function prepared(text) {
  let fence = null;
  return text.split(/\r\n?|\n/).map((line) => {
    const made = untabbed(line, fence?.column);
    if (fence) {
      if (fence.closing.test(made)) fence = null;
    } else {
      const [, before, marks] = ANY_FENCE.exec(made) ?? [];
      if (marks) fence = { column: before.length, closing: closingOf(marks, "[ >]*") };
    }
    return made;
  });
}

/** Tabs before the text, and behind a list's or a quote's mark, as blanks up to the next fourth. */
function untabbed(line, mostColumns = Infinity) {
  if (!line.trim()) return "";
  let made = "";
  for (let i = 0; i < line.length; i++) {
    if (made.length >= mostColumns) return made + line.slice(i);
    if (line[i] === "\t") made += " ".repeat(4 - (made.length % 4));
    else if (line[i] === " ") made += " ";
    else {
      const mark = MARK.exec(line.slice(i, i + 12))?.[0];
      if (!mark) return made + line.slice(i);
      made += mark;
      i += mark.length - 1;
    }
  }
  return made;
}

function closingOf(marks, indent) {
  return new RegExp(`^${indent}${marks[0]}{${marks.length},}[ \\t]*$`);
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

/** Lines into `{ kind, ... }`; `hasGap`: a blank line parts two of them. */
function blocks(lines, depth) {
  const found = [];
  found.hasGap = false;
  for (let at = 0; at < lines.length; ) {
    if (!lines[at]) at++;
    else {
      if (found.length && !lines[at - 1]) found.hasGap = true;
      const [block, next] = blockAt(lines, at, depth);
      found.push(block);
      at = next;
    }
  }
  return found;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  if (indentOf(line) >= 4) return indented(lines, at);
  let match;
  if ((match = FENCE.exec(line))) return fenced(lines, at, match);
  if ((match = HEADING.exec(line))) {
    const text = (match[2] ?? "").replace(/(?:^|[ \t]+)#+[ \t]*$/, "").trim();
    return [{ kind: "heading", level: match[1].length, text }, at + 1];
  }
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < MOST_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MOST_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  return table(lines, at) ?? paragraph(lines, at, depth);
}

function indented(lines, at) {
  let end = at;
  for (let i = at; i < lines.length && (!lines[i] || indentOf(lines[i]) >= 4); i++) {
    if (lines[i]) end = i + 1;
  }
  const text = lines.slice(at, end).map((line) => line.slice(4)).join("\n");
  return [{ kind: "code", language: "", text }, end];
}

function fenced(lines, at, [, indent, marks, info]) {
  const closing = closingOf(marks, " {0,3}");
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end++;
  const text = lines
    .slice(at + 1, end)
    .map((line) => line.slice(Math.min(indent.length, indentOf(line))))
    .join("\n");
  const language = info.split(/\s/)[0].toLowerCase();
  return [{ kind: "code", language, text }, end + 1];
}

/** Whether a line ends the paragraph before it. */
function interrupts(line, depth) {
  if (indentOf(line) >= 4) return false;
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (depth >= MOST_DEPTH) return false;
  if (QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return item !== null && Boolean(item[4]) && (item[2].length === 1 || parseInt(item[2]) === 1);
}

/** Whether a paragraph stands open at the end of these lines: what follows may belong to it. */
function endsOpen(lines, made) {
  const last = made.at(-1);
  return Boolean(last && lines.at(-1)) && (last.kind === "paragraph" || Boolean(last.isOpen));
}

function quote(lines, at, depth) {
  const inner = [];
  let end = at;
  let isOpen = null; // null: not known
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (QUOTE.test(line)) {
      const rest = line.replace(QUOTE, "");
      inner.push(rest.trim() && rest);
      isOpen = null;
    } else {
      if (!line || interrupts(line, depth)) break;
      isOpen ??= endsOpen(inner, blocks(inner, depth + 1));
      if (!isOpen) break;
      inner.push(line.trimStart());
    }
  }
  const made = blocks(inner, depth + 1);
  return [{ kind: "quote", isOpen: endsOpen(inner, made), blocks: made }, end];
}

function list(lines, at, depth) {
  const [, , first] = ITEM.exec(lines[at]);
  const mark = first.at(-1); // `-`, `+`, `*`, `.` or `)`: another one begins another list
  const items = [];
  let isLoose = false;
  let isOpen = false;
  let end = at;
  for (;;) {
    const [, indent, marker, blanks = "", rest = ""] = ITEM.exec(lines[end]);
    const gap = rest && blanks.length <= 4 ? blanks.length : 1;
    const width = indent.length + marker.length + gap;
    const inner = [rest ? " ".repeat(blanks.length - gap || 0) + rest : ""];
    let next = end + 1;
    let isItemOpen = null; // null: not known
    for (; next < lines.length; next++) {
      const line = lines[next];
      if (!line) {
        if (inner.length === 1 && !inner[0]) break; // an item that begins with nothing is empty
        inner.push("");
      } else if (indentOf(line) >= width) {
        inner.push(line.slice(width));
        isItemOpen = null;
      } else {
        if (!inner.at(-1) || interrupts(line, depth) || ITEM.test(line)) break;
        isItemOpen ??= endsOpen(inner, blocks(inner, depth + 1));
        if (!isItemOpen) break;
        inner.push(line.trimStart());
      }
    }
    let blanksAtEnd = 0;
    while (inner.length > 1 && !inner.at(-1)) {
      inner.pop();
      blanksAtEnd++;
    }
    while (next < lines.length && !lines[next]) {
      blanksAtEnd++;
      next++;
    }
    const made = blocks(inner, depth + 1);
    const after = next < lines.length ? ITEM.exec(lines[next]) : null;
    const goesOn = after !== null && after[2].at(-1) === mark && !RULE.test(lines[next]);
    if (made.hasGap || (blanksAtEnd && goesOn)) isLoose = true;
    items.push(made);
    end = next;
    isOpen = !blanksAtEnd && endsOpen(inner, made);
    if (!goesOn) break;
  }
  const start = first.length > 1 ? parseInt(first) : null;
  return [{ kind: "list", start, isLoose, isOpen, items }, end];
}

function cells(line) {
  const text = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return null;
  const head = cells(lines[at]);
  const marks = cells(lines[at + 1]);
  if (marks.length !== head.length || !marks.every((mark) => DELIMITER_CELL.test(mark))) return null;
  if (head.length === 1 && !lines[at + 1].includes("|")) return null;
  const aligned = marks.map((mark) => {
    const [left, right] = [mark.startsWith(":"), mark.endsWith(":")];
    return left && right ? "center" : right ? "right" : left ? "left" : "";
  });
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end] && !interrupts(lines[end], 0); end++) {
    const row = cells(lines[end]);
    rows.push(head.map((_, i) => row[i] ?? ""));
  }
  return [{ kind: "table", head, aligned, rows }, end];
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  let level = 0;
  for (; end < lines.length && lines[end]; end++) {
    const line = lines[end];
    const underline = UNDERLINE.exec(line);
    if (underline) {
      level = underline[1][0] === "=" ? 1 : 2;
      break;
    }
    if (interrupts(line, depth)) break;
    if (line.includes("|") && table(lines, end)) break;
  }
  const text = lines.slice(at, end).map((line) => line.trimStart()).join("\n").trimEnd();
  if (level) return [{ kind: "heading", level, text }, end + 1];
  return [{ kind: "paragraph", text }, end];
}

// Blocks into nodes ------------------------------------------------------------------------------

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function built(block, isTight = false) {
  if (block.kind === "paragraph") {
    return isTight ? inline(block.text) : element("p", inline(block.text));
  }
  if (block.kind === "heading") return element(`h${block.level}`, inline(block.text));
  if (block.kind === "rule") return element("hr");
  if (block.kind === "quote") {
    return element("blockquote", ...block.blocks.map((inner) => built(inner)));
  }
  if (block.kind === "list") return builtList(block);
  if (block.kind === "table") return builtTable(block);
  return builtCode(block);
}

function builtList({ start, isLoose, items }) {
  const made = element(start === null ? "ul" : "ol");
  if (start !== null && start !== 1) made.start = start;
  for (const item of items) {
    const task = item[0]?.kind === "paragraph" ? TASK.exec(item[0].text) : null;
    const row = element("li");
    if (task) {
      const box = element("input");
      box.type = "checkbox";
      box.disabled = true;
      box.checked = task[1] !== " ";
      box.setAttribute("aria-label", box.checked ? "done" : "to do");
      row.append(box, " ");
      row.className = "task";
      item[0] = { kind: "paragraph", text: item[0].text.slice(task[0].length) };
    }
    row.append(...item.map((block) => built(block, !isLoose)));
    made.append(row);
  }
  return made;
}

function builtTable({ head, aligned, rows }) {
  const row = (texts, name) => {
    const made = element("tr");
    texts.forEach((text, i) => {
      const cell = element(name, inline(text));
      if (aligned[i]) cell.className = aligned[i];
      made.append(cell);
    });
    return made;
  };
  const made = element("table", element("thead", row(head, "th")));
  if (rows.length) made.append(element("tbody", ...rows.map((texts) => row(texts, "td"))));
  const frame = element("div", made); // which scrolls where the table is wider than the page
  frame.className = "table";
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", "Table");
  return frame;
}

function builtCode({ language, text }) {
  const code = element("code", text);
  paint(code, language, text);
  const copy = element("button", "Copy");
  copy.type = "button";
  copy.className = "copy-code";
  const head = element("div", element("span", language), copy);
  head.className = "code-head";
  const area = element("pre", code);
  area.tabIndex = 0;
  const made = element("div", head, area);
  made.className = "code";
  return made;
}

// Inlines ----------------------------------------------------------------------------------------

const SPECIAL = /[\\`*_~![\]<&\nhH]/g;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]*|[\w.+-]+@[\w-]+(?:\.[\w-]+)+)>/iy;
const BREAK = /<br[ \t]*\/?>/iy;
const ADDRESS = /https?:\/\/[^\s<]+/iy;
const ENTITY = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([a-zA-Z]{2,8}));/y;
const TARGET = /\([ \t\n]*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\((?:[^\s()\\]|\\.)*\))*))(?:[ \t\n]+(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\((?:[^()\\]|\\.)*\)))?[ \t\n]*\)/y;
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™",
  hellip: "…", mdash: "—", ndash: "–", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", bull: "•",
  middot: "·", times: "×", divide: "÷", plusmn: "±", deg: "°", micro: "µ", para: "¶", sect: "§",
  euro: "€", pound: "£", yen: "¥", cent: "¢", larr: "←", rarr: "→", uarr: "↑", darr: "↓", le: "≤",
  ge: "≥", ne: "≠", infin: "∞", alpha: "α", beta: "β", gamma: "γ", delta: "δ", pi: "π",
};

function matchAt(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** A text with its emphasis, code and links, as a fragment. */
function inline(text, mayLink = true) {
  const made = document.createDocumentFragment();
  const delimiters = [];
  const brackets = mayLink ? matchingBrackets(text) : new Map();
  const ticks = closingTicks(text);
  let plain = "";
  const say = (node) => {
    if (plain) made.append(plain);
    plain = "";
    if (node) made.append(node);
  };
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at >= text.length) break;
    const char = text[at];
    let match;
    if (char === "\\" && text[at + 1] === "\n") {
      say(element("br"));
      at += 2;
    } else if (char === "\\" && ESCAPABLE.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (char === "`") {
      const run = runAt(text, at);
      const end = ticks.get(at);
      if (end === undefined) plain += run;
      else say(element("code", codeText(text.slice(at + run.length, end))));
      at = end === undefined ? at + run.length : end + run.length;
    } else if (char === "*" || char === "_" || char === "~") {
      const run = runAt(text, at);
      const delimiter = delimiterAt(text, at, run);
      if (delimiter && delimiters.length < MOST_DELIMITERS) {
        say((delimiter.node = document.createTextNode(run)));
        delimiters.push(delimiter);
      } else plain += run;
      at += run.length;
    } else if (char === "[" || (char === "!" && text[at + 1] === "[")) {
      const open = char === "!" ? at + 1 : at;
      const close = brackets.get(open);
      match = close === undefined ? null : matchAt(TARGET, text, close + 1);
      if (match) {
        const target = unescaped(match[1] ?? match[2]);
        const label = text.slice(open + 1, close);
        say(char === "!" ? image(label, target) : link(inline(label, false), target));
        at = close + 1 + match[0].length;
      } else plain += text[at++];
    } else if (char === "<" && (match = matchAt(BREAK, text, at))) {
      say(element("br"));
      at += match[0].length;
    } else if (char === "<" && mayLink && (match = matchAt(AUTOLINK, text, at))) {
      const isMail = !match[1].includes(":");
      say(link(match[1], isMail ? `mailto:${match[1]}` : match[1]));
      at += match[0].length;
    } else if (char === "&" && (match = matchAt(ENTITY, text, at))) {
      plain += entity(match);
      at += match[0].length;
    } else if (char === "\n") {
      const isHard = plain.endsWith("  ");
      plain = plain.trimEnd();
      if (isHard) say(element("br"));
      else plain += "\n";
      at++;
    } else if (/h/i.test(char) && mayLink && !/\w/.test(text[at - 1] ?? "") &&
               (match = matchAt(ADDRESS, text, at))) {
      const address = trimmedAddress(match[0]);
      say(link(address, address));
      at += address.length;
    } else plain += text[at++];
  }
  say();
  emphasise(delimiters);
  return made;
}

function runAt(text, at) {
  let end = at;
  while (text[end] === text[at]) end++;
  return text.slice(at, end);
}

/** Where each run of backticks that opens code is closed: found from the end, in one pass. */
function closingTicks(text) {
  const found = new Map();
  const later = new Map(); // length of a run -> the next one of that length
  const runs = [...text.matchAll(/`+/g)];
  for (const { index, 0: run } of runs.reverse()) {
    if (later.has(run.length)) found.set(index, later.get(run.length));
    later.set(run.length, index);
  }
  return found;
}

/** `[` to its `]`, in one pass. */
function matchingBrackets(text) {
  const found = new Map();
  const open = [];
  const ticks = closingTicks(text);
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (char === "\\") at++;
    else if (char === "`") {
      const run = runAt(text, at);
      at = (ticks.get(at) ?? at) + run.length - 1;
    } else if (char === "[") open.push(at);
    else if (char === "]" && open.length) found.set(open.pop(), at);
  }
  return found;
}

function codeText(text) {
  const line = text.replace(/\n/g, " ");
  const isPadded = line.startsWith(" ") && line.endsWith(" ") && line.trim();
  return isPadded ? line.slice(1, -1) : line;
}

function unescaped(text) {
  return text
    .replace(/\\([!-/:-@[-`{-~])/g, "$1")
    .replace(/&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|([a-zA-Z]{2,8}));/g, (...match) => entity(match));
}

function entity([whole, decimal, hexadecimal, name]) {
  if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : whole;
  const code = decimal ? parseInt(decimal) : parseInt(hexadecimal, 16);
  const isCharacter = code > 0 && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
  return isCharacter ? String.fromCodePoint(code) : "\ufffd";
}

/** An address in a text, without the punctuation of the sentence around it. */
function trimmedAddress(address) {
  let unopened = address.split(")").length - address.split("(").length;
  let end = address.length;
  for (; end > 0; end--) {
    const last = address[end - 1];
    if (last === ")" ? unopened-- <= 0 : !/[?!.,:;*_~'"`\]]/.test(last)) break;
  }
  return address.slice(0, end);
}

/** A link, or its text alone where it leads to what a page may not open. */
function link(content, target) {
  if (!SAFE_LINK.test(target)) return element("span", content);
  const made = element("a", content);
  made.href = target;
  made.title = target;
  made.target = "_blank";
  made.rel = "noreferrer noopener nofollow";
  return made;
}

function image(label, target) {
  return link(label || target, target);
}

// Emphasis: CommonMark's delimiters, https://spec.commonmark.org/0.31.2/#delimiter-run -------------

function delimiterAt(text, at, run) {
  const before = at ? [...text.slice(Math.max(0, at - 2), at)].at(-1) : " ";
  const after = at + run.length < text.length ? String.fromCodePoint(text.codePointAt(at + run.length)) : " ";
  const isSpace = (char) => /\s/.test(char);
  const isLeft = !isSpace(after) && (!PUNCTUATION.test(after) || isSpace(before) || PUNCTUATION.test(before));
  const isRight = !isSpace(before) && (!PUNCTUATION.test(before) || isSpace(after) || PUNCTUATION.test(after));
  const char = run[0];
  if (char === "~" && run.length > 2) return null;
  const isWordy = char === "_";
  const opens = isLeft && (!isWordy || !isRight || PUNCTUATION.test(before));
  const closes = isRight && (!isWordy || !isLeft || PUNCTUATION.test(after));
  return { char, count: run.length, length: run.length, opens, closes };
}

/** Whether these two belong together. */
function pairs(opener, closer) {
  if (!opener.opens || !opener.count || opener.char !== closer.char) return false;
  if (closer.char === "~") return opener.count === closer.count;
  if (!opener.closes && !closer.opens) return true;
  const sum = opener.length + closer.length;
  return sum % 3 !== 0 || (opener.length % 3 === 0 && closer.length % 3 === 0);
}

function emphasise(delimiters) {
  delimiters.forEach((closer, at) => {
    while (closer.closes && closer.count) {
      let i = at - 1;
      while (i >= 0 && !pairs(delimiters[i], closer)) i--;
      if (i < 0) return;
      const opener = delimiters[i];
      const isDouble = opener.count >= 2 && closer.count >= 2;
      const used = isDouble ? 2 : 1;
      const made = element(closer.char === "~" ? "del" : isDouble ? "strong" : "em");
      while (opener.node.nextSibling !== closer.node) made.append(opener.node.nextSibling);
      opener.node.after(made);
      for (const delimiter of [opener, closer]) {
        delimiter.count -= used;
        delimiter.node.data = delimiter.node.data.slice(used);
      }
      for (let between = i + 1; between < at; between++) delimiters[between].opens = false;
    }
  });
}
