"""The page, in a real browser, before a real server with a real model.

What leaves the origin, breaks the page's policy or fails in its code fails the test that did it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from server import page as files
from tests.family_templates import FAMILY_TEMPLATES
from tests.reciting import reciting_bundle
from tests.server.conftest import Served, serving

KEY = "a key that nobody guesses"
SMALL: Any = {"width": 360, "height": 640}
Opener = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: the system's, or else the one that `playwright install chromium` brings."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        # Its sandbox cannot be had by root, as which CI runs; the pages here are our own.
        started = playwright.chromium.launch(
            executable_path=path, chromium_sandbox=os.getuid() != 0
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """Opens the page of a server, with a browser's memory of its own for each test."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []

    def check(url: str, server: Served) -> None:
        if not url.startswith((f"{server.url}/", f"blob:{server.url}/")):
            wrong.append(f"left the origin: {url}")

    def complain(said: ConsoleMessage) -> None:
        """What breaks the policy is said here, too; a status such as 401 is the page's affair."""
        if said.type == "error" and not said.text.startswith("Failed to load resource"):
            wrong.append(said.text)

    def open_page(server: Served, **options: Any) -> Page:
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        context.set_default_timeout(30_000)
        context.on("request", lambda request: check(request.url, server))
        context.on("weberror", lambda error: wrong.append(f"error: {error.error}"))
        context.on("console", complain)
        page = context.new_page()
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def guarded(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a key, two models and room for one in its queue."""
    folder = tmp_path_factory.mktemp("guarded")
    other = folder / "other.litertlm"
    other.hardlink_to(smollm2_bundle)
    arguments = (smollm2_bundle, other, "--max-queue", "1", "--threads", "1")
    with serving(folder, *arguments, model=smollm2_bundle.stem, LITERT_LM_API_KEY=KEY) as server:
        yield server


def ready(page: Page, most_tokens: int = 24) -> Page:
    """The models are listed, and answers are short and always the same."""
    expect(page.locator("#model")).to_be_enabled()
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens of an answer").fill(str(most_tokens))
    page.keyboard.press("Escape")
    return page


def send(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answered(page: Page) -> str:
    """The text of the last answer, when it is complete."""
    expect(page.locator("#messages")).to_have_attribute("aria-busy", "false")
    text: str = page.locator("article.assistant .text").last.inner_text()
    return text


def with_chat(page: Page, *contents: str, thoughts: str = "") -> Page:
    """The page on a chat that this browser has kept: a question and an answer in turn."""
    messages = {}
    for i, content in enumerate(contents, 1):
        role = "user" if i % 2 else "assistant"
        more = {} if i % 2 else {"thoughts": thoughts, "model": "m", "finish": "stop"}
        parent = str(i - 1) if i > 1 else None
        messages[str(i)] = {"id": str(i), "parent": parent, "role": role, "content": content} | more
    chat = {
        "id": "kept", "title": "Kept", "model": "m", "created": 1, "changed": 1, "settings": {},
        "messages": messages, "leaf": str(len(contents)),
    }  # fmt: skip
    page.evaluate("text => localStorage.setItem('chat:kept', text)", json.dumps(chat))
    page.reload()
    page.get_by_role("link", name="Kept").click()
    return page


# Chatting --------------------------------------------------------------------------------------


def test_an_answer_comes_in_pieces_and_is_found_again(served: Served, opened: Opener) -> None:
    page = ready(opened(served), most_tokens=60)
    page.evaluate(
        """() => {
            window.seen = new Set();
            const text = () => document.querySelector("article.assistant .text")?.innerText;
            const note = () => seen.add(text());
            new MutationObserver(note).observe(messages, { childList: true, subtree: true });
        }"""
    )
    question = "Tell me about the capital of France."
    send(page, question)
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_have_value("")
    text = answered(page)
    assert "Paris" in text
    assert page.evaluate("seen.size") > 4
    expect(page.locator("#said")).to_contain_text("Paris")  # what is read aloud
    expect(page.locator(".facts")).to_contain_text("tokens/s")
    expect(page.locator("#context")).to_contain_text("of 1,280 tokens")
    assert 0 < page.locator("#filled").evaluate("meter => meter.value / meter.max") < 0.2

    page.reload()
    expect(page.locator("article.user .text")).to_have_text(question)
    assert answered(page) == text
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    page.get_by_role("link", name="Tell me about").click()
    assert answered(page) == text


def test_a_question_is_changed_and_an_answer_made_anew(served: Served, opened: Opener) -> None:
    page = ready(opened(served))
    send(page, "Say hello.")
    first = answered(page)
    page.get_by_role("button", name="Answer anew").click()
    expect(page.locator("article.assistant .count")).to_have_text("2 / 2")
    assert answered(page) == first  # it is greedy

    page.locator("article.user").hover()
    page.locator("article.user").get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Edit the message").fill("Name the capital of Italy.")
    page.keyboard.press("Enter")
    expect(page.locator("article.user .count")).to_have_text("2 / 2")
    assert "Rome" in answered(page)
    expect(page.locator("article")).to_have_count(2)

    page.locator("article.user").hover()
    page.locator("article.user").get_by_role("button", name="The version before").click()
    expect(page.locator("article.user .text")).to_have_text("Say hello.")
    assert answered(page) == first


def test_escape_stops(served: Served, opened: Opener) -> None:
    page = opened(served)
    expect(page.locator("#model")).to_be_enabled()
    send(page, "Write a very long story about a ship.")
    expect(page.locator("#rate")).to_contain_text("tokens/s")
    page.keyboard.press("Escape")
    text = answered(page)
    expect(page.locator(".end")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.reload()
    assert answered(page) == text
    assert "Paris" in served.chat("Name the capital of France.", max_tokens=16).text  # it is free


def test_an_answer_that_a_reload_interrupts_is_kept(served: Served, opened: Opener) -> None:
    page = opened(served)
    expect(page.locator("#model")).to_be_enabled()
    send(page, "Write a very long story about a ship.")
    expect(page.locator("article.assistant .text").last).to_have_text(re.compile(r".{20}"))
    page.reload()
    assert len(answered(page)) >= 20
    expect(page.locator(".end")).to_have_text("This answer was interrupted.")


def test_settings_are_sent(served: Served, opened: Opener) -> None:
    page = ready(opened(served))
    page.keyboard.press("Control+.")
    page.get_by_label("System prompt").fill("You answer every question with the word banana.")
    page.get_by_label("Most tokens of an answer").fill("3")
    for name in ("Top p", "Top k", "Seed"):
        page.get_by_label(name).fill("1")
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/chat/completions") as asked:
        send(page, "Hello?")
    body = asked.value.post_data_json
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (body["temperature"], body["top_p"], body["top_k"], body["seed"]) == (0, 1, 1, 1)
    answered(page)
    expect(page.locator(".end")).to_contain_text("cut off")
    expect(page.locator(".facts")).to_contain_text("3 tokens ")


def test_chats_are_renamed_exported_deleted_and_had_back(
    served: Served, opened: Opener, tmp_path: Path
) -> None:
    page = with_chat(opened(served), "What is `x`?", "A *letter*.", thoughts="Hm.")
    menu = page.get_by_role("button", name="This chat")
    menu.click()
    page.get_by_role("menuitem", name="Rename").click()
    page.get_by_role("textbox", name="Name of the chat").fill("Letters: a/b")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Letters: a/b")).to_be_visible()

    exported = {}
    for name in ("Markdown", "JSON"):
        menu.click()
        with page.expect_download() as download:
            page.get_by_role("menuitem", name=f"Export as {name}").click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        exported[path.name] = path.read_text(encoding="utf-8")
    assert list(exported) == ["Letters-ab.md", "Letters-ab.json"]
    folded = "<details><summary>Thoughts</summary>\n\nHm.\n\n</details>"
    assert exported["Letters-ab.md"] == (
        f"# Letters: a/b\n\n## You\n\nWhat is `x`?\n\n## m\n\n{folded}\n\nA *letter*.\n"
    )
    assert json.loads(exported["Letters-ab.json"])["messages"]["2"]["content"] == "A *letter*."

    menu.click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(page.get_by_role("link", name="Letters")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("article")).to_have_count(2)
    page.reload()
    expect(page.get_by_role("link", name="Letters: a/b")).to_be_visible()


# A server that does not answer -------------------------------------------------------------------


def test_a_key_is_asked_for_until_it_is_right(guarded: Served, opened: Opener) -> None:
    page = opened(guarded)
    field = page.get_by_label("API key")
    field.fill("a wrong one")
    page.keyboard.press("Enter")
    expect(page.get_by_text("That key was not the right one.")).to_be_visible()
    field.fill(KEY)
    page.keyboard.press("Enter")
    ready(page)
    send(page, "Name the capital of France.")
    assert "Paris" in answered(page)
    assert KEY not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    expect(page.locator("#model")).to_be_enabled()  # this tab knows it
    other = opened(guarded)
    expect(other.get_by_label("API key")).to_be_visible()


def with_key(page: Page) -> Page:
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    return ready(page)


def test_another_model_is_chosen(guarded: Served, opened: Opener) -> None:
    page = with_key(opened(guarded))
    page.get_by_role("combobox", name="Model").select_option("other")
    send(page, "Name the capital of France.")
    assert "Paris" in answered(page)
    expect(page.locator("article.assistant")).to_have_attribute("aria-label", "other")
    page.reload()
    expect(page.get_by_role("combobox", name="Model")).to_have_value("other")


def test_a_full_queue_is_waited_for(guarded: Served, opened: Opener) -> None:
    page = with_key(opened(guarded))
    body = {
        "model": guarded.model, "stream": True, "temperature": 0,
        "messages": [{"role": "user", "content": "Write a very long story about a ship."}],
    }  # fmt: skip
    leave = threading.Event()

    def keep_busy() -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        url = f"{guarded.url}/v1/chat/completions"
        while not leave.is_set():
            with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as response:
                for _ in response.iter_lines():
                    if leave.is_set():
                        return
            leave.wait(0.02)

    # One is answered and one waits; the others ask on, so that no place stays free for the page.
    others = [threading.Thread(target=keep_busy) for _ in range(4)]
    for thread in others:
        thread.start()
    metrics = {"Authorization": f"Bearer {KEY}"}
    try:
        told = ""
        for _ in range(600):
            told = httpx.get(f"{guarded.url}/metrics", headers=metrics).text
            if "waiting 1" in told:
                break
            page.wait_for_timeout(50)
        assert "waiting 1" in told
        send(page, "Name the capital of France.")
        expect(page.locator(".end")).to_contain_text("Asking again in")
    finally:
        leave.set()
    assert "Paris" in answered(page)
    for thread in others:
        thread.join()


def test_a_server_that_is_gone_is_waited_for(
    smollm2_bundle: Path, opened: Opener, tmp_path: Path
) -> None:
    with serving(tmp_path, smollm2_bundle) as server:
        page = ready(opened(server))
    send(page, "Name the capital of France.")
    expect(page.locator(".end")).to_have_text("The server cannot be reached.")
    expect(page.locator("#banner")).to_contain_text("asked again until it answers")
    with serving(tmp_path, smollm2_bundle, port=server.port):
        expect(page.locator("#banner")).to_be_hidden()
        page.get_by_role("button", name="Answer anew").click()
        assert "Paris" in answered(page)
        expect(page.locator(".count")).to_have_count(0)  # what failed is no version


# The files ----------------------------------------------------------------------------------------


def test_files_need_no_key_and_are_sent_once(guarded: Served) -> None:
    assert httpx.get(f"{guarded.url}/v1/models").status_code == 401
    for path in files.PATHS:
        first = httpx.get(guarded.url + path)
        assert first.status_code == 200
        assert first.headers["content-security-policy"].startswith("default-src 'none'; script-src")
        assert first.headers["cache-control"] == "no-cache"
        again = httpx.get(guarded.url + path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(guarded.url).headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "path", ["nothing.js", "../page.py", "%2e%2e/page.py", "vendor", "//etc/passwd"]
)
def test_nothing_else_is_a_file(served: Served, path: str) -> None:
    assert httpx.get(httpx.URL(served.url, raw_path=f"/page/{path}".encode())).status_code == 404


# Use -------------------------------------------------------------------------------------------


def test_a_small_screen(served: Served, opened: Opener) -> None:
    page = opened(served, viewport=SMALL, has_touch=True)
    chats = page.get_by_role("navigation", name="Chats")
    expect(chats).to_be_hidden()
    ready(page)
    send(page, "Print " + "long" * 40)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") == SMALL["width"]
    for name in ("Send", "Settings", "Show the chats"):
        box = page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= SMALL["width"]
        assert box["y"] + box["height"] <= SMALL["height"]
    page.get_by_role("button", name="Show the chats").click()
    expect(chats).to_be_visible()
    page.get_by_role("link", name="Print").click()
    expect(chats).to_be_hidden()


def test_wide_content_scrolls_in_its_place(served: Served, opened: Opener) -> None:
    table = f"| a | b |\n|---|---|\n| {'wide ' * 30}| {'x' * 90} |"
    code = f"```python\nprint('{'y' * 90}')\n```"
    page = opened(served)
    with_chat(page, "Show.", f"{table}\n\n{code}\n\n{'z' * 200}")
    page.set_viewport_size(SMALL)
    assert page.evaluate("document.documentElement.scrollWidth") == SMALL["width"]
    for selector in (".table", "pre"):
        assert page.locator(selector).evaluate("e => e.scrollWidth > e.clientWidth")
    assert page.locator("#scroll").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_keys(served: Served, opened: Opener) -> None:
    page = opened(served)
    prompt = page.get_by_role("textbox", name="Message", exact=True)
    expect(prompt).to_be_focused()
    prompt.press_sequentially("one")
    page.keyboard.press("Shift+Enter")
    prompt.press_sequentially("two?")
    expect(prompt).to_have_value("one\ntwo?")
    prompt.blur()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(prompt).to_be_focused()
    page.keyboard.press("Control+b")
    expect(page.get_by_role("navigation", name="Chats")).to_be_hidden()
    with_chat(page, "Why?", "So.")
    page.keyboard.press("Control+Shift+O")
    expect(page.locator("article")).to_have_count(0)


def test_light_and_dark(served: Served, opened: Opener) -> None:
    page = opened(served, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert light == "rgb(255, 255, 255)" != dark
    page.get_by_role("button", name="Colours: System colours").click()
    page.get_by_role("button", name="Colours: Light").click()
    assert page.evaluate(ground) == dark
    page.reload()
    assert page.evaluate(ground) == dark


def test_every_control_has_a_name(served: Served, opened: Opener) -> None:
    page = with_chat(opened(served), "Why?", "```\nso\n```")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, dialog, [role]")]
            .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") ||
                           e.labels?.length || e.innerText?.trim() || e.textContent.trim() ||
                           e.matches("[role=alert], [role=status]")))
            .map(e => e.outerHTML)"""
    )
    assert unnamed == []


