// The live page: one store, one connection that feeds it, and the parts that draw it.

import { drawBank } from "./bank.js";
import { find } from "./dom.js";
import { drawHeader } from "./header.js";
import { drawLatency } from "./latency.js";
import { Link, PATIENCE_S } from "./link.js";
import { drawCanvas, drawPictures } from "./pictures.js";
import { Store } from "./store.js";
import { drawStrip, initStrip } from "./strip.js";

const KEYS = {
  ArrowLeft: (store) => store.step(-1),
  ArrowRight: (store) => store.step(1),
  PageUp: (store) => store.step(-10),
  PageDown: (store) => store.step(10),
  Home: (store) => store.first(),
  End: (store) => store.live(),
  Escape: (store) => store.live(),
};

const store = new Store();
for (const draw of [drawHeader, drawPictures, drawBank, drawStrip, drawLatency]) store.onChange(draw);
initStrip(store);
find("back-to-live").addEventListener("click", () => store.live());
addEventListener("resize", () => store.apply([]));
addEventListener("keydown", (event) => {
  if (!(event.key in KEYS) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  KEYS[event.key](store);
});

// ?transport=websocket leaves WebRTC out; ?patience=30 waits longer for it, on a machine too busy for 3 s.
const asked = new URLSearchParams(location.search);
const forced = asked.get("transport");
const patienceS = Number(asked.get("patience")) || PATIENCE_S;
new Link({ store, video: find("video"), onPicture: drawCanvas, forced, patienceS }).run();
