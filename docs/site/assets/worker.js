// Browsers start no worker for a page that is opened from a folder. Its search then runs in a hidden frame.
if (location.protocol === "file:") {
  // as between threads: not at once, and of a copy
  const later = (data, to) => setTimeout(() => to.onmessage?.({ data: structuredClone(data) }));
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.inside = new Promise((done) => {
        this.frame.onload = () => {
          const inside = this.frame.contentWindow;
          inside.postMessage = (data) => later(data, this);
          const script = inside.document.createElement("script");
          script.src = url;
          script.onload = () => done(inside);
          script.onerror = (event) => this.onerror?.(event);
          inside.document.body.append(script);
        };
      });
      document.documentElement.append(this.frame);
    }

    postMessage(data) {
      this.inside.then((inside) => later(data, inside));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
