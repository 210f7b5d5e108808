"""The page: its files and headers, and what people do with it in a real browser."""

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from calling import application, calling, listening, serving_engine
from PIL import Image
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect
from running import CAT

from service.page import ASSETS

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
pytestmark = pytest.mark.asyncio(loop_scope="module")  # one browser for all: to start one takes longer than a test


def png(red: int) -> bytes:
    """A picture of the class ``red``, as the device takes it."""
    file = BytesIO()
    Image.new("RGB", (80, 40), (red, 0, 0)).save(file, "PNG")
    return file.getvalue()


def upload(name: str, content: bytes, kind: str = "image/png") -> Any:
    return {"name": name, "mimeType": kind, "buffer": content}


async def test_every_file_of_the_page_is_served_with_its_kind_and_asks_nobody_else(tmp_path: Path) -> None:
    async with calling(application(tmp_path / "engine.sock"), ready=False) as client:
        for asset in ASSETS.iterdir():
            if asset.name.startswith("__"):
                continue
            answer = await client.get("/" if asset.name == "index.html" else f"/{asset.name}")
            assert answer.status_code == 200
            assert answer.content == asset.read_bytes()
            assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
            assert "https://" not in answer.text
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await client.get("/")).headers["content-type"] == "text/html; charset=utf-8"
        assert (await client.get("/page.js")).headers["content-type"] == "text/javascript; charset=utf-8"
        assert (await client.get("/page.js")).headers["cache-control"] == "no-cache"
        sample = await client.get("/samples/cat.jpg")
        assert sample.content == CAT.read_bytes()
        assert sample.headers["cache-control"] == "max-age=86400"
        assert (await client.get("/__init__.py")).status_code == 404


