for (const e of document.querySelectorAll('.at-KEY')) {
  const d = e.dataset, s = Math.min(this.currentTime / d.seconds, 1),
    frame = Math.min(Math.floor(this.currentTime * d.fps), d.frames - 1);
  if (d.frames) e.style.backgroundPosition = (d.frames > 1 ? 100 * frame / (d.frames - 1) : 0) + '% 0';
  else if (d.up) e.style.top = 1 * d.from + (d.to - d.from) * Math.min(this.currentTime / d.up, 1) + '%';
  else e.style.left = 1 * d.from + (d.to - d.from) * s + '%';
}