# Markdown --------------------------------------------------------------------------------------


def code(language: str, text: str) -> str:
    head = f'<div class="code-head"><span>{language}</span><button>Copy</button></div>'
    return f'<div class="code">{head}<pre><code>{text}</code></pre></div>'


MARKDOWN = {
    "a *b* **c** ***d*** _e_ ~~f~~ `g*h*`": (
        "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <em>e</em> <del>f</del> "
        "<code>g*h*</code></p>"
    ),
    "snake_case_name 2*3*4 \\*not\\* * alone": (
        "<p>snake_case_name 2<em>3</em>4 *not* * alone</p>"
    ),
    "**bold:** `` a`b `` &amp; &#233; &nope;": (
        "<p><strong>bold:</strong> <code>a`b</code> &amp; é &amp;nope;</p>"
    ),
    "# One\nTwo\n===\n### Three ###": "<h1>One</h1><h1>Two</h1><h3>Three</h3>",
    "a\nb  \nc<br>d\n\n---\ne": "<p>a\nb<br>c<br>d</p><hr><p>e</p>",
    "- a\n  - b\n    1. c\n- d": (
        "<ul><li>a<ul><li>b<ol><li>c</li></ol></li></ul></li><li>d</li></ul>"
    ),
    "3. a\n\n   b\n4. c": '<ol start="3"><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>',
    "1. x:\n   ```py\n   if a:\n       b\n   ```\n2. y": (
        f"<ol><li>x:{code('py', 'if a:' + chr(10) + '    b')}</li><li>y</li></ol>"
    ),
    "- [x] a\n- [ ] b": (
        '<ul><li><input type="checkbox"> a</li><li><input type="checkbox"> b</li></ul>'
    ),
    "> a\nb\n> - c": "<blockquote><p>a\nb</p><ul><li>c</li></ul></blockquote>",
    "| a | b |\n|:--|--:|\n| 1 `x\\|y` | *2* |\n| 3 |": (
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>"
        "<tr><td>1 <code>x|y</code></td><td><em>2</em></td></tr><tr><td>3</td><td></td></tr>"
        "</tbody></table></div>"
    ),
    "```make\nall:\n\tcc *.c\n": code("make", "all:\n\tcc *.c\n"),
    "```\n~~~\n<b>\n```\nx": f"{code('', '~~~' + chr(10) + '&lt;b&gt;')}<p>x</p>",
    "    four": code("", "four"),
    "[a *b*](https://x.org/?q=(1) 'title') <https://y.org>": (
        '<p><a href="https://x.org/?q=(1)">a <em>b</em></a> '
        '<a href="https://y.org">https://y.org</a></p>'
    ),
    "see https://x.org/a_b_c. (http://y.org/(z))": (
        '<p>see <a href="https://x.org/a_b_c">https://x.org/a_b_c</a>. '
        '(<a href="http://y.org/(z)">http://y.org/(z)</a>)</p>'
    ),
    "![a cat](https://x.org/cat.png)": '<p><a href="https://x.org/cat.png">a cat</a></p>',
    "[no](javascript:alert(1)) [no](data:text/html,x) [no](/v1/models)": (
        "<p><span>no</span> <span>no</span> <span>no</span></p>"
    ),
    "<b>no</b> <script>alert(1)</script>": (
        "<p>&lt;b&gt;no&lt;/b&gt; &lt;script&gt;alert(1)&lt;/script&gt;</p>"
    ),
}


