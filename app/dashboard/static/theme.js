// Before the first paint: the colours that were chosen here, so that nothing flashes.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("tunesmith.theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
