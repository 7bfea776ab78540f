// The bank: what every decoder made of every picture. A column is a picture; a row is a decoder, the one whose
// windows end first on top, so that a column read downwards is a picture over time (the paper's figure 4, live).

import { find } from "./dom.js";

const COLUMNS = 24; // the newest pictures; older ones are in the run folder
const THUMB_PX = 64;
const section = find("bank");
const table = find("bank-table");
let drawn = null;

export function drawBank(store) {
  const rows = decoders(store.status);
  const onsets = [...store.shown.keys()].sort((a, b) => a - b).slice(-COLUMNS);
  section.hidden = rows.length < 2 || onsets.length === 0;
  document.documentElement.dataset.bank = section.hidden ? "none" : "shown";
  if (section.hidden) return;
  const key = JSON.stringify([store.runKey, rows, onsets]);
  if (key !== drawn) {
    drawn = key;
    build(store, rows, onsets);
  }
  for (const cell of table.querySelectorAll("td[data-volume]")) fill(store, cell);
  section.dataset.frames = table.querySelectorAll("td[data-volume] img").length;
}

// The bundle's decoders by the end of their windows; `last` is that volume, counted from the picture's onset.
function decoders(status) {
  const all = (status?.decoders ?? []).map(({ name, window_delay_volumes: last }) => ({ name, last }));
  return all
    .sort((a, b) => a.last - b.last)
    .map(({ name, last }) => ({ name, last, end_s: (last + 1) * status.tr_s }));
}

function build(store, rows, onsets) {
  const head = row("shown", "");
  for (const onset of onsets) head.append(cell(picture(store.pictureUrl("shown", onset), store.shown.get(onset))));
  const body = rows.map(({ name, last, end_s }) => {
    const line = row(name, `to ${end_s.toFixed(1)} s`);
    for (const onset of onsets) {
      const place = cell();
      place.dataset.volume = onset + last;
      place.dataset.decoder = name;
      line.append(place);
    }
    return line;
  });
  table.replaceChildren(head, ...body);
  table.parentElement.scrollLeft = table.parentElement.scrollWidth;
}

function fill(store, place) {
  const { volume, decoder } = place.dataset;
  const frame = store.bank.get(`${volume}_${decoder}`);
  if (!frame || place.firstChild) return;
  place.dataset.state = frame.state;
  const url = store.pictureUrl("frames", `${volume}_${decoder}`, THUMB_PX);
  place.append(picture(url, `${decoder} at volume ${volume}`));
}

function row(name, when) {
  const line = document.createElement("tr");
  const title = document.createElement("th");
  title.scope = "row";
  const detail = document.createElement("span");
  detail.className = "dim";
  detail.textContent = when;
  title.append(`${name} `, detail);
  line.append(title);
  return line;
}

function cell(...content) {
  const place = document.createElement("td");
  place.append(...content);
  return place;
}

function picture(url, alt) {
  const image = document.createElement("img");
  image.decoding = "async";
  image.draggable = false;
  image.alt = alt ?? "";
  image.title = image.alt;
  image.src = url;
  return image;
}