def test_markdown(served: Served, opened: Opener) -> None:
    """Each as CommonMark and GitHub have it; attributes other than these are left aside."""
    page = opened(served)
    made = page.evaluate(
        """async (texts) => {
            const { render } = await import("/page/markdown.js");
            return texts.map((text) => {
                const container = document.createElement("div");
                render(container, text);
                for (const element of container.querySelectorAll("*")) {
                    const isButton = element.localName === "button";
                    const keep = isButton ? [] : ["href", "type", "start"];
                    if (element.closest(".code") && !isButton) keep.push("class");
                    for (const name of element.getAttributeNames()) {
                        if (!keep.includes(name)) element.removeAttribute(name);
                    }
                }
                return container.innerHTML;
            });
        }""",
        list(MARKDOWN),
    )
    assert dict(zip(MARKDOWN, made, strict=True)) == MARKDOWN


def test_what_has_come_stays_in_place_while_more_comes(served: Served, opened: Opener) -> None:
    """A reader can select a text above, and code above is not coloured again."""
    page = opened(served)
    kept = page.evaluate(
        """async () => {
            const { render } = await import("/page/markdown.js");
            const container = document.createElement("div");
            const text = "# a\\n\\n```py\\nb\\n```\\n\\n- c\\n\\nd";
            render(container, text);
            const before = [...container.children];
            render(container, text + " e\\n\\nf");
            return [...container.children].map((element, i) => element === before[i]);
        }"""
    )
    assert kept == [True, True, True, False, False]


