// The two big pictures: the decoded frame (live video, live canvas, or an old frame) and what was on screen.

import { find, put, showOnly } from "./dom.js";
import { THUMB_PX } from "./strip.js";

const decoded = find("decoded");
const video = find("video");
const canvas = find("canvas");
const still = find("still");
let newest = 0;

// A picture of the WebSocket, drawn where it is still the newest once it is decoded.
export async function drawCanvas(volume, blob) {
  const turn = ++newest;
  const bitmap = await createImageBitmap(blob);
  if (turn !== newest) return;
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  canvas.dataset.volume = volume;
}

export function drawPictures(store) {
  const live = store.selected === null;
  const volume = store.viewed;
  const frame = store.frames.get(volume);
  document.documentElement.dataset.view = live ? "live" : "past";
  decoded.dataset.volume = volume ?? "";
  const behind = store.volumes.length - 1 - store.volumes.indexOf(volume);
  const running = ["warming", "trusted"].includes(document.documentElement.dataset.state);
  const here = running ? "live" : "newest";
  put("view", live ? here : `${behind} ${behind === 1 ? "frame" : "frames"} back`, live ? "live" : "past");
  showOnly(find("back-to-live"), !live);
  showOnly(video, live && frame && store.link.transport === "webrtc");
  showOnly(canvas, live && frame && store.link.transport === "websocket");
  // Without a connection the newest frame stays, as a picture: the strip's, since no server gives another now.
  const alone = store.link.transport === "none";
  const old = frame && (!live || alone);
  showOnly(still, Boolean(old));
  const width = alone ? THUMB_PX : undefined;
  if (old) setSource(still, store.pictureUrl("frames", volume, width), `decoded at volume ${volume}`);
  showOnly(find("empty"), !frame);
  drawCaption(frame);
  drawShown(store, frame);
}

function drawCaption(frame) {
  put("frame-volume", frame ? `volume ${frame.volume}` : "", frame?.volume);
  put("frame-state", { warming: "warming", trusted: "settled" }[frame?.state] ?? "", frame?.state ?? "");
  const [first, end] = frame?.window ?? [];
  put("frame-window", frame ? `volumes ${first}–${end - 1}` : "", frame?.window.join(" "));
  put("frame-sampler", frame?.sampler ?? "");
}

function drawShown(store, frame) {
  const onset = frame?.shown_onset ?? null;
  const known = onset !== null && store.shown.has(onset);
  find("shown").dataset.onset = onset ?? "";
  const picture = find("shown-picture");
  showOnly(picture, known);
  showOnly(find("shown-empty"), !known);
  if (known) setSource(picture, store.pictureUrl("shown", onset), store.shown.get(onset));
  put("shown-name", known ? store.shown.get(onset) : "");
  put("shown-onset", known ? `on screen at volume ${onset}` : "", onset);
}

// Hidden until it is loaded, so that no picture ever stands over another one's caption.
function setSource(image, url, alt) {
  if (image.getAttribute("src") === url) return;
  image.dataset.loading = "";
  image.onload = () => delete image.dataset.loading;
  image.src = url;
  image.alt = alt;
}
