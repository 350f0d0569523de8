// Opened from a file, a page may not start a worker, which the search needs. This one lives in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow, address = new URL(url, location.href).href;
      addEventListener("message", e => {
        if (e.source !== inside) return;
        this.dispatchEvent(new MessageEvent("message", { data: e.data }));
        if (this.onmessage) this.onmessage(e);
      });
      inside.document.open();
      inside.document.write(`<!doctype html><body><script>
        postMessage = m => parent.postMessage(m, "*");
        importScripts = (...urls) => urls.reduce((done, src) => done.then(() => new Promise((resolve, reject) => {
          const s = document.createElement("script");
          s.onload = resolve; s.onerror = reject; s.src = src;
          document.body.append(s);
        })), Promise.resolve());
      <\/script><script src="${address}"><\/script>`);
      inside.document.close();
      this.ready = new Promise(resolve => this.frame.onload = resolve);
    }
    postMessage(data) { this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data, source: window }))); }
    terminate() { this.frame.remove(); }
  };
}