async def test_the_page_can_be_left_out(tmp_path: Path) -> None:
    async with calling(application(tmp_path / "engine.sock", page=False), ready=False) as client:
        for path in ("/", "/page.js", "/samples/cat.jpg"):
            assert (await client.get(path)).status_code == 404


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    options = [*OPTIONS, *CAMERA, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(browser: Browser, *, refused: int | None = None, **settings: Any) -> AsyncIterator[Page]:
    """The page, ready, on a phone's width or a desktop's; nothing may go wrong in it but that it is refused so."""
    viewport: Any = {"width": settings.pop("width", 1100), "height": 800}
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    async with serving_engine() as engine, listening(application(engine, **settings)) as port:
        context = await browser.new_context(viewport=viewport)
        page = await context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(f"http://127.0.0.1:{port}/")
        yield page
        await context.close()
    assert bool(complaints) == bool(refused), complaints
    assert all(f"server responded with a status of {refused}" in complaint for complaint in complaints), complaints


@in_browser
async def test_a_picture_that_is_chosen_is_named(browser: Browser) -> None:
    async with opened(browser) as page:
        await expect(page.locator("#health")).to_have_text("embedded on cpu")
        await page.set_input_files("#files", upload("seven.png", png(7)))
        labels = page.locator(".labels button")
        await expect(labels).to_have_count(5)
        await expect(labels.first).to_contain_text("class 7")
        await expect(labels.first).to_contain_text("90 %")
        await expect(page.locator("h3")).to_have_text("seven.png")
        await expect(page.locator(".times")).to_contain_text("device")
        await page.click("summary")
        await expect(page.locator("code")).to_contain_text("curl --data-binary '@seven.png'")
        await page.click("text=Python")
        await expect(page.locator("code")).to_contain_text("httpx.post")
        await expect(page.locator("#heard")).to_have_text("seven.png: class 7 90 %")


@in_browser
@pytest.mark.parametrize(("language", "command"), [("curl", ["sh", "-c"]), ("Python", [sys.executable, "-c"])])
async def test_ready_made_requests_work(browser: Browser, tmp_path: Path, language: str, command: list[str]) -> None:
    if language == "curl" and not shutil.which("curl"):
        pytest.skip("there is no curl")
    name = 'it\'s "a" $HOME picture.png'
    (tmp_path / name).write_bytes(png(7))
    async with opened(browser, api_keys="s3cret") as page:
        await page.evaluate("sessionStorage.setItem('volo-api-key', 's3cret')")
        await page.set_input_files("#files", upload(name, png(7)))
        await page.click("summary")
        await page.get_by_role("tab", name=language).click()
        code = await page.get_by_role("tabpanel").inner_text()
        assert "s3cret" not in code
        environment = {**os.environ, "VOLO_API_KEY": "s3cret"}
        process = await asyncio.create_subprocess_exec(*command, code, cwd=tmp_path, env=environment, stdout=PIPE)
        said, _ = await process.communicate()
        assert process.returncode == 0
        assert b"class 7" in said


@in_browser
async def test_a_picture_can_be_pasted_and_dropped(browser: Browser) -> None:
    async with opened(browser) as page:
        for kind, count in (("paste", 1), ("drop", 2)):
            await page.evaluate(
                """([kind, bytes]) => {
                    const data = new DataTransfer();
                    data.items.add(new File([new Uint8Array(bytes)], "it.png", {type: "image/png"}));
                    const event = kind === "paste"
                        ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
                        : new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
                    document.body.dispatchEvent(event);
                }""",
                [kind, list(png(9))],
            )
            await expect(page.locator(".labels")).to_have_count(count)
            await expect(page.locator(".labels button:has-text('class 9')")).to_have_count(count)


@in_browser
async def test_several_pictures_become_a_grid_and_a_bad_one_says_what_is_wrong(browser: Browser) -> None:
    async with opened(browser, refused=415) as page:
        good = [upload(f"{red}.png", png(red)) for red in (1, 2, 3)]
        await page.set_input_files("#files", [*good, upload("bad.png", b"no picture")])
        await expect(page.locator("#count")).to_have_text("4 of 4 pictures")
        await expect(page.locator("article")).to_have_count(4)
        assert await page.locator("#bar").evaluate("bar => bar.value === bar.max")
        for place in range(3):
            await expect(page.locator("article").nth(place).locator("b").first).to_have_text(f"class {place + 1}")
        await expect(page.get_by_role("alert")).to_contain_text("The data is not a picture")
        lefts = [await page.locator("article").nth(place).evaluate("card => card.offsetLeft") for place in range(3)]
        assert lefts == sorted(set(lefts))
        await page.click("#clear")
        await expect(page.locator("article")).to_have_count(0)


@in_browser
async def test_pointing_at_a_label_shows_where_it_is(browser: Browser) -> None:
    async with opened(browser) as page:
        await page.set_input_files("#files", upload("six.png", png(6)))
        label = page.locator(".labels button").first
        await expect(label).to_have_attribute("title", "Clearest in row 2, column 3 of 4")
        await label.hover()
        await expect(page.locator("figure")).to_have_class("shown")
        await expect(label).to_have_attribute("aria-current", "true")
        # the sixth of 4 x 4 patches of the middle square of a picture twice as wide as high
        place = await page.evaluate(
            """() => {
                const image = document.querySelector("figure img").getBoundingClientRect();
                const patch = document.querySelector(".patch").getBoundingClientRect();
                return [(patch.left - image.left) / image.width, (patch.top - image.top) / image.height,
                        (patch.right - image.left) / image.width, (patch.bottom - image.top) / image.height];
            }"""
        )
        assert place == pytest.approx([0.5, 0.25, 0.625, 0.5], abs=0.02)
        drawn = "canvas => canvas.getContext('2d').getImageData(160, 96, 1, 1).data[3]"
        assert await page.locator("article canvas").evaluate(drawn) > 100
        await page.mouse.move(0, 0)
        await expect(page.locator("figure")).not_to_have_class("shown")


@in_browser
async def test_it_can_be_used_with_the_keyboard_alone(browser: Browser) -> None:
    async with opened(browser) as page:
        await expect(page.locator("#samples img").last).to_be_visible()
        for _ in range(10):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.querySelector('img')?.alt") == "Try the cat":
                break
        await page.keyboard.press("Enter")
        await expect(page.locator(".labels button")).to_have_count(5)
        await expect(page.locator("article")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.locator(".labels button").first).to_be_focused()
        await expect(page.locator("figure")).to_have_class("shown")


@in_browser
async def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser) -> None:
    async with opened(browser, width=360) as page:
        await page.set_input_files("#files", upload(f"{'long name ' * 12}.png", png(7)))
        await expect(page.locator(".labels button")).to_have_count(5)
        await page.click("summary")
        assert await page.evaluate("document.documentElement.scrollWidth") == 360