def test_code_has_colours(served: Served, opened: Opener) -> None:
    page = with_chat(opened(served), "Code?", "```python\ndef f(): return '<b>'\n```")
    expect(page.locator(".hl-keyword").first).to_have_text("def")
    expect(page.locator(".hl-string")).to_have_text("'<b>'")


def test_every_vendored_language_has_colours(served: Served, opened: Opener) -> None:
    folder = Path(files.__file__).with_name("page") / "vendor/highlight.js"
    names = {path.name.removesuffix(".min.js") for path in folder.glob("*.min.js")} - {"core"}
    text = "\n".join(f'```{name}\n/* 1 */ "a" -- # <b>\n+1: 2\n```' for name in sorted(names))
    page = with_chat(opened(served), "Code?", text)
    expect(page.locator("pre:has([class^=hl-])")).to_have_count(len(names))


EVIL = r"""
<script>window.pwned = 1</script> <img src="http://evil.example/x" onerror="window.pwned = 2">
<iframe srcdoc="<script>parent.pwned = 3</script>"></iframe> <style>@import "//evil.example"</style>
![x](http://evil.example/x.png) ![x](data:image/svg+xml,<svg/onload=alert(1)>)

[a](javascript:window.pwned=5) [b](  jAvAsCrIpT&#58;window.pwned=6) [c](data:text/html,<script>)
[d](vbscript:x) [e](java&#9;script:x) <javascript:window.pwned=7> [f](https://ok.example/"onclick="x)
[g](&#106;avascript:window.pwned=8) [h](//evil.example) [i](\\javascript:x)

```"><script>window.pwned = 9</script>
</code></pre><script>window.pwned = 10</script>
```

```html
<svg onload="window.pwned = 11"><script>window.pwned = 12</script>
```
| <script>window.pwned = 13</script> | a |
|---|---|
| <img src="http://evil.example/y"> | [x](javascript:x) |
"""


