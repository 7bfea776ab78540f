// The strip of all frames of the run: above the decoded frame, below the picture that was on screen, from its onset on.

import { find } from "./dom.js";

export const THUMB_PX = 128;
const strip = find("strip");
let runKey = null;
let followed = null;

export function drawStrip(store) {
  if (store.runKey !== runKey) {
    runKey = store.runKey;
    followed = null;
    strip.replaceChildren();
  }
  const items = new Map([...strip.children].map((item) => [Number(item.dataset.volume), item]));
  store.volumes.forEach((volume, at) => {
    if (!items.has(volume)) {
      const item = buildItem(store, volume);
      strip.insertBefore(item, strip.children[at] ?? null);
      items.set(volume, item);
    }
  });
  store.volumes.forEach((volume, at) => update(store, items.get(volume), store.volumes[at - 1] ?? null));
  strip.dataset.count = store.volumes.length;
  follow(items.get(store.viewed), store.selected === null);
}

export function initStrip(store) {
  strip.addEventListener("click", (event) => {
    const item = event.target.closest("[data-volume]");
    if (item) store.select(Number(item.dataset.volume));
  });
}

function buildItem(store, volume) {
  const item = document.createElement("div");
  item.id = `frame-${volume}`;
  item.className = "frame";
  item.setAttribute("role", "option");
  item.dataset.volume = volume;
  item.append(picture(store.pictureUrl("frames", volume, THUMB_PX), "thumb"));
  const track = document.createElement("span");
  track.className = "track";
  const number = document.createElement("span");
  number.className = "number";
  number.textContent = volume;
  item.append(track, number);
  return item;
}

// What may change after the item was made: its state, its neighbours, its picture's name.
function update(store, item, before) {
  const { volume, state, shown_onset: onset } = store.frames.get(Number(item.dataset.volume));
  const chosen = volume === store.viewed;
  item.dataset.state = state;
  item.setAttribute("aria-selected", String(chosen));
  const name = store.shown.get(onset);
  item.setAttribute("aria-label", `volume ${volume}, ${state}${name ? `, shown: ${name}` : ""}`);
  const gap = before === null ? 0 : volume - before - 1;
  if (gap > 0) item.dataset.gap = `no frame ×${gap}`;
  else delete item.dataset.gap;
  const begins = name !== undefined && (before === null || store.frames.get(before).shown_onset !== onset);
  item.dataset.shown = name === undefined ? "none" : begins ? "begins" : "lasts";
  const track = item.querySelector(".track");
  if (begins && !track.firstChild) track.append(picture(store.pictureUrl("shown", onset), "small"));
  if (!begins) track.replaceChildren();
}

function picture(url, className) {
  const image = document.createElement("img");
  image.loading = "lazy";
  image.decoding = "async";
  image.draggable = false;
  image.alt = "";
  image.className = className;
  image.src = url;
  return image;
}

// Keep the frame on view in sight, without moving the page itself.
function follow(item, live) {
  const target = item ? `${item.dataset.volume} ${live} ${strip.clientWidth}` : null;
  if (target === followed) return;
  followed = target;
  if (item) strip.setAttribute("aria-activedescendant", item.id);
  if (live) strip.scrollLeft = strip.scrollWidth;
  else if (item) strip.scrollLeft = item.offsetLeft - (strip.clientWidth - item.offsetWidth) / 2;
}