@in_browser
async def test_a_picture_can_be_taken_with_the_camera(browser: Browser) -> None:
    async with opened(browser) as page:
        await page.click("#take")
        await expect(page.locator("video")).to_have_js_property("readyState", 4)
        await page.click("#shoot")
        await expect(page.locator("h3")).to_have_text("camera.jpg")
        await expect(page.locator(".labels button")).to_have_count(5)
        assert await page.evaluate("document.querySelector('video').srcObject") is None


@in_browser
async def test_where_keys_are_needed_it_asks_for_one_and_keeps_it(browser: Browser) -> None:
    async with opened(browser, refused=401, api_keys="s3cret") as page:
        await page.set_input_files("#files", upload("seven.png", png(7)))
        await page.fill("#key input", "s3cret")
        await page.click("text=Use it")
        await expect(page.locator(".labels button").first).to_contain_text("class 7")
        await page.set_input_files("#files", upload("eight.png", png(8)))
        await expect(page.locator("article")).to_have_count(2)
        await expect(page.locator(".labels button:has-text('class 8')")).to_have_count(1)
        await expect(page.locator("#key")).not_to_be_visible()


@in_browser
async def test_a_key_that_is_wrong_is_asked_for_again_and_whoever_has_none_is_left_alone(browser: Browser) -> None:
    async with opened(browser, refused=401, api_keys="s3cret", probes_need_key=True) as page:
        await page.click("#key button[value=cancel]")  # health was refused
        await expect(page.locator("#health")).to_have_text("a key is needed")
        await page.set_input_files("#files", upload("seven.png", png(7)))
        await page.fill("#key input", "wrong")
        await page.click("text=Use it")
        await expect(page.locator("#key [role=alert]")).to_have_text("The service did not accept this key.")
        await page.click("#key button[value=cancel]")
        await expect(page.get_by_role("alert")).to_contain_text("A key is needed")
        await expect(page.locator("#key")).not_to_be_visible()


@in_browser
async def test_the_model_that_is_chosen_answers(browser: Browser) -> None:
    async with opened(browser, models="first=embedded,second=embedded") as page:
        await expect(page.locator("#health")).to_have_text("first on cpu, second on cpu")
        await page.get_by_label("Model").select_option("second")
        await page.set_input_files("#files", upload("seven.png", png(7)))
        await expect(page.locator("code")).to_contain_text("&model=second")


@in_browser
async def test_a_label_without_evidence_has_nothing_to_point_at(browser: Browser) -> None:
    reply = {"model": "old", "predictions": [{"label": "cat", "score": 0.5}], "timings_ms": {"device": 2, "total": 3}}
    async with opened(browser) as page:
        await page.route("**/predict*", lambda route: route.fulfill(json=reply))
        await page.set_input_files("#files", upload("cat.png", png(1)))
        await page.locator(".row").hover()
        await expect(page.locator(".row")).to_have_text("cat 50 %")
        await expect(page.locator(".labels button")).to_have_count(0)
        await expect(page.locator("figure")).not_to_have_class("shown")


@in_browser
async def test_what_is_no_file_changes_nothing_and_what_is_no_problem_json_is_told(browser: Browser) -> None:
    async with opened(browser, refused=502) as page:
        await page.route("**/predict*", lambda route: route.fulfill(status=502, body="<h1>proxy</h1>"))
        await page.set_input_files("#files", upload("seven.png", png(7)))
        await expect(page.get_by_role("alert")).to_contain_text("Something on the way answered 502")
        await page.evaluate(
            """() => {
                const dataTransfer = new DataTransfer();
                dataTransfer.setData("text/plain", "no file");
                document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
            }"""
        )
        await expect(page.locator("#progress")).to_be_visible()
        await expect(page.locator("article")).to_have_count(1)
