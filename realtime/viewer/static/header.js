// The lines an operator reads from across the room: state, position, connection, account, message, bundle.

import { find, ms, put, showOnly } from "./dom.js";

const STATES = {
  waiting: ["Waiting for the scanner", "no volume yet"],
  warming: ["Warming", "the run's statistics have not settled yet"],
  trusted: ["Settled", "the run's statistics have settled"], // no word on how well it decodes
  chance: ["Near chance", "settled, but hardly more than chance"],
  stale: ["Stale", "the run is open, but no volume has come for more than 3 TR"],
  ended: ["Run ended", ""],
  lost: ["No connection", "what you see is old"],
  connecting: ["Connecting", ""],
};
const COUNTS = ["received", "decoded", "warming", "censored", "skipped", "missing"];
const TRANSPORTS = {
  webrtc: "video over WebRTC",
  websocket: "pictures over WebSocket",
  none: "",
};

export function drawHeader(store) {
  const { status, counts, link } = store;
  const known = link.state === "live" || status ? (status?.state ?? "connecting") : "connecting";
  const state = link.state === "lost" ? "lost" : known;
  document.documentElement.dataset.state = state;
  const isNearChance = Boolean(status?.is_near_chance);
  document.documentElement.dataset.nearChance = isNearChance;
  const [word, detail] = STATES[state === "trusted" && isNearChance ? "chance" : state];
  put("state", word, state);
  put("state-detail", state === "ended" ? `${counts.received} of ${counts.planned} volumes received` : detail);
  drawLink(link);
  drawPosition(status, counts);
  for (const name of COUNTS) {
    find(`count-${name}`).parentElement.classList.toggle("some", counts[name] > 0);
    put(`count-${name}`, counts[name]);
  }
  if (status) drawRunFacts(status);
}

function drawLink({ state, transport, note }) {
  document.documentElement.dataset.connection = state;
  document.documentElement.dataset.transport = transport;
  put("connection", { connecting: "Connecting", live: "Connected", lost: "No connection" }[state], state);
  put("transport", [TRANSPORTS[transport], note].filter(Boolean).join(": "), transport);
}

function drawPosition(status, counts) {
  const volume = status?.volume ?? null;
  const subject = status?.subject ?? null;
  put("subject", subject === null ? "" : `subject ${subject}`, subject);
  put("run", status?.run_id ?? "");
  put("volume", volume === null ? "–" : volume + 1, volume); // people count from one, indices from zero
  put("planned", counts.planned || "–", counts.planned);
  const progress = find("progress");
  progress.max = counts.planned || 1;
  progress.value = volume === null ? 0 : Math.min(volume + 1, progress.max);
  document.title = `${find("state").textContent} · realtime`;
}

function drawRunFacts(status) {
  put("message", status.alarm || status.message);
  find("message").parentElement.classList.toggle("alarm", Boolean(status.alarm));
  put("decoding-quality", status.decoding_quality.replaceAll(" %", "\u00a0%"), status.decoding_quality);
  find("decoding-quality").title = status.decoding_quality;
  put("bundle", status.bundle_name);
  find("bundle").title = status.bundle_sha256;
  find("bundle").dataset.sha256 = status.bundle_sha256;
  showOnly(find("demo-badge"), status.bundle_is_demo);
  showOnly(find("demo-note"), status.bundle_is_demo);
  put("quality", qualityInWords(status.quality));
  put("statistics", status.statistics || "–");
  put("run-folder", status.run_folder ?? "–", status.run_folder);
  put("decode-delay", status.decode_delay_s.toFixed(1), status.decode_delay_s);
  const added = status.decoders[0].added_delay_s.toFixed(2);
  put("resampling", status.resampling && `${added} s of it because volumes are resampled in time.`, status.resampling);
  find("resampling").title = status.resampling;
  put("tr", ms(status.tr_s * 1000), status.tr_s * 1000);
}

function qualityInWords(quality) {
  if (!quality) return "–";
  const known = [
    ["moved", quality.motion?.framewise_displacement, 2, " mm"],
    ["DVARS", quality.dvars, 1, ""],
    ["tSNR", quality.tsnr, 0, ""],
  ].filter(([, value]) => value !== null && value !== undefined);
  return known.map(([name, value, digits, unit]) => `${name} ${value.toFixed(digits)}${unit}`).join(" · ") || "–";
}
