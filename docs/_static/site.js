// Names for what a screen reader would meet without one, and a list that is none.
document.addEventListener("DOMContentLoaded", () => {
  for (const list of document.querySelectorAll(".citation-list")) list.removeAttribute("role");
  for (const summary of document.querySelectorAll("nav summary")) {
    summary.setAttribute("aria-label", "pages below");
  }
  for (const link of document.querySelectorAll("a:has(.math)")) {
    link.setAttribute("aria-label", link.textContent.replace(/\\[()]/g, ""));
  }
});
// The theme makes what scrolls reachable by keyboard, but looks before fonts have come: look again.
window.addEventListener("load", () => window.dispatchEvent(new Event("resize")));
