"""The pages in a real browser: by mouse, by keyboard alone, and as wide as a phone."""

import os
import shutil
import threading
import time

import pytest
import uvicorn
import yaml

from gptoss_tune.shipped import shipped
from gptoss_tune.ui.access import Access
from gptoss_tune.ui.server.app import Services, application

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]
PATIENCE_MS = 90_000  # of a machine that does other things too


@pytest.fixture(scope="module")
def place(tmp_path_factory, two_layer_base, write):
    """A current folder with runs, data and a model, and a server for it."""
    from playwright.sync_api import sync_playwright

    here, before = tmp_path_factory.mktemp("place"), os.getcwd()
    os.chdir(here)
    shutil.copytree(shipped("data"), here / "data")
    write.run(here / "runs" / "done")
    write.hold(write.run(here / "runs" / "going", status="running", done=30))
    shutil.copytree(two_layer_base, here / "runs" / "model")
    services = Services(here / "runs", Access(0))
    config = uvicorn.Config(application(services), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Place(here, address, services, browser, write.lines)
        browser.close()
    server.should_exit = True
    thread.join(10)
    for job in services.close():
        job.process.kill()
    os.chdir(before)


class Place:
    def __init__(self, here, address, services, browser, write_lines):
        self.here, self.address, self.services = here, address, services
        self.browser, self.write_lines = browser, write_lines


@pytest.fixture
def page(place):
    """A page that was let in; it fails the test when its script or policy does."""
    context = place.browser.new_context(viewport={"width": 1180, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Policy" in said.text else None)
    page.goto(f"{place.address}/?token={place.services.access.token}")
    page.wait_for_url(f"{place.address}/")
    yield page
    context.close()
    assert not wrong


def test_a_run_is_seen_to_move(place, page):
    page.click("text=going")
    page.wait_for_selector("#words:has-text('step 30 of 120')")
    summary = page.locator("[data-part=loss] summary").first
    summary.click()  # what is folded open stays open
    place.write_lines(place.here / "runs" / "going", 31, 44, 120)
    page.wait_for_selector("#words:has-text('step 44 of 120')")
    assert page.locator("[data-part=loss] details").first.evaluate("one => one.open")
    assert page.locator("[data-part=loss] svg").count() >= 2
    page.click("#stop")
    assert page.locator("#ask-stop").is_visible()
    page.keyboard.press("Escape")  # a question that is not answered stops nothing
    assert not page.locator("#ask-stop").is_visible()


def test_the_report_opens_without_scripts(place, page):
    page.goto(f"{place.address}/run?run=done")
    with page.context.expect_page() as opened:
        page.click("text=Report")
    assert "run report" in opened.value.title()


def test_a_recipe_by_keyboard_alone(place, page):
    page.goto(f"{place.address}/recipe?file=")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.wait_for_selector("#verdict:has-text('mistakes')")
    wanted = {
        "model.name_or_path": "openai/gpt-oss-20b",
        "data.train": "data/tiny/train.jsonl",
        "train.output_dir": "runs/by-keyboard",
        "train.max_steps": "7",
    }
    visited = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.name || ''")
        outlined = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outlined != "none"
        if name in wanted and name not in visited:
            page.keyboard.type(wanted[name])
            visited.add(name)
        if len(visited) == len(wanted):
            break
    assert visited == set(wanted)
    page.wait_for_selector("#verdict:has-text('sound')")
    page.wait_for_selector("#plan:has-text('Fits')")
    page.focus("#path")
    page.keyboard.press("Control+A")
    page.keyboard.type("mine.yaml")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#saved:has-text('mine.yaml')")
    saved = yaml.safe_load((place.here / "mine.yaml").read_text())
    assert saved["train"] == {"output_dir": "runs/by-keyboard", "max_steps": 7}
    page.wait_for_selector("#train:enabled")
    assert page.inner_text("#train-command") == "gptoss-tune train mine.yaml"
    page.keyboard.press("Enter")  # once more: now it asks
    page.wait_for_selector("#ask-overwrite:visible")
    page.keyboard.press("Enter")  # the safe answer has the focus
    assert not page.locator("#ask-overwrite").is_visible()
    assert not (place.here / "runs" / "by-keyboard").exists()


def test_mistakes_come_and_go_beside_their_field(page):
    page.goto(page.url + "recipe")
    page.wait_for_selector("#verdict:has-text('sound')")
    page.fill("#find", "lora rank")
    rank = page.locator("[data-field='lora.rank']")
    rank.locator("input").fill("0")
    rank.locator(".wrong:visible").wait_for()
    assert "from 1 to 1024" in rank.locator(".wrong").inner_text()
    assert rank.locator("input").get_attribute("aria-invalid") == "true"
    assert page.locator("#train").is_disabled() and page.locator("#save").is_disabled()
    rank.locator("input").fill("64")
    page.wait_for_selector("#verdict:has-text('sound')")
    assert "rank: 64" in page.inner_text("#yaml")
    page.fill("#find", "")
    page.select_option("[id='method.name']", "dpo")
    page.wait_for_selector("[data-field='method.beta-dpo']:visible")
    assert not page.locator("[data-field='method.beta-kto']").is_visible()


def test_preview_and_train_are_started_by_a_click(place, page):
    (place.here / "tiny.yaml").write_text(
        f"model: {{name_or_path: {place.here / 'runs' / 'model'}, dtype: float32}}\n"
        "data: {train: data/tiny/train.jsonl, max_length: 512}\n"
        "train: {output_dir: runs/tiny, max_steps: 2}\n"
    )
    page.goto(f"{place.address}/recipe?file=tiny.yaml")
    page.wait_for_selector("#verdict:has-text('sound')")
    assert place.services.jobs.latest("preview") is None
    page.click("#preview")
    with page.context.expect_page() as opened:
        page.click("text=Open the preview")
    assert "data preview" in opened.value.title()
    assert opened.value.locator(".tokens").count() > 0
    page.click("#train")
    page.wait_for_selector("#job-train pre:not(:empty)")
    page.locator("#job-train button:has-text('Stop')").click()
    page.wait_for_selector("#job-train [role=status]")
    job = place.services.jobs.latest("train")
    assert list(job.words) == ["train", "tiny.yaml"] and job.code is not None


def test_a_chat(place, page):
    page.goto(f"{place.address}/chat")
    page.click("#load")
    page.wait_for_selector("#state:has-text('ready')")
    page.click("text=Settings of the conversation")
    page.fill("#tokens", "24")
    page.fill("#text", "<b>bold</b>?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.user")
    assert page.locator(".turn.user .text").inner_text() == "<b>bold</b>?"
    page.wait_for_selector(".turn.assistant")
    page.wait_for_selector("#state:has-text('ready')")
    page.click("#new")
    page.fill("#tokens", "60000")
    page.fill("#text", "Go on for ever")
    page.keyboard.press("Enter")
    page.wait_for_selector("#state:has-text('answering')")
    page.click("#stop")  # a model that was never trained says nothing readable before its end
    page.wait_for_selector("#state:has-text('ready')")
    assert "stopped" in page.inner_text("#talk")
    page.click("#unload")
    page.wait_for_selector("#unload", state="hidden")
    assert place.services.chat._session is None


@pytest.mark.parametrize("path", ["/", "/run?run=done", "/run?run=going", "/recipe", "/chat"])
def test_a_phone_scrolls_one_way(place, page, path):
    page.set_viewport_size({"width": 360, "height": 720})
    page.goto(place.address + path)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    unnamed = page.evaluate(
        "[...document.querySelectorAll('main input, main select, main textarea, main button')]"
        ".filter(one => !(one.labels?.length || one.textContent.trim() || one.ariaLabel))"
        ".map(one => one.outerHTML)"
    )
    assert unnamed == []


def test_light_and_dark_have_readable_text(place):
    for scheme in ("light", "dark"):
        context = place.browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(f"{place.address}/?token={place.services.access.token}")
        page.wait_for_url(f"{place.address}/")
        dark = page.evaluate("getComputedStyle(document.body).color")
        assert (int(dark.removeprefix("rgb(").split(",")[0]) > 128) == (scheme == "dark")
        context.close()
