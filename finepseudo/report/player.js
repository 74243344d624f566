"use strict";
// Two clips side by side, locked by the path that aligns their frames: one slider moves both. A clip is a strip, its
// frames side by side in one picture; path[t] is the frame of the other clip that belongs to frame t.
class Pair {
  constructor(mine, theirs, slider, where, button, moved) {
    Object.assign(this, { mine, theirs, slider, where, button, moved, clip: null, frame: 0, timer: 0 });
    slider.addEventListener("input", () => { this.frame = Number(slider.value); this.draw(); });
    button.addEventListener("click", () => this.play(!this.timer));
  }

  // clip: { frames, seconds, mine: { image, name }, theirs: { image, name } or null, path }
  show(clip, frame) {
    this.clip = clip;
    this.frame = frame;
    this.slider.max = clip.frames - 1;
    this.draw();
    if (this.timer) this.play(true);
  }

  step(by) {
    const count = this.clip.frames;
    this.frame = (this.frame + by + count) % count;
    this.draw();
  }

  play(on) {
    clearInterval(this.timer);
    this.timer = 0;
    const { seconds, frames } = this.clip;
    if (on) this.timer = setInterval(() => this.step(1), Math.min(400, Math.max(40, (1000 * seconds) / frames || 100)));
    this.button.setAttribute("aria-pressed", String(on));
  }

  draw() {
    const { frames, mine, theirs, path } = this.clip;
    let said = `frame ${this.frame + 1} of ${frames}`;
    this.paint(this.mine, mine, this.frame);
    if (theirs) {
      this.paint(this.theirs, theirs, path[this.frame]);
      said += ` beside ${path[this.frame] + 1}`;
    }
    this.slider.value = this.frame;
    this.slider.setAttribute("aria-valuetext", said);
    this.where.textContent = said;
    if (this.moved) this.moved(this.frame);
  }

  paint(canvas, { image, name }, index) {
    canvas.setAttribute("aria-label", `${name}, frame ${index + 1} of ${this.clip.frames}`);
    canvas.dataset.frame = index;
    if (!image.complete) {
      image.addEventListener("load", () => this.draw(), { once: true });
      return;
    }
    const side = image.naturalHeight;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    canvas.getContext("2d").drawImage(image, index * side, 0, side, side, 0, 0, side, side);
  }
}
