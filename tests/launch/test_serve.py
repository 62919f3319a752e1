"""`i2vgen serve`: the page in a real browser, and its routes over HTTP."""

import concurrent.futures
import functools
import io
import re
import shutil
import socket
import sys
import tempfile
import threading
from pathlib import Path

import gradio_client
import httpx
import numpy as np
import pytest
import uvicorn
from cascade_standin import BASE_SIZE, REFINED_SIZE
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from data_pipelines.media import video
from i2vgen_jax.cascade import BUNDLED, Cascade
from i2vgen_jax.errors import InputError
from i2vgen_jax.files import read_json
from i2vgen_jax.tokenizer import Tokenizer
from launch import contact_sheet, gallery, outputs, serve

pytestmark = pytest.mark.usefixtures("quick_compiler")

PROMPT = "a red disc moves left"
ROOT = Path(__file__).parents[2]
MAX_PIXELS = 400_000
SECONDS = 30  # to wait for something before the test fails


class Site:
  """A running server."""

  def __init__(self, url, gallery):
    self.url, self.gallery = url, gallery

  def upload(self, data, name="photo.jpg"):
    return httpx.post(
      f"{self.url}pictures", params={"name": name}, content=data, timeout=60
    )

  def make(self, picture, prompt=PROMPT, seed=0):
    """Message, result and gallery of one run, through Gradio's API."""
    client = gradio_client.Client(self.url, verbose=False)
    return client.predict(picture, prompt, seed, api_name="/make")

  def videos(self):
    return sorted(path.stem for path in self.gallery.glob("*.json"))


@pytest.fixture(scope="module")
def site(weights, quick_compiler, tmp_path_factory):
  gallery = tmp_path_factory.mktemp("served") / "gallery"
  app = serve.make_app(
    serve.Arguments(
      weights=str(weights), gallery=gallery, max_upload=1, max_pixels=MAX_PIXELS
    )
  )
  listener = socket.create_server(("127.0.0.1", 0))
  server = uvicorn.Server(
    uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
  )
  thread = threading.Thread(target=server.run, args=([listener],))
  thread.start()
  yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}/", gallery)
  server.should_exit = True
  thread.join()


@pytest.fixture
def gate(monkeypatch):
  """Runs wait after each step until it is set."""
  gate, run = threading.Event(), Cascade.run
  gate.reached = threading.Event()

  def paced(self, *args, progress, **options):
    def step(done):
      gate.reached.set()
      assert gate.wait(SECONDS)
      progress(done)

    return run(self, *args, progress=step, **options)

  monkeypatch.setattr(Cascade, "run", paced)
  yield gate
  gate.set()


