// What the page knows: the open run's status, frames and pictures, and which frame is looked at.
// Both transports feed it the same messages; everything drawn is drawn from it.

const NO_COUNTS = { planned: 0, received: 0, decoded: 0, warming: 0, censored: 0, skipped: 0, missing: 0 };

export class Store {
  runKey = null;
  status = null;
  frames = new Map(); // volume -> frame message of the bundle's first decoder, which decodes every volume
  bank = new Map(); // `${volume}_${decoder}` -> frame message of any decoder
  volumes = []; // of the first decoder's frames, ascending
  shown = new Map(); // onset volume -> name
  selected = null; // a volume looked back at; null is live
  link = { state: "connecting", transport: "none", note: "" };
  #listeners = [];
  #scheduled = false;

  onChange(listener) {
    this.#listeners.push(listener);
  }

  // Messages of one transmission; drawing waits for the next animation frame.
  apply(messages) {
    for (const message of messages) this.#applyOne(message);
    this.#changed();
  }

  setLink(link) {
    this.link = { ...this.link, ...link };
    this.#changed();
  }

  // Volume of the frame on view, null where there is none.
  get viewed() {
    return this.selected ?? this.volumes.at(-1) ?? null;
  }

  get counts() {
    return this.status?.counts ?? NO_COUNTS;
  }

  select(volume) {
    this.selected = this.frames.has(volume) ? volume : null;
    this.#changed();
  }

  // Look `by` frames back (negative) or forward; past the newest frame is live.
  step(by) {
    if (this.volumes.length === 0) return;
    const last = this.volumes.length - 1;
    const from = this.selected === null ? last : this.volumes.indexOf(this.selected);
    const to = Math.max(0, from + by);
    this.select(to > last || (to === last && by > 0) ? null : this.volumes[to]);
  }

  first() {
    if (this.volumes.length > 0) this.select(this.volumes[0]);
  }

  live() {
    this.select(null);
  }

  pictureUrl(kind, number, width) {
    const query = new URLSearchParams({ run: this.runKey });
    if (width) query.set("width", width);
    return `/${kind}/${number}.png?${query}`;
  }

  #applyOne(message) {
    switch (message.kind) {
      case "run":
        if (message.key !== this.runKey) this.#forget(message.key);
        break;
      case "status":
        this.status = message;
        break;
      case "shown":
        this.shown.set(message.onset_volume, message.name);
        break;
      case "frame":
        this.bank.set(`${message.volume}_${message.decoder}`, message);
        if (message.decoder !== this.status.decoders[0].name) break;
        if (!this.frames.has(message.volume)) insertSorted(this.volumes, message.volume);
        this.frames.set(message.volume, message);
        break;
    }
  }

  #forget(key) {
    this.runKey = key;
    this.frames.clear();
    this.bank.clear();
    this.volumes = [];
    this.shown.clear();
    this.selected = null;
  }

  #changed() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      for (const listener of this.#listeners) listener(this);
    });
  }
}

function insertSorted(volumes, volume) {
  let at = volumes.length;
  while (at > 0 && volumes[at - 1] > volume) at -= 1;
  volumes.splice(at, 0, volume);
}