def test_a_hostile_model_is_inert_and_its_thoughts_are_folded(
    opened: Opener, tmp_path: Path
) -> None:
    marks = ["<|channel>", "<channel|>", "<|turn>", "<turn|>"]
    said = ["<|channel>", "thought\n", f"*Hm.*\n{EVIL}", "<channel|>", EVIL[:200], EVIL[200:]]
    source = FAMILY_TEMPLATES["Gemma 4 E2B and E4B"]
    bundle = reciting_bundle(tmp_path / "evil", said, source, "gemma4_text-keys-are-values", marks)
    with serving(tmp_path, bundle) as server:
        page = opened(server)
        expect(page.locator("#model")).to_be_enabled()
        send(page, EVIL)
        answered(page)
        assert_inert(page)
        page.reload()
        assert_inert(page)


def assert_inert(page: Page) -> None:
    thought = page.locator(".thoughts em")
    expect(thought).to_be_hidden()
    page.get_by_text("Thoughts", exact=True).click()
    expect(thought).to_be_visible()
    expect(page.locator(".thoughts .hl-tag").first).to_be_visible()
    texts = page.locator("#messages")
    expect(texts.get_by_text("window.pwned = 13")).to_have_count(3)  # asked, thought and answered
    for link in texts.locator("a").all():
        assert (link.get_attribute("href") or "").startswith(("http://evil.example", "https://ok."))
        assert {"noreferrer", "noopener"} <= set((link.get_attribute("rel") or "").split())
    assert texts.locator("script, img, iframe, style, object").count() == 0
    attributes = page.evaluate(
        "[...document.querySelectorAll('#messages *')].flatMap(e => e.getAttributeNames())"
    )
    assert {name for name in attributes if name.startswith(("on", "style", "src"))} == set()
    texts.locator("span", has_text="a").first.click()
    assert page.evaluate("window.pwned") is None


