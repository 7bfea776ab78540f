// The connection to the server: WebRTC first, the WebSocket where that has not connected in time, and again
// whenever it is lost. Numbers are the same JSON messages on both; pictures are video there and PNG here.

export const PATIENCE_S = 3; // for WebRTC to connect
const SILENCE_S = 4; // the server says something every second
const RETRY_MS = 1000;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Link {
  #store;
  #video;
  #onPicture;
  #forced;
  #patienceS;
  #session = null;

  // onPicture(volume, blob) gets the pictures of the WebSocket; forced is "websocket" or null. More patience than
  // usual is for machines too busy to answer in time.
  constructor({ store, video, onPicture, forced, patienceS = PATIENCE_S }) {
    this.#store = store;
    this.#video = video;
    this.#onPicture = onPicture;
    this.#forced = forced;
    this.#patienceS = patienceS;
    addEventListener("pagehide", () => this.#session?.close());
  }

  async run() {
    for (;;) {
      this.#session = await this.#open();
      if (this.#session) {
        await this.#session.closed;
        this.#session.close();
      }
      const note = (await isKnown()) ? "trying again" : "the runtime has a new address, see where it was started";
      this.#store.setLink({ state: "lost", transport: "none", note });
      await sleep(RETRY_MS);
    }
  }

  async #open() {
    let note = "asked for in the address";
    if (this.#forced !== "websocket") {
      try {
        const session = await openWebRtc(this.#store, this.#video, this.#patienceS);
        this.#store.setLink({ state: "live", transport: "webrtc", note: "" });
        return session;
      } catch (error) {
        note = error.message;
      }
    }
    try {
      const session = await openWebSocket(this.#store, this.#onPicture, this.#patienceS);
      this.#store.setLink({ state: "live", transport: "websocket", note });
      return session;
    } catch {
      return null;
    }
  }
}

// Whether the server still takes this page's token; a server that is away may.
async function isKnown() {
  try {
    return (await fetch("/", { method: "HEAD" })).status !== 401;
  } catch {
    return true;
  }
}

// A session's end: resolves when told to, or when nothing was heard for too long.
class Watch {
  closed = new Promise((resolve) => (this.end = resolve));
  #heard = performance.now();
  #timer;

  constructor(patienceS) {
    const silenceMs = 1000 * Math.max(SILENCE_S, patienceS);
    this.#timer = setInterval(() => {
      if (performance.now() - this.#heard > silenceMs) this.end();
    }, 500);
  }

  hear() {
    this.#heard = performance.now();
  }

  stop() {
    clearInterval(this.#timer);
    this.end();
  }
}

function receive(store, watch, text) {
  watch.hear();
  store.apply(JSON.parse(text));
}

async function openWebRtc(store, video, patienceS) {
  if (!("RTCPeerConnection" in window)) throw new Error("this browser has no WebRTC");
  const connection = new RTCPeerConnection({ iceServers: [] });
  const watch = new Watch(patienceS);
  const close = () => {
    watch.stop();
    connection.close();
  };
  const late = sleep(1000 * patienceS).then(() => {
    throw new Error(`WebRTC did not connect within ${patienceS} s`);
  });
  try {
    await Promise.race([connect(connection, watch, store, video), late]);
  } catch (error) {
    close();
    throw error;
  }
  return { closed: watch.closed, close };
}

// Resolves when numbers and video both flow.
async function connect(connection, watch, store, video) {
  const channel = connection.createDataChannel("numbers");
  const { receiver } = connection.addTransceiver("video", { direction: "recvonly" });
  if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0; // newest, not smoothest
  const speaking = new Promise((resolve) => {
    channel.onmessage = (event) => {
      receive(store, watch, event.data);
      resolve();
    };
  });
  channel.onclose = () => watch.end();
  connection.onconnectionstatechange = () => {
    if (["failed", "closed"].includes(connection.connectionState)) watch.end();
  };
  const moving = new Promise((resolve) => (video.onloadeddata = resolve));
  video.srcObject = new MediaStream([receiver.track]);
  await connection.setLocalDescription();
  await connection.setRemoteDescription(await signal(connection.localDescription.sdp));
  await Promise.all([speaking, moving]);
}

// The server answers at once: it offers 127.0.0.1 and learns this page's address from its first packet, so there
// are no candidates to gather and none to send.
async function signal(sdp) {
  const response = await fetch("/offer", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ sdp: sdp.replace(/^a=candidate:.*\r\n/gm, "") }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(`the server refused WebRTC: ${answer.error}`);
  return answer;
}

async function openWebSocket(store, onPicture, patienceS) {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  const watch = new Watch(patienceS);
  await new Promise((resolve, reject) => {
    socket.onopen = resolve;
    socket.onclose = () => {
      watch.stop();
      reject(new Error("the WebSocket did not open"));
    };
  });
  socket.onclose = () => watch.end();
  socket.onmessage = ({ data }) => {
    if (typeof data === "string") {
      receive(store, watch, data);
    } else {
      watch.hear();
      onPicture(new DataView(data).getUint32(0), new Blob([data.slice(4)], { type: "image/png" }));
    }
  };
  const close = () => {
    watch.stop();
    socket.close();
  };
  return { closed: watch.closed, close };
}
