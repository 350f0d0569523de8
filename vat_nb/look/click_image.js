// An image that reports where it was clicked: across and down, as shares of its width and height.
function render({ model, el }) {
  const img = document.createElement("img");
  img.style.cssText = "max-width: 100%; cursor: crosshair; display: block";
  const show = () => {
    URL.revokeObjectURL(img.src);
    img.alt = model.get("alt");
    img.src = URL.createObjectURL(new Blob([model.get("value")], { type: "image/png" }));
  };
  img.addEventListener("click", event => {
    const box = img.getBoundingClientRect();
    model.set("position", [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
    model.save_changes();
  });
  model.on("change:value", show);
  show();
  el.appendChild(img);
}
export default { render };
