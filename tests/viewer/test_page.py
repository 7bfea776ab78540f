"""The page in headless Chromium: what an operator sees is what was sent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from realtime.events import DecoderUsed
from realtime.viewer.access import open_access

pytestmark = pytest.mark.browser

# Within the time of a slow machine; the 3 s of the fallback are the page's own affair.
PATIENT = "&patience=120"
# A browser that allows no direct UDP; the flag goes by the second name in older Chromiums.
NO_UDP = (
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
)
NO_WEBRTC = "delete window.RTCPeerConnection;"
COLOURS = [(200, 50, 50), (50, 190, 60), (60, 70, 210), (210, 200, 70)]

ICE = """async () => {
  const [connection] = window.connections;
  const stats = [...(await connection.getStats()).values()];
  const { localCandidateId, remoteCandidateId } = stats.find(s => s.type === "candidate-pair" && s.nominated);
  const address = id => stats.find(s => s.id === id).address;
  const candidates = /^a=candidate:.*$/gm;
  return {
    pair: [address(localCandidateId), address(remoteCandidateId)],
    offered: connection.remoteDescription.sdp.match(candidates),
  };
}"""


def value(page: Page, testid: str) -> str | None:
    return page.get_by_test_id(testid).get_attribute("data-value")


def expect_value(page: Page, testid: str, expected: str) -> None:
    expect(page.get_by_test_id(testid)).to_have_attribute("data-value", expected)


def expect_root(page: Page, name: str, expected: str) -> None:
    expect(page.locator("html")).to_have_attribute(f"data-{name}", expected)


def test_video_and_numbers_over_webrtc(
    run: Any, serve: Any, open_page: Any, video_mean_rgb: Any, until: Any
) -> None:
    served = serve(run.status("waiting", run_id=None, subject=None))
    requests: list[str] = []
    page = open_page(served.url + PATIENT)
    page.on("request", lambda request: requests.append(request.url))
    expect_root(page, "transport", "webrtc")
    expect(page.get_by_test_id("state")).to_have_text("Waiting for the scanner")
    for volume, rgb in enumerate(COLOURS, start=30):
        frame = run.frame(volume, rgb, shown_onset=volume - 8)
        served.send(run.status("trusted", volume, message=f"message {volume}"))
        served.send(run.shown(volume - 8, f"picture {volume}", rgb), frame)
        sent = frame.image.mean((0, 1))
        until(page, lambda sent=sent: np.abs(video_mean_rgb(page) - sent).max() < 6, f"video of {rgb}")
        expect_value(page, "frame-volume", str(volume))
        expect(page.get_by_test_id("message")).to_have_text(f"message {volume}")
        expect(page.get_by_test_id("shown-name")).to_have_text(f"picture {volume}")
    check_numbers(page, frame, run.status("trusted", 33))
    ice = page.evaluate(ICE)
    assert ice["pair"] == ["127.0.0.1", "127.0.0.1"]
    assert {candidate.split()[4] for candidate in ice["offered"]} == {"127.0.0.1"}
    assert all(url.startswith(served.base) for url in requests)
    served.send(run.status("ended", 33))
    expect(page.get_by_test_id("state")).to_have_text("Run ended")


def check_numbers(page: Page, frame: Any, status: Any) -> None:
    """Everything countable on the page equals what was sent."""
    counts = status.message.counts
    for name in ("received", "decoded", "warming", "censored", "skipped", "missing"):
        assert value(page, f"count-{name}") == str(getattr(counts, name))
    latency = frame.message.latency_ms
    for name in ("journal", "preprocess", "wait", "brain", "denoise", "vae"):
        assert float(value(page, f"stage-{name}") or "nan") == getattr(latency, name)
    assert float(value(page, "latency-total") or "nan") == latency.total
    assert float(value(page, "latency-max") or "nan") == latency.total
    assert float(value(page, "tr") or "nan") == pytest.approx(4000 / 3)
    assert value(page, "decode-delay") == "12"
    expect(page.get_by_test_id("decode-delay")).to_have_text("12.0")
    assert value(page, "volume") == str(status.message.volume)
    assert value(page, "planned") == str(counts.planned)
    assert page.get_by_test_id("progress").get_attribute("value") == str(status.message.volume + 1)
    assert value(page, "subject") == "1"
    assert value(page, "run") == status.message.run_id
    assert value(page, "run-folder") == status.message.run_folder
    assert value(page, "bundle") == "demo-bundle"
    assert page.get_by_test_id("bundle").get_attribute("data-sha256") == "5a" * 32
    expect(page.get_by_test_id("quality")).to_have_text("moved 0.25 mm · DVARS 12.5 · tSNR 48")
    expect(page.get_by_test_id("demo-badge")).to_be_visible()
    assert page.get_by_test_id("latency-chart").get_attribute("data-points") == str(len(COLOURS))


def test_a_bank_shows_every_picture_by_every_decoder(open_page: Any, serve: Any, run: Any) -> None:
    delays = {"general": 8, "before-2": 3, "after-5": 10}
    decoders = tuple(DecoderUsed(name=name, window_delay_volumes=delays[name]) for name in delays)
    served = serve(run.status("trusted", 60, decoders=decoders))
    page = open_page(served.url)
    expect(page.get_by_test_id("bank")).to_be_hidden()  # no picture is known yet
    for onset, rgb in zip((40, 43), COLOURS, strict=False):
        served.send(run.shown(onset, f"picture {onset}", rgb))
    served.send(run.frame(43, COLOURS[2], decoder="before-2", shown_onset=40), run.frame(48), run.frame(50))
    bank = page.get_by_test_id("bank")
    expect(bank).to_have_attribute("data-frames", "2")  # volume 48 ends the general window of 40, 50 none
    assert [title.inner_text().split()[0] for title in bank.locator("th").all()] == [
        "shown",
        "before-2",
        "general",
        "after-5",
    ]
    frame = bank.locator('td[data-volume="43"][data-decoder="before-2"] img')
    expect(frame).to_have_js_property("naturalWidth", 64)
    assert frame.get_attribute("alt") == "before-2 at volume 43"
    expect(page.get_by_test_id("decoded")).to_have_attribute("data-volume", "50")  # the general one's is live
    assert page.get_by_test_id("strip").get_attribute("data-count") == "2"
    served.send(
        run.status("trusted", 60, run_id="another", run_folder="/data/another", decoders=decoders[:1])
    )
    expect(bank).to_be_hidden()


def test_the_delay_that_resampling_adds_is_stated(open_page: Any, serve: Any, run: Any) -> None:
    words = "resampled in time from the scanner's TR of 1.600 s, which adds a delay of 0.53 s"
    served = serve(run.status("trusted", 31))
    page = open_page(served.url)
    expect(page.get_by_test_id("tr")).to_have_text("1333")
    expect(page.get_by_test_id("resampling")).to_have_text("")
    decoders = (DecoderUsed(name="general", window_delay_volumes=7, added_delay_s=0.5333),)
    facts = {"tr_s": 1.6, "decode_delay_s": 12.8, "decoders": decoders, "resampling": words}
    served.send(run.status("trusted", 32, **facts))
    stated = page.get_by_test_id("resampling")
    expect(stated).to_have_text("0.53 s of it because volumes are resampled in time.")
    expect(stated).to_have_attribute("title", words)
    expect(page.get_by_test_id("decode-delay")).to_have_text("12.8")
    expect(page.get_by_test_id("tr")).to_have_text("1600")


def test_an_alarm_stands_in_place_of_the_message_while_it_lasts(open_page: Any, serve: Any, run: Any) -> None:
    alarm = "recording has stopped at volume 31: cannot write: No space left on device"
    served = serve(run.status("trusted", 31, message="all is well", alarm=alarm, statistics="the past"))
    page = open_page(served.url)
    expect(page.get_by_test_id("statistics")).to_have_text("the past")
    message = page.get_by_test_id("message")
    expect(message).to_have_text(alarm)
    expect(message.locator("..")).to_have_class("message alarm")
    served.send(run.status("trusted", 32, message="recording goes on"))
    expect(message).to_have_text("recording goes on")
    expect(message.locator("..")).to_have_class("message")


def test_a_late_page_scrolls_back_by_keyboard_and_mouse(
    run: Any, serve: Any, open_page: Any, mean_rgb: Any, until: Any
) -> None:
    served = serve(run.status("waiting"))
    frames = {volume: run.frame(volume, (volume * 2, 90, 200 - volume)) for volume in [*range(8, 40), 42, 43]}
    served.send(run.status("trusted", 43), *frames.values())
    page = open_page(served.url + PATIENT)
    strip = page.get_by_test_id("strip")
    expect(strip).to_have_attribute("data-count", str(len(frames)))
    items = strip.locator("[data-volume]")
    assert items.evaluate_all("items => items.map(item => Number(item.dataset.volume))") == list(frames)
    assert items.evaluate_all("items => items.map(item => item.dataset.state)") == [
        frame.message.state for frame in frames.values()
    ]
    gaps = items.evaluate_all(
        "items => items.filter(item => item.dataset.gap).map(item => item.dataset.volume)"
    )
    assert gaps == ["42"]

    def expect_view(view: str, volume: int) -> None:
        expect_root(page, "view", view)
        expect_value(page, "frame-volume", str(volume))
        expect(page.locator(f"#frame-{volume}")).to_have_attribute("aria-selected", "true")
        expect(strip.locator('[aria-selected="true"]')).to_have_count(1)
        expect(page.locator(f"#frame-{volume}")).to_be_in_viewport()
        assert float(value(page, "latency-total") or "nan") == frames[volume].message.latency_ms.total

    expect_view("live", 43)
    for key, view, volume in [
        ("ArrowLeft", "past", 42),
        ("ArrowLeft", "past", 39),
        ("ArrowRight", "past", 42),
        ("Home", "past", 8),
        ("ArrowLeft", "past", 8),
        ("PageDown", "past", 18),
        ("End", "live", 43),
        ("PageUp", "past", 31),
        ("Escape", "live", 43),
    ]:
        page.keyboard.press(key)
        expect_view(view, volume)
    page.locator("#frame-39").click()
    expect_view("past", 39)
    still = page.get_by_test_id("still")
    expect(still).to_be_visible()
    sent = frames[39].image.mean((0, 1))
    until(
        page,
        lambda: np.abs(mean_rgb(page, "[data-testid=still]") - sent).max() < 2,
        "the frame looked back at",
    )
    served.send(run.status("trusted", 44), run.frame(44))  # the run goes on, the view stays
    expect(strip).to_have_attribute("data-count", str(len(frames) + 1))
    expect_root(page, "view", "past")
    expect_value(page, "frame-volume", "39")
    page.get_by_test_id("back-to-live").click()
    expect_root(page, "view", "live")
    expect_value(page, "frame-volume", "44")


@pytest.mark.parametrize(
    ("query", "flags", "init_script", "words"),
    [
        ("", NO_UDP, "", "WebRTC did not connect within 3 s"),
        ("", (), NO_WEBRTC, "this browser has no WebRTC"),
        ("&transport=websocket", (), "", "asked for in the address"),
    ],
    ids=["blocked", "missing", "forced"],
)
def test_without_webrtc_the_page_says_so_and_shows_the_same(
    run: Any,
    serve: Any,
    open_page: Any,
    mean_rgb: Any,
    until: Any,
    query: str,
    flags: tuple[str, ...],
    init_script: str,
    words: str,
) -> None:
    served = serve(run.status("waiting"))
    served.send(run.frame(29, COLOURS[-1]))
    page = open_page(served.url + query, flags=flags, init_script=init_script)
    expect_root(page, "transport", "websocket")
    expect(page.get_by_test_id("transport")).to_have_text(f"pictures over WebSocket: {words}")
    expect(page.get_by_test_id("video")).to_be_hidden()
    for volume, rgb in enumerate(COLOURS[:3], start=30):
        frame = run.frame(volume, rgb)
        served.send(run.status("trusted", volume), frame)
        sent = frame.image.mean((0, 1))
        until(
            page,
            lambda sent=sent: np.abs(mean_rgb(page, "[data-testid=canvas]") - sent).max() < 2,
            f"picture of {rgb}",
        )
        expect_value(page, "frame-volume", str(volume))
    expect(page.get_by_test_id("canvas")).to_be_visible()
    check_numbers(page, frame, run.status("trusted", 32))


def test_a_runtime_that_dies_is_noticed_and_found_again(
    run: Any, serve: Any, open_page: Any, video_mean_rgb: Any, until: Any
) -> None:
    first = serve(run.status("trusted", 30))
    first.send(run.frame(30))
    page = open_page(first.url + PATIENT)
    expect_root(page, "transport", "webrtc")
    expect_value(page, "frame-volume", "30")
    first.stop()
    expect(page.get_by_test_id("state")).to_have_text("No connection")
    expect_root(page, "connection", "lost")
    expect(page.get_by_test_id("still")).to_be_visible()  # the newest frame stays in sight
    access = open_access("127.0.0.1", None, None, first.token)
    second = serve(run.status("trusted", 31, message="run resumed"), port=first.port, access=access)
    frame = run.frame(31, COLOURS[0])
    second.send(frame)
    expect_root(page, "connection", "live")
    expect(page.get_by_test_id("state")).to_have_text("Settled")
    expect(page.get_by_test_id("message")).to_have_text("run resumed")
    expect(page.get_by_test_id("strip")).to_have_attribute("data-count", "1")  # what this server knows
    sent = frame.image.mean((0, 1))
    until(page, lambda: np.abs(video_mean_rgb(page) - sent).max() < 6, "video after the restart")


def test_a_page_whose_token_is_of_another_time_says_so(run: Any, serve: Any, open_page: Any) -> None:
    first = serve(run.status("trusted", 30))
    page = open_page(first.url + "&transport=websocket")
    expect_root(page, "transport", "websocket")
    first.stop()
    expect(page.get_by_test_id("transport")).to_contain_text("trying again")
    serve(run.status("trusted", 31), port=first.port)
    expect(page.get_by_test_id("transport")).to_contain_text("the runtime has a new address")


def test_a_new_run_clears_the_old_one(run: Any, make_run: Any, serve: Any, open_page: Any) -> None:
    served = serve(run.status("trusted", 30))
    served.send(run.frame(30), run.frame(31))
    page = open_page(served.url + PATIENT)
    expect(page.get_by_test_id("strip")).to_have_attribute("data-count", "2")
    page.keyboard.press("Home")
    expect_root(page, "view", "past")
    second = make_run("the-second-run", planned=100)
    served.send(second.status("warming", 0))
    expect_value(page, "run", "the-second-run")
    expect(page.get_by_test_id("strip")).to_have_attribute("data-count", "0")
    expect_root(page, "view", "live")
    expect(page.get_by_test_id("empty")).to_be_visible()
    expect_value(page, "planned", "100")


def test_states_are_words_one_cannot_miss(run: Any, serve: Any, open_page: Any) -> None:
    served = serve(run.status("waiting"))
    page = open_page(served.url + "&transport=websocket")
    words: Callable[[str], None] = expect(page.get_by_test_id("state")).to_have_text
    for state, text in [
        ("warming", "Warming"),
        ("trusted", "Settled"),
        ("stale", "Stale"),
        ("ended", "Run ended"),
        ("waiting", "Waiting for the scanner"),
    ]:
        served.send(run.status(state, 5))
        words(text)
        expect_root(page, "state", state)
    size_px = page.get_by_test_id("state").evaluate("word => parseFloat(getComputedStyle(word).fontSize)")
    assert size_px >= 40
    for width, height in [(1280, 800), (1920, 1080), (420, 900)]:
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    served.send(run.status("trusted", 5, bundle_is_demo=False, run_folder=None))
    expect(page.get_by_test_id("demo-badge")).to_be_hidden()


def test_a_decoder_near_chance_gets_no_green_word(run: Any, serve: Any, open_page: Any) -> None:
    """Settled are the statistics; how well the decoder decodes stands under its frames."""
    served = serve(run.status("trusted", 31, decoding_quality="identifies 86 % of pictures, chance 50 %"))
    served.send(run.frame(31))
    page = open_page(served.url + "&transport=websocket")
    state, quality = page.get_by_test_id("state"), page.get_by_test_id("decoding-quality")
    colour = "word => getComputedStyle(word).color"
    expect(state).to_have_text("Settled")
    expect(quality).to_have_text("identifies 86 % of pictures, chance 50 %")
    expect(page.get_by_test_id("frame-state")).to_have_text("settled")
    green = state.evaluate(colour)
    facts = {"decoding_quality": "near chance: identifies 52 % of pictures", "is_near_chance": True}
    served.send(run.status("trusted", 32, **facts))
    expect(state).to_have_text("Near chance")
    expect(quality).to_have_text("near chance: identifies 52 % of pictures")
    assert state.evaluate(colour) == quality.evaluate(colour) != green
    served.send(run.status("warming", 32, **facts))
    expect(state).to_have_text("Warming")


def test_the_offer_tells_nobody_an_address(run: Any, serve: Any, open_page: Any) -> None:
    offers: list[str] = []
    served = serve(run.status("waiting"))
    page = open_page(served.url + PATIENT)
    page.on(
        "request",
        lambda request: offers.append(request.post_data or "") if request.method == "POST" else None,
    )
    page.reload()
    expect_root(page, "transport", "webrtc")
    (offer,) = [json.loads(body)["sdp"] for body in offers]
    assert re.search(r"^m=video", offer, re.MULTILINE)
    assert "candidate" not in offer