def test_the_browser_takes_no_html_from_the_page(served: Served, browser: Browser) -> None:
    """The policy holds the code to its promise."""
    page = browser.new_page()
    page.goto(served.url)
    html = (
        "() => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name } }"
    )
    assert page.evaluate(html) == "TypeError"
    outside = "() => fetch('http://localhost:9/').catch(error => error.name)"
    with page.expect_console_message(lambda said: "connect-src" in said.text):
        assert page.evaluate(outside) == "TypeError"
    page.close()


HOSTILE = {
    "stars": "*a " * 8000, "brackets": "[" * 30000, "links": "[a](" * 8000, "quotes": "> " * 5000,
    "lists": ("- " * 14 + "a\n") * 500, "lazy": "> a\nb\n" * 800,
    "address": "https://a" + ")" * 20000,
    "ticks": "".join("`" * (i % 200 + 1) + "a" for i in range(2000)), "cells": "|" * 20000,
    "strong": "**a " * 300 + "b** " * 300, "escapes": "\\" * 50000, "entities": "&" * 50000,
}  # fmt: skip


def test_no_text_takes_long(served: Served, opened: Opener) -> None:
    page = opened(served)
    slow = page.evaluate(
        """async (texts) => {
            const { render } = await import("/page/markdown.js");
            return Object.entries(texts).filter(([, text]) => {
                const begin = performance.now();
                render(document.createElement("div"), text);
                return performance.now() - begin > 1500;
            }).map(([name]) => name);
        }""",
        HOSTILE,
    )
    assert slow == []
