// Colours for code, by highlight.js (see vendor/). It and its languages are fetched when code of
// that language first comes. Of what it finds, the tree is taken and not the HTML.

const FOLDER = "./vendor/highlight.js";
const MOST_LENGTH = 50_000; // longer code is shown without colours: they would take too long
const ALIASES = {
  "c#": "csharp", cc: "cpp", "c++": "cpp", console: "bash", cs: "csharp", h: "c", hpp: "cpp",
  html: "xml", js: "javascript", jsx: "javascript", kt: "kotlin", mjs: "javascript", patch: "diff",
  py: "python", python3: "python", rs: "rust", sh: "bash", shell: "bash", svg: "xml",
  ts: "typescript", tsx: "typescript", yml: "yaml", zsh: "bash", golang: "go", jsonc: "json",
};
const LANGUAGES = new Set([
  "bash", "c", "cpp", "csharp", "css", "diff", "go", "java", "javascript", "json", "kotlin",
  "python", "rust", "sql", "swift", "typescript", "xml", "yaml",
]);

let core = null;
const loading = new Map();

/** Colour the text of a `code` element: at once where the language is there, or else soon. */
export function paint(code, language, text) {
  const name = ALIASES[language] ?? language;
  if (!LANGUAGES.has(name) || text.length > MOST_LENGTH) return;
  if (core?.getLanguage(name)) fill(code, name, text);
  else load(name).then(() => code.isConnected && fill(code, name, text), () => {});
}

function load(name) {
  if (!loading.has(name)) {
    const wanted = [`${FOLDER}/core.min.js`, `${FOLDER}/${name}.min.js`];
    const loaded = Promise.all(wanted.map((path) => import(path))).then(([engine, grammar]) => {
      core = engine.default;
      core.registerLanguage(name, grammar.default);
    });
    loaded.catch(() => loading.delete(name)); // the server is gone: try again at the next code
    loading.set(name, loaded);
  }
  return loading.get(name);
}

function fill(code, language, text) {
  const { _emitter: found } = core.highlight(text, { language, ignoreIllegals: true });
  code.replaceChildren(...nodes(found.rootNode.children));
}

function nodes(children) {
  return children.map((child) => {
    if (typeof child === "string") return document.createTextNode(child);
    const made = document.createElement("span");
    if (child.scope) made.className = `hl-${child.scope.split(/[.:]/)[0]}`;
    made.append(...nodes(child.children));
    return made;
  });
}