class Tab:
  """The page in a browser."""

  def __init__(self, driver, url):
    self.driver = driver
    driver.get(url)
    self.wait(lambda: self.all(".picker input") and self.all(".gallery"))

  def wait(self, condition):
    return WebDriverWait(self.driver, SECONDS).until(lambda _: condition())

  def all(self, selector):
    return self.driver.find_elements(By.CSS_SELECTOR, selector)

  def choose(self, path):
    """Uploads a file; returns the message if there is one."""
    [picker] = self.all(".picker input")
    picker.send_keys(str(path))
    self.wait(lambda: self.all(".preview") or self.all(".problem"))
    return "".join(message.text for message in self.all(".problem"))

  def press(self, label):
    self.driver.find_element(By.XPATH, f"//button[text()='{label}']").click()

  def fill(self, label, text):
    field = self.driver.find_element(
      By.XPATH,
      f"//label[contains(., '{label}')]//*[self::input or self::textarea]",
    )
    field.clear()
    field.send_keys(text)

  def text(self, selector):
    return "".join(element.text for element in self.all(selector))

  def says(self, text):
    """Waits for a text in the message below the form."""
    return self.wait(lambda: text in self.text(".message"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  """A headless Chromium; its attribute `downloads` is where files go."""
  driver = shutil.which("chromedriver")
  if not (driver and shutil.which("chromium")):
    pytest.skip("no browser: apt-get install chromium chromium-driver")
  options = webdriver.ChromeOptions()
  for name in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
    options.add_argument(f"--{name}")
  downloads = tmp_path_factory.mktemp("downloads")
  options.add_experimental_option(
    "prefs", {"download.default_directory": str(downloads)}
  )
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
    browser.downloads = downloads
    yield browser


@pytest.fixture
def tab(browser, site):
  return Tab(browser, site.url)


@pytest.fixture
def picture(site, photos):
  """An uploaded picture."""
  return site.upload(photos["square"].read_bytes()).json()


# ---- In the browser ----


def test_picture_becomes_videos_that_stay(tab, site, photos):
  assert not tab.choose(photos["landscape"])
  tab.fill("Prompt", PROMPT)
  tab.fill("Seed", "7")
  tab.press("Make the video")
  clips = tab.wait(lambda: tab.all(".result video"))
  tab.wait(lambda: all(c.get_property("readyState") >= 2 for c in clips))
  sizes = [
    (c.get_property("videoWidth"), c.get_property("videoHeight")) for c in clips
  ]
  assert sizes == [BASE_SIZE, REFINED_SIZE]
  base, refined = (clip.rect for clip in clips)
  assert base["y"] == refined["y"] and base["x"] < refined["x"]
  assert tab.text(".message") == ""

  [name] = site.videos()
  report = read_json(site.gallery / f"{name}.json")
  assert (report["prompt"], report["seed"]) == (PROMPT, 7)
  kept = Path(report["input"]["path"])
  assert kept.read_bytes() == photos["landscape"].read_bytes()

  tab.all(".result a")[1].click()
  saved = tab.driver.downloads / f"{name}.mp4"
  tab.wait(saved.exists)
  assert saved.read_bytes() == (site.gallery / saved.name).read_bytes()
  frames, _ = video.decode_mp4(saved)
  assert frames.shape[1:3] == REFINED_SIZE[::-1]

  tab.driver.refresh()
  tab.wait(lambda: len(tab.all(".gallery video")) == 2)
  assert not tab.all(".result video")
  assert PROMPT in tab.text(".gallery article")
  tab.all(".gallery summary")[0].click()
  assert '"seed": 7' in tab.text(".gallery pre")
  assert '"num_steps": 2' in tab.text(".gallery pre")


def test_runs_wait_show_their_steps_and_are_cancelled(
  tab, site, photos, picture, gate
):
  before = site.videos()
  with concurrent.futures.ThreadPoolExecutor() as pool:
    other = pool.submit(site.make, picture)
    assert gate.reached.wait(SECONDS)
    tab.choose(photos["square"])
    tab.fill("Prompt", PROMPT)
    tab.press("Make the video")
    tab.wait(lambda: "queue: 1/1" in tab.text(".result"))
    # A run that waits.
    tab.press("Cancel")
    tab.says("Cancelled")
    gate.set()
    assert "video" in other.result(SECONDS)[1]
  assert len(site.videos()) == len(before) + 1

  # A run that has begun.
  gate.clear()
  tab.press("Make the video")
  tab.wait(lambda: "0/2 steps" in tab.text(".result"))
  # Nothing else is where the progress is.
  tab.wait(lambda: not tab.all(".result .html-container")[0].text)
  assert tab.text(".message") == ""
  tab.press("Cancel")
  tab.says("Cancelled")
  gate.set()
  # The next one begins after it has ended.
  tab.press("Make the video")
  tab.wait(lambda: tab.all(".result video"))
  assert len(site.videos()) == len(before) + 2


def png(width, height):
  pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3))
  buffer = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
  return buffer.getvalue()


