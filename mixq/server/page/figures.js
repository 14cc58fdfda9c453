// The statistics of a reply: tokens/s, time to the first token, hit rate, context, prompt progress. They are measured
// here while the reply arrives; at its end the engine's statistics replace them.

import { byId } from "./elements.js";
import { seconds } from "./message.js";

const count = (n) => n.toLocaleString("en");

export class Figures {
  constructor(now = () => performance.now()) {
    this.now = now;
  }

  begin() {
    this.asked = this.now();
    this.first = null;
    this.tokens = 0;
    this.final = null;
    for (const id of ["speed", "first", "hits"]) byId(id).textContent = "–";
  }

  prefill({ done, total }) {
    byId("prefill").hidden = done >= total;
    byId("prefill-bar").max = Math.max(1, total);
    byId("prefill-bar").value = done;
    byId("prefill-text").textContent = `${count(done)} of ${count(total)}`;
  }

  /** Count tokens that have arrived. */
  add(n) {
    this.first ??= this.now();
    this.tokens += n;
    byId("prefill").hidden = true;
    byId("first").textContent = seconds((this.first - this.asked) / 1000);
    const elapsed = (this.now() - this.first) / 1000;
    if (this.tokens > 1 && elapsed > 0.05) byId("speed").textContent = ((this.tokens - 1) / elapsed).toFixed(1);
  }

  /** Show the engine's statistics. */
  end(stats) {
    this.final = {
      tokens: stats.decode_tokens,
      speed: stats.decode_tokens_per_second,
      first: stats.time_to_first_token,
      context: stats.context_used,
    };
    const hits = stats.experts?.hit_rate;
    if (typeof hits === "number") this.final.hits = hits;
    this.show(this.final);
    this.context(stats.context_used, stats.context_size);
  }

  close() {
    byId("prefill").hidden = true;
  }

  /** Show the statistics of an earlier reply. */
  show(figures) {
    byId("speed").textContent = figures?.speed ? figures.speed.toFixed(1) : "–";
    byId("first").textContent = figures?.first === undefined ? "–" : seconds(figures.first);
    this.hits(figures?.hits);
  }

  hits(rate) {
    byId("hits").textContent = typeof rate === "number" ? `${Math.round(rate * 100)} %` : "–";
  }

  context(used, size) {
    byId("used").textContent = used ? `${count(used)} / ${count(size)}` : "–";
    byId("context").textContent = used ? `${Math.round((100 * used) / size)} % of the context used` : "";
  }
}