BAD_PICTURES = {
  "notes.txt": (b"Not pixels but words.", "notes.txt is not a picture"),
  "none.png": (b"", "none.png is empty"),
  "cut.png": (png(64, 64)[:5000], "picture cut.png is damaged"),
  "wide.png": (
    # Pixels of one colour take few bytes.
    contact_sheet.encode(Image.new("RGB", (1000, 1000)), "PNG"),
    "wide.png is 1000x1000, more than 400000 pixels; scale it down",
  ),
  "heavy.png": (png(700, 500), "over 1 MB; scale the picture down"),
  "<b>.png": (b"?", "<b>.png is not a picture"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture_has_one_message(tab, name, tmp_path):
  data, message = BAD_PICTURES[name]
  (tmp_path / name).write_bytes(data)
  assert message in tab.choose(tmp_path / name)
  assert len(tab.all("[role=alert]")) == 1


def test_bad_form_has_one_message(tab, site, photos):
  before = site.videos()
  tab.press("Make the video")
  tab.says("there is no picture; choose one")
  tab.choose(photos["square"])
  tab.wait(lambda: not tab.text(".message"))
  tab.press("Make the video")
  tab.says("the prompt is empty")
  tab.fill("Prompt", PROMPT)
  tab.fill("Seed", "-1")
  tab.press("Make the video")
  tab.says("the seed must be an integer from 0 to 4294967295")
  assert len(tab.all("[role=alert]")) == 1
  assert not tab.all(".result video") and site.videos() == before


# ---- Over HTTP ----


def test_unknown_words_are_named(site, picture, monkeypatch):
  bundled = Tokenizer.load(BUNDLED / "tokenizer", 77)
  problems = functools.partial(Tokenizer.problems, bundled)
  monkeypatch.setattr(Tokenizer, "problems", lambda _, text: problems(text))
  message, result, _ = site.make(picture, "the camera pans <i>grumpily</i>")
  assert "Note: the vocabulary lacks the words" in message
  assert "grumpily" in message and "<i>" not in message
  assert "video" in result and "<i>" not in result


@pytest.mark.parametrize(
  ("prompt", "seed", "message"),
  [
    ("x" * 1001, 0, "over 1000 characters"),
    (PROMPT, None, "the seed must be"),
    (PROMPT, 0.5, "the seed must be"),
    (PROMPT, 2**32, "the seed must be"),
  ],
)
def test_bad_values_are_refused(site, picture, prompt, seed, message):
  assert message in site.make(picture, prompt, seed)[0]


def test_fifty_uploads_at_once(site, photos):
  data = photos["square"].read_bytes()
  with concurrent.futures.ThreadPoolExecutor(50) as pool:
    answers = list(pool.map(site.upload, [data] * 50))
  assert {answer.status_code for answer in answers} == {200}
  pictures = [answer.json() for answer in answers]
  assert len({picture["picture"] for picture in pictures}) == 50
  # The first one is still there.
  assert "video" in site.make(pictures[0])[1]


def test_old_uploads_give_way(site, monkeypatch):
  monkeypatch.setattr(gallery, "_UPLOADS", 2)
  pictures = [site.upload(png(64, 64)).json() for _ in range(3)]
  assert "there is no picture" in site.make(pictures[0])[0]
  assert "video" in site.make(pictures[1])[1]


def test_requests_are_limited(site):
  for route in ("pictures?name=a.png", "gradio_api/queue/join"):
    answer = httpx.post(site.url + route, content=bytes(1_000_001))
    assert answer.status_code == 413
    answer = httpx.post(site.url + route, content=iter([b"no length"]))
    assert answer.status_code == 411


def test_no_path_of_the_server_is_shown(site, photos, monkeypatch):
  texts = [
    httpx.get(site.url + route).text
    for route in ("", "config", "gradio_api/info", "gradio_api/openapi.json")
  ]
  uploaded = site.upload(photos["square"].read_bytes())
  picture = uploaded.json()
  texts += [uploaded.text, *site.make(picture)]

  def fail(files):
    raise InputError(f"cannot write {next(iter(files))}: No space left")

  monkeypatch.setattr(outputs, "write", fail)
  message, _, _ = site.make(picture)
  assert re.search(r"cannot write [\d-]+\w+.mp4: No space left", message)
  texts.append(message)
  secrets = (str(site.gallery), str(ROOT), sys.prefix, tempfile.gettempdir())
  for secret in secrets:
    assert not [text for text in texts if secret in text], secret


@pytest.mark.parametrize(
  "route",
  [
    "videos/absent.mp4",
    "videos/..%2Fgallery%2F{}.mp4",
    "videos/{}.json",
    "gradio_api/file={gallery}/{}.json",
    "gradio_api/file={gallery}/{}.mp4",
  ],
)
def test_other_files_are_not_served(site, picture, route):
  site.make(picture)
  name = site.videos()[0]
  assert httpx.get(f"{site.url}videos/{name}.mp4").status_code == 200
  answer = httpx.get(site.url + route.format(name, gallery=site.gallery))
  assert answer.status_code in (403, 404)


def test_gradio_takes_no_uploads(site):
  for route in ("upload", "gradio_api/upload"):
    files = {"files": ("a.png", png(8, 8))}
    answer = httpx.post(site.url + route, files=files)
    assert answer.status_code in (404, 405)


def test_damaged_settings_are_named(site, picture):
  site.make(picture)
  name = site.videos()[0]
  path = site.gallery / f"{name}.json"
  text = path.read_text()
  path.write_text(text[:100])
  shown = site.make(picture)[2]
  path.write_text(text)
  assert f"the settings of {name} cannot be read" in shown


# ---- The command ----


@pytest.mark.parametrize(
  ("flags", "host", "others"),
  [
    ([], "127.0.0.1", False),
    (["--host=localhost"], "127.0.0.1", False),
    (["--host=0.0.0.0"], "0.0.0.0", True),
  ],
)
def test_command_listens_on_loopback(
  run, weights, tmp_path, monkeypatch, flags, host, others
):
  seen = []
  monkeypatch.setattr(
    uvicorn.Server,
    "run",
    lambda _, sockets: seen.extend(s.getsockname() for s in sockets),
  )
  folder = f"--gallery={tmp_path / 'new' / 'gallery'}"
  flags = [f"--weights={weights}", folder, "--port=0", *flags]
  status, lines = run("serve", *flags)
  assert status == 0
  [(address, port)] = seen
  assert address == host
  assert any(line.endswith(f":{port}") for line in lines)
  assert any("every machine" in line for line in lines) == others


def test_taken_port_is_one_line(refused, weights, tmp_path):
  flags = f"--weights={weights}", f"--gallery={tmp_path}"
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
    line = refused("serve", f"--port={port}", *flags)
  assert f"cannot listen on 127.0.0.1, port {port}: Address already" in line
  assert "choose another" in line


def test_unusable_gallery_is_one_line(refused, weights, tmp_path):
  (tmp_path / "file").touch()
  flags = f"--weights={weights}", f"--gallery={tmp_path / 'file'}", "--port=0"
  assert "cannot write" in refused("serve", *flags)
